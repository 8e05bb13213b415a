"""The subcommands that run servers."""
