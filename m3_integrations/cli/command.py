"""What every command has: --json, -q and -v, exit codes, and errors of one line."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m3_integrations.cli.options import UsageError
from m3_integrations.cli.output import CommandResult, terminal
from m3_integrations.core.errors import M3Error

_PARSERS = ("pypdf", "bs4")  # log several lines of warnings for a file that we name in one
FAILURE, USAGE, INTERRUPTED = 1, 2, 130

_UsageErrorOfTyper: Any = (
    typer.BadParameter.__base__
)  # which typer does not export, and click only has in some versions

_SHARED = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print the result as one JSON document a line.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print more; errors with their traceback.")],
}


class CommandGroup(TyperGroup):
    """Commands whose errors of usage are JSON documents too if --json is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words before the command, and note whether --json is among all of them."""
        terminal.as_json = "--json" in args
        with _usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _usage_errors():
            return super().invoke(ctx)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except _UsageErrorOfTyper as error:
        if terminal.as_json:
            name = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
            terminal.print_json(name, {"error": {"type": "UsageError", "message": error.format_message()}})
        raise


def register(
    app: typer.Typer, function: Callable[..., CommandResult | None], *, panel: str, alias: str | None = None
) -> None:
    """Add a function as a command with the options of every command; a returned result is printed.

    Args:
        app: The application.
        function: The command, of the same name without a last underscore.
        panel: Heading of its group in the help.
        alias: Another name, which the help leaves out.
    """

    name = function.__name__.rstrip("_")

    @wraps(function)
    def run(as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
        terminal.as_json, terminal.quiet, terminal.verbose = as_json, quiet, verbose
        for library in _PARSERS:
            logging.getLogger(library).setLevel(logging.WARNING if verbose else logging.CRITICAL)
        for stream in (sys.stdout, sys.stderr):  # what the encoding of the terminal lacks is escaped
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
        with _errors(name), _warnings():
            result = function(**arguments)
            if result is not None:
                terminal.show(name, result)
            sys.stdout.flush()
            if result is not None and result.failed:
                raise typer.Exit(FAILURE)

    own = inspect.signature(function, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _SHARED.items()
    ]
    parameters = [*own.parameters.values(), *shared]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads the options here
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name, rich_help_panel=panel)(run)
    if alias is not None:
        app.command(alias, hidden=True)(run)


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """Print an expected error on one line, and exit with its status."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of a pipe has enough
    except KeyboardInterrupt as error:
        _report(command, error, str(error) or "interrupted")
        raise typer.Exit(INTERRUPTED) from error
    except (M3Error, OSError, ValueError) as error:
        _report(command, error, " ".join(str(error).split()) or type(error).__name__)
        raise typer.Exit(USAGE if isinstance(error, UsageError) else FAILURE) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        described = " ".join(f"{type(error).__name__}: {error}".split())
        _report(command, error, f"{described} (a fault of m3; -v shows where, for a report)")
        raise typer.Exit(FAILURE) from error


def _report(command: str, error: BaseException, message: str) -> None:
    if terminal.verbose:
        terminal.note("".join(traceback.format_exception(error)))
    try:
        if terminal.as_json:
            terminal.print_json(command, {"error": {"type": type(error).__name__, "message": message}})
        sys.stdout.flush()
    except OSError:  # such as of a full disk: what is left is dropped, or the interpreter would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    terminal.error(message)
    if isinstance(error, UsageError) and error.excerpt:
        terminal.note(error.excerpt)


@contextmanager
def _warnings() -> Iterator[None]:
    """Print warnings on one line each, each text once."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            terminal.warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
