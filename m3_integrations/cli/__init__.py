"""The `m3` command."""

from m3_integrations.cli.entry_point import app, main

__all__ = ["app", "main"]
