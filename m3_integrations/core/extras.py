"""Optional libraries: import one, or say what to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from m3_integrations.core.errors import MissingExtra


def need(distribution: str, *, extra: str, module: str | None = None) -> ModuleType:
    """Import the module of an optional distribution.

    module: its import name, where that is not the distribution's name with underscores.
    Raises MissingExtra with the command that installs it.
    """
    name = module or distribution.replace("-", "_")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise  # it is there, and something that it needs is not
        raise MissingExtra(f"{distribution!r} is not installed; run: pip install 'm3-integrations[{extra}]'") from error
