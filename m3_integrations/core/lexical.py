"""Lexical weights of short and long texts on one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy.typing as npt
from torch import Tensor

Norms = TypeVar("Norms", npt.NDArray, Tensor)  # type: ignore[type-arg]  # of any float


@dataclass(frozen=True, slots=True)
class LexicalLength:
    """Pivoted length normalisation (Singhal, Buckley and Mitra, SIGIR 1996, section 3).

    The weights of a text add up to more the longer it is, and so do its scores. slope: how much of that is taken back,
    from 0, which leaves weights alone, to 1, which makes every text's as long. pivot: the length of weights that stay.
    Raises ValueError for what is no slope or no pivot.
    """

    slope: float
    pivot: float

    def __post_init__(self) -> None:
        if not 0 <= self.slope <= 1 or not self.pivot > 0:
            raise ValueError(f"lexical_length takes a slope from 0 to 1 and a pivot above 0, got {self}")

    def share(self, norms: Norms) -> Norms:
        """What the weights of texts are multiplied by. norms: (texts,), their Euclidean length."""
        return 1 / (1 - self.slope + self.slope / self.pivot * norms)
