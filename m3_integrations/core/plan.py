"""How to search: which modes propose candidates, how many, and how the modes are weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m3_integrations.core.encoded import MODES, Mode, check_modes


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """Propose `candidates` passages by each of `propose`, then score their union exactly in every weighted mode.

    weights: mode -> weight; None takes the encoder's own. A mode without weight is not scored.
    """

    propose: tuple[Mode, ...] = ("dense", "sparse")
    candidates: int = 100
    weights: Mapping[Mode, float] | None = None

    def __post_init__(self) -> None:
        check_modes(self.propose, MODES)
        object.__setattr__(self, "propose", tuple(self.propose))
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")
        if self.weights is not None:
            _check_weights(self.weights)


def _check_weights(weights: Mapping[Mode, float]) -> None:
    check_modes(tuple(weights), MODES)
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights are at least 0 and one is above it, got {dict(weights)}")
