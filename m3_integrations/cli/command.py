"""What every command has: --json, -q and -v, exit codes, and errors of one line."""

from __future__ import annotations

import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer

from m3_integrations.cli.options import UsageError
from m3_integrations.cli.output import CommandResult, terminal
from m3_integrations.core.errors import M3Error

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

_SHARED = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print the result as one JSON document a line.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print more; errors with their traceback.")],
}


def register(app: typer.Typer, function: Callable[..., CommandResult | None], *, panel: str) -> None:
    """Add a function as a command with the options of every command; a returned result is printed.

    Args:
        app: The application.
        function: The command, of the same name without a last underscore.
        panel: Heading of its group in the help.
    """

    name = function.__name__.rstrip("_")

    @wraps(function)
    def run(as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
        terminal.as_json, terminal.quiet, terminal.verbose = as_json, quiet, verbose
        for stream in (sys.stdout, sys.stderr):  # what the encoding of the terminal lacks is escaped
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
        with _errors(name), _warnings():
            result = function(**arguments)
            if result is not None:
                terminal.show(name, result)
                if result.failed:
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
        _report(command, error, " ".join(str(error).split()))
        raise typer.Exit(USAGE if isinstance(error, UsageError) else FAILURE) from error


def _report(command: str, error: BaseException, message: str) -> None:
    if terminal.verbose:
        terminal.note("".join(traceback.format_exception(error)))
    if terminal.as_json:
        terminal.print_json(command, {"error": {"type": type(error).__name__, "message": message}})
    terminal.error(message)


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
