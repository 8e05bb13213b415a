"""Conventions of a checkpoint: what turns texts into vectors, in addition to the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy.typing as npt

from m3_integrations.core.encoded import Mode, SparseScore
from m3_integrations.core.types import SearchPlan
from m3_integrations.models.heads.late_interaction import LateInteraction

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["cls", "mean"]
Norms = TypeVar("Norms", npt.NDArray, "Tensor")  # type: ignore[type-arg]  # of any float
# The sum that BGE-M3's training distils (FlagEmbedding, encoder_only/m3/modeling.py); its compute_score has 1, 1, 1.
BGE_M3_WEIGHTS: Mapping[Mode, float] = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
# Conventions that change no vector of a passage, and the overlap, stated by the windows that options make of it.
_UNHASHED = ("weights", "pair_weights", "sparse_score", "window_overlap")
_ADDED = ("truncate_dim", "lexical_length", "max_terms", "late")  # conventions that came after the first fingerprints


@dataclass(frozen=True, slots=True)
class PivotedLengthNormalization:
    """Pivoted length normalization (Singhal, Buckley and Mitra, SIGIR 1996, section 3).

    The norm of a text's lexical weights, and with it its scores, grows with its length.

    Args:
        slope: Share of that growth to remove: 0 keeps weights, 1 gives every text the same norm.
        pivot: Norm of weights that stay unchanged.

    Raises:
        ValueError: If slope is outside [0, 1] or pivot is not positive.
    """

    slope: float
    pivot: float

    def __post_init__(self) -> None:
        if not 0 <= self.slope <= 1 or not self.pivot > 0:
            raise ValueError(f"lexical_length takes a slope from 0 to 1 and a pivot above 0, got {self}")

    def scale(self, norms: Norms) -> Norms:
        """Return the factors for the weights of texts.

        Args:
            norms: Euclidean norms of their weights, shape (texts,).

        Returns:
            Factors, shape (texts,).
        """
        return 1 / (1 - self.slope + self.slope / self.pivot * norms)


@dataclass(frozen=True)
class CheckpointConventions:
    """Conventions that turn texts into vectors, in addition to the weights.

    Attributes:
        pooling: Pooling of the dense vector; None without a dense mode.
        normalise: Whether dense vectors are normalized; spelled as in the checkpoint's file.
        max_length: Longest sequence in tokens, special tokens included.
        query_prefix: Text put before every query.
        passage_prefix: Text put before every passage.
        weights: Recommended weight of each mode in a summed score of all modes.
        pair_weights: Recommended weights of sums of two modes; those of other pairs are taken from `weights`.
        sparse_score: "sum" of the products of shared tokens' weights, as in BGE-M3, or "mean" or "idf", as in
            `SearchPlan`. All weights are for it.
        lexical_length: Length normalization of lexical weights; None for none, as in BGE-M3.
        window_overlap: Tokens shared by the windows in which longer texts are read; None truncates them.
        truncate_dim: Leading dimensions of the dense vector to use (Matryoshka); None uses all.
        max_terms: Largest lexical weights of a text to keep; None keeps all.
        late: Which tokens have vectors in late interaction, as in ColBERT; None for the rule of BGE-M3.

    Raises:
        ValueError: If a value is invalid.
    """

    pooling: Pooling | None
    normalise: bool = True
    max_length: int = 512
    query_prefix: str = ""
    passage_prefix: str = ""
    weights: Mapping[Mode, float] = field(default_factory=lambda: dict(BGE_M3_WEIGHTS))
    pair_weights: Sequence[Mapping[Mode, float]] = ()
    lexical_length: PivotedLengthNormalization | None = None
    window_overlap: int | None = None
    truncate_dim: int | None = None
    sparse_score: SparseScore = "sum"
    max_terms: int | None = None
    late: LateInteraction | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pair_weights", tuple(self.pair_weights))  # a list in JSON
        if not isinstance(self.normalise, bool):
            raise ValueError(f"normalise is true or false, got {self.normalise!r}")
        for name, least in (("window_overlap", 0), ("truncate_dim", 1), ("max_terms", 1)):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < least):
                raise ValueError(f"{name} is a whole number from {least}, got {number!r}")
        if not isinstance(self.max_length, int) or self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length!r}")
        if not isinstance(self.query_prefix, str) or not isinstance(self.passage_prefix, str):
            raise ValueError(f"prefixes are strings, got {self.query_prefix!r} and {self.passage_prefix!r}")
        for pair in self.pair_weights:
            if not isinstance(pair, Mapping) or len(pair) != 2:
                raise ValueError(f"pair_weights holds mappings of two modes to weights, got {pair!r}")
        for weights in (self.weights, *self.pair_weights):
            SearchPlan(weights=weights, sparse_score=self.sparse_score)  # raises ValueError for invalid ones

    @property
    def default_overlap(self) -> int | None:
        """Tokens shared by windows, adapted to `max_length`; None truncates."""
        return None if self.window_overlap is None else min(self.window_overlap, (self.max_length - 2) // 8)


def hash_reading(
    weights: str,
    conventions: CheckpointConventions,
    window_overlap: int | None,
    mcls_interval: int | None = None,
    token_pooling: int = 1,
) -> str:
    """Return the fingerprint of an encoder: 64 hex digits over everything that changes vectors.

    Args:
        weights: Hash of weights and tokenizer.
        conventions: Conventions of the encoder.
        window_overlap: Tokens shared by windows; None truncates.
        mcls_interval: Tokens between cls tokens.
        token_pooling: Tokens per vector.
    """
    reading = {key: value for key, value in asdict(conventions).items() if key not in _UNHASHED}
    reading |= {"windows": window_overlap, "cls_every": mcls_interval}
    for option in _ADDED:
        if reading[option] is None:
            del reading[option]  # keeps the fingerprint of indexes from before this option
    if token_pooling != 1:
        reading["token_pooling"] = token_pooling
    stated = json.dumps(reading, sort_keys=True)
    return hashlib.sha256(f"{weights}{stated}".encode()).hexdigest()


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens; cls begins a sequence, eos ends it."""

    cls: int
    eos: int
    pad: int
    unk: int | None

    @property
    def unweighted(self) -> list[int]:
        """Ids without a lexical weight, those that BGE-M3's own code leaves out."""
        return [id for id in (self.cls, self.eos, self.pad, self.unk) if id is not None]
