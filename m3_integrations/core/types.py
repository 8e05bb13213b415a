"""Passages, queries and search plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import index
from types import MappingProxyType
from typing import Any
from unicodedata import category

from m3_integrations.core.encoded import FUSIONS, MODES, Fusion, Mode, SparseScore, check_modes, check_sparse_score

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to index.

    Args:
        id: Unique id, not empty.
        text: The text.
        metadata: JSON-like values to filter by.

    Raises:
        ValueError: If the id is not a non-empty string, or the text not a string.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        _require_id_and_text("Passage", self.id, self.text)
        _to_plain_strings(self)


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its relevant passages.

    Args:
        id: Unique id, not empty.
        text: The text.
        relevant: Passage id to grade.

    Raises:
        ValueError: If the id is not a non-empty string, or the text not a string.
    """

    id: str
    text: str
    relevant: Mapping[str, float] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        _require_id_and_text("Query", self.id, self.text)
        _to_plain_strings(self)


def positive_integer(name: str, value: Any) -> int:
    """Return an integer argument as an int; numpy's integers would overflow in sums.

    Raises:
        ValueError: If it is no integer, or below 1.
    """
    try:
        number = index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}; write int({name})") from None
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number


def is_blank(text: str) -> bool:
    """Return whether a text has only spaces, control and invisible formatting characters."""
    return all(char.isspace() or category(char) in ("Cc", "Cf") for char in text)


def _require_id_and_text(kind: str, id: object, text: object) -> None:
    if not isinstance(id, str) or not id:
        raise ValueError(f"{kind} ids are non-empty strings, got {id!r}; write {kind}(id={str(id) or 'doc-1'!r}, ...)")
    if not isinstance(text, str):
        raise ValueError(f"{kind} {id!r} needs a text, got {text!r}; use '' for an empty text")


def _to_plain_strings(item: Passage | Query) -> None:
    """Replace subclasses of str, such as numpy's, by str."""
    for name in ("id", "text"):
        value: str = getattr(item, name)
        if type(value) is not str:
            object.__setattr__(item, name, str.__str__(value))


@dataclass(frozen=True, slots=True, repr=False)
class ScoreCalibration:
    """The probability that a match of a search plan is relevant, as a piecewise linear curve over its score.

    Args:
        scores: Scores of the points, ascending.
        probabilities: Probabilities of the points, ascending, 0 to 1.
        threshold: Probability from which matches are worth keeping.

    Raises:
        ValueError: If these are not two ascending lists of the same length, with probabilities from 0 to 1.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        for name in ("scores", "probabilities"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        ascends = all(list(each) == sorted(each) for each in (self.scores, self.probabilities))
        within = all(0 <= each <= 1 for each in (*self.probabilities, self.threshold))
        if not self.scores or len(self.scores) != len(self.probabilities) or not ascends or not within:
            raise ValueError("a calibration has ascending scores, and as many probabilities, ascending from 0 to 1")

    def __repr__(self) -> str:
        return f"ScoreCalibration({len(self.scores)} points, threshold={self.threshold:.3g})"


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How to search: modes that generate candidates, and weights that rank them.

    The union of the candidates is scored exactly in every summed mode.

    Args:
        propose: Modes that generate candidates.
        candidates: Number of candidates per mode.
        weights: Mode to weight. None: the weights stored with the index if they sum the same modes, otherwise the
            encoder's recommended weights for these modes.
        modes: Modes that are summed. None: those with a weight; without weights all that encoder and index have.
        sparse_score: "sum" of the products of shared tokens' weights; "mean": the sum divided by that of the query's
            weights; or "idf": "mean" after the query's weights are multiplied by the square root of each token's
            inverse document frequency among the passages of the index. None is the encoder's convention, which its
            recommended weights are for.
        fusion: "sum" of weighted scores, or "rrf", reciprocal rank fusion: the sum of weight / (60 + rank), where a
            mode ranks all candidates by their exact scores. Its weights are 1 each by default.
        calibration: Probabilities of the scores of these weights, as `calibrate_plan` fits them.

    Raises:
        MissingMode: If a mode is unknown.
        ValueError: If a number, a weight, `sparse_score` or `fusion` is out of range, a summed mode lacks a weight, or
            scores are calibrated without weights.
    """

    propose: tuple[Mode, ...] = ("dense", "sparse")
    candidates: int = 100
    weights: Mapping[Mode, float] | None = None
    modes: tuple[Mode, ...] | None = None
    sparse_score: SparseScore | None = None
    fusion: Fusion = "sum"
    calibration: ScoreCalibration | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_modes(self.propose, MODES)
        if self.calibration is not None and self.weights is None:
            raise ValueError("a calibration is for the scores of certain weights; give weights too")
        if self.sparse_score is not None:
            check_sparse_score(self.sparse_score)
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion is one of {list(FUSIONS)}, got {self.fusion!r}")
        object.__setattr__(self, "propose", tuple(self.propose))
        object.__setattr__(self, "candidates", positive_integer("candidates", self.candidates))
        if self.modes is not None:
            check_modes(self.modes, MODES)
            object.__setattr__(self, "modes", tuple(self.modes))
        if self.weights is not None:
            _check_weights(self.weights)
            self._check_modes_have_weights(self.weights)

    @property
    def summed(self) -> tuple[Mode, ...] | None:
        """Modes that are summed, as far as the plan states them."""
        if self.weights is None:
            return self.modes
        return tuple(mode for mode in self.modes or self.weights if self.weights[mode])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as an index stores it."""
        weights = None if self.weights is None else {mode: float(weight) for mode, weight in self.weights.items()}
        stored = {**{each.name: getattr(self, each.name) for each in fields(self)}, "weights": weights}
        curve = stored.pop("calibration")  # left out if there is none, as earlier versions do not know it
        return stored if curve is None else {**stored, "calibration": asdict(curve)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SearchPlan:
        """Read a plan as `to_json` wrote it.

        Weights that were stored before plans had a `sparse_score` are for sums.

        Args:
            stored: Fields of a plan by name.

        Returns:
            The plan.

        Raises:
            TypeError, ValueError, M3Error: If it is no plan.
        """
        options: dict[str, Any] = {**stored}
        if options.get("weights") is not None:
            options.setdefault("sparse_score", "sum")
        if options.get("calibration") is not None:
            options["calibration"] = ScoreCalibration(**options["calibration"])
        return cls(**options)

    def _check_modes_have_weights(self, weights: Mapping[Mode, float]) -> None:
        if self.modes is not None and not all(weights.get(mode) for mode in self.modes):
            raise ValueError(f"modes={self.modes} are summed, but weights={dict(weights)} lacks one; leave modes out")


def _check_weights(weights: Mapping[Mode, float]) -> None:
    check_modes(tuple(weights), MODES)
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights must be at least 0 and one of them positive, got {dict(weights)}")
