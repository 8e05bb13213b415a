"""Lazy re-exports: a package imports the module of a name at its first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lazy_loader


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Build `__getattr__`, `__dir__` and `__all__` of a package from its `__init__.pyi`.

    Args:
        package: `__name__` of the package.
        file: `__file__` of its `__init__.py`.

    Returns:
        The three module attributes; an unknown name raises an AttributeError that lists the known ones.
    """
    load, list_names, names = lazy_loader.attach_stub(package, file)
    known = sorted(names)

    def get(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(known)}")
        return load(name)

    return get, list_names, names
