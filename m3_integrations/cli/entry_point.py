"""Entry point of the `m3` command: its subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from m3_integrations import __version__
from m3_integrations.cli.command import CommandGroup, register
from m3_integrations.cli.commands import (
    demo,
    evaluation,
    index,
    maintenance,
    nudge,
    passages,
    reencode,
    search,
    train,
    tuning,
)
from m3_integrations.cli.commands.servers import mcp, serve

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed by the caller, as `m3 ... >&-` does
        setattr(sys, _name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # for as long as the process
_PLAIN = not (sys.stdout.isatty() and sys.stderr.isatty())  # no frames and no wrapping in pipes

app = typer.Typer(
    name="m3",
    cls=CommandGroup,
    epilog="Exit status: 0 if it succeeded, 1 if it failed, 2 if the arguments are wrong.",
    no_args_is_help=True,
    rich_markup_mode=None if _PLAIN else "rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"m3 {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hybrid retrieval with BGE-M3: dense, lexical and late-interaction search."""


_ALIASES: dict[Callable[..., object], str] = {index.index: "ingest"}  # the name of the function in Python

for panel, commands in {
    "Search": (demo.demo, index.index, search.search, search.explain),
    "Indexes": (
        *(passages.add, passages.delete, passages.export),
        *(maintenance.info, maintenance.check, maintenance.repair, maintenance.copy),
    ),
    "Servers": (serve.serve, mcp.mcp),
    "Learning": (
        evaluation.eval_,
        tuning.tune,
        tuning.calibrate,
        nudge.nudge,
        reencode.reencode,
        train.mine,
        train.train,
    ),
}.items():
    for command in commands:
        register(app, command, panel=panel, alias=_ALIASES.get(command))


def main() -> None:
    """Run the command line."""
    app()
