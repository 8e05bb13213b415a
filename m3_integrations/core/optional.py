"""Import of optional libraries."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from m3_integrations.core.errors import MissingExtra


def import_optional(distribution: str, *, extra: str, module: str | None = None) -> ModuleType:
    """Import the module of an optional distribution.

    Args:
        distribution: Name of the distribution.
        extra: Extra of this package that installs it.
        module: Name of the module if it is not the distribution's with underscores.

    Raises:
        MissingExtra: If it is not installed; the message has the command that installs it.
    """
    name = module or distribution.replace("-", "_")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise  # it is installed and lacks a dependency
        raise MissingExtra(f"{distribution!r} is not installed; run: pip install 'm3-integrations[{extra}]'") from error
