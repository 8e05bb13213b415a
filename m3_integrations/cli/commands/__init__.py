"""The subcommands of `m3`."""
