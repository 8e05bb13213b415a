"""What tests can stand on: an encoder without a model, and the contract that every index keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3_integrations.testing.hashing import HashEncoder

if TYPE_CHECKING:
    from m3_integrations.testing.contract import IndexContract

__all__ = ["HashEncoder", "IndexContract"]


def __getattr__(name: str) -> Any:
    """Import the contract when it is first asked for: it needs pytest and hypothesis, and the encoder does not."""
    if name != "IndexContract":
        raise AttributeError(f"module 'm3_integrations.testing' has no attribute {name!r}; it has {__all__}")
    from m3_integrations.testing.contract import IndexContract

    return IndexContract
