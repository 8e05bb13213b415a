"""Update of m3-mini's linear layers."""

from __future__ import annotations

from m3_integrations.core.encoded import Array


def merged(name: str, weight: Array) -> Array:  # noqa: ARG001  # there is no update yet
    """Return a tensor of the weight file with its update.

    Args:
        name: Name in BertModel, such as "encoder.layer.3.attention.self.query.weight".
        weight: The tensor, flat.

    Returns:
        The tensor of the model, flat; `weight` itself for a tensor without an update.
    """
    return weight
