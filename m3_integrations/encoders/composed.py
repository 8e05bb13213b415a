"""ComposedEncoder: modes of several checkpoints as one encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

from m3_integrations.core.encoded import MODES, Encoded, Mode, Modes, SparseScore, check_modes
from m3_integrations.core.errors import MissingMode
from m3_integrations.core.types import SearchPlan
from m3_integrations.encoders.base import Encoder, weights_of_modes
from m3_integrations.encoders.explain import Explanation


class ComposableEncoder(Encoder, Protocol):
    """What an encoder needs to be a part of a composed one: `M3Encoder` has it."""

    @property
    def name(self) -> str: ...

    @property
    def max_length(self) -> int: ...

    @property
    def sparse_score(self) -> SparseScore: ...

    def has_content(self, texts: Sequence[str]) -> list[bool]: ...

    def tokens(self, ids: Sequence[int]) -> list[str]: ...

    def explain(
        self,
        query: str,
        passage: str,
        weights: Mapping[Mode, float] | None = None,
        sparse_score: SparseScore | None = None,
    ) -> Explanation: ...


class ComposedEncoder:
    """An Encoder whose modes come from different checkpoints; `M3Encoder.compose` makes one.

    Args:
        parts: Encoder of each mode.
        shared: Encoders that compute several of these modes in one forward pass, with the modes; None asks each encoder
            of `parts` once for its modes.
        weights: Recommended weights; None weighs every mode by 1.

    Raises:
        ValueError: If there is no mode, or weights are invalid.
        MissingMode: If an encoder lacks its mode.
    """

    def __init__(
        self,
        parts: Mapping[Mode, ComposableEncoder],
        shared: Sequence[tuple[ComposableEncoder, tuple[Mode, ...]]] | None = None,
        weights: Mapping[Mode, float] | None = None,
    ) -> None:
        if not parts:
            raise ValueError("compose needs an encoder of at least one mode, such as dense='BAAI/bge-m3'")
        for mode, part in parts.items():
            if mode not in part.modes:
                raise MissingMode(f"{mode}={part!r} has no mode {mode!r}; it has {sorted(part.modes)}")
        self.parts: Mapping[Mode, ComposableEncoder] = {mode: parts[mode] for mode in MODES if mode in parts}
        self._passes = list(shared) if shared is not None else _passes(self.parts)
        self._weights: Mapping[Mode, float] = dict.fromkeys(self.parts, 1.0) if weights is None else dict(weights)
        SearchPlan(weights=self._weights, sparse_score=self.sparse_score)  # raises ValueError for invalid ones
        if self._weights.keys() - self.parts.keys():
            raise ValueError(f"weights={dict(self._weights)!r} has modes other than {sorted(self.parts)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> ComposedEncoder:
        """Return this encoder: deep copies of components share its weights."""
        return self

    @property
    def name(self) -> str:
        """Names of the checkpoints."""
        return " + ".join(dict.fromkeys(part.name for part in self.parts.values()))

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self.parts)

    @property
    def weights(self) -> Mapping[Mode, float]:
        return self.weights_for(self.modes)

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        return weights_of_modes(self.modes & frozenset(modes), self._weights)

    @property
    def sparse_score(self) -> SparseScore:
        """Convention of the sparse mode's checkpoint, see `SearchPlan`."""
        return self.parts["sparse"].sparse_score if "sparse" in self.parts else "sum"

    @property
    def passes(self) -> int:
        """Number of forward passes that all modes of a text take."""
        return len(self._passes)

    @property
    def max_length(self) -> int:
        """Longest text in tokens that every checkpoint reads."""
        return self.shortest.max_length

    @property
    def shortest(self) -> ComposableEncoder:
        """The encoder that reads the fewest tokens."""
        return min(self.parts.values(), key=lambda part: part.max_length)

    @property
    def dense_dim(self) -> int:
        return self.parts["dense"].dense_dim if "dense" in self.parts else 0

    @property
    def multi_vector_dim(self) -> int:
        return self.parts["multi_vector"].multi_vector_dim if "multi_vector" in self.parts else 0

    @property
    def vocab_size(self) -> int:
        return self.parts["sparse"].vocab_size if "sparse" in self.parts else 0

    @cached_property
    def fingerprint(self) -> str:
        prints = {str(mode): part.fingerprint for mode, part in self.parts.items()}
        return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries; arguments, result and errors as in `M3Encoder.encode_queries`."""
        parts = [
            encoder.encode_queries(texts, chosen, show_progress=show_progress)
            for encoder, chosen in self._chosen(modes)
        ]
        return _joined(parts).with_sparse_score(self.sparse_score)

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages; arguments, result and errors as in `M3Encoder.encode_queries`."""
        return _joined(
            [
                encoder.encode_passages(texts, chosen, show_progress=show_progress)
                for encoder, chosen in self._chosen(modes)
            ]
        )

    def iter_encode(self, texts: Iterable[str], modes: Modes | None = None, *, chunk: int = 1024) -> Iterator[Encoded]:
        """Encode a stream of passages in order, as `M3Encoder.iter_encode` does."""
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        stream = iter(texts)
        while texts_of_chunk := list(islice(stream, chunk)):
            yield self.encode_passages(texts_of_chunk, modes)

    def has_content(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text has a token other than special ones and spaces, in any checkpoint."""
        found = [part.has_content(texts) for part in dict.fromkeys(self.parts.values())]
        return [any(each) for each in zip(*found, strict=True)]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of sparse columns.

        Args:
            ids: Columns of the sparse mode.

        Raises:
            MissingMode: If no checkpoint has a sparse mode.
        """
        if "sparse" not in self.parts:
            raise MissingMode(f"mode='sparse' is not available: {self!r} has {sorted(self.modes)}")
        return self.parts["sparse"].tokens(ids)

    def explain(
        self,
        query: str,
        passage: str,
        weights: Mapping[Mode, float] | None = None,
        sparse_score: SparseScore | None = None,
    ) -> Explanation:
        """Explain a score: the matching tokens and each mode's part; see `M3Encoder.explain`."""
        weights = self.weights if weights is None else weights
        found = {
            mode: part.explain(query, passage, {mode: weights.get(mode, 0.0)}, sparse_score or self.sparse_score)
            for mode, part in self.parts.items()
        }
        by_mode = {mode: each.by_mode[mode] for mode, each in found.items() if mode in each.by_mode}
        return Explanation(
            query=query,
            passage=passage,
            score=sum(by_mode.values()),
            by_mode=by_mode,
            lexical=found["sparse"].lexical if "sparse" in found else (),
            late=found["multi_vector"].late if "multi_vector" in found else (),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickles hold what its encoders' pickles hold."""
        return ComposedEncoder, (dict(self.parts), None, dict(self._weights))

    def __repr__(self) -> str:
        return f"ComposedEncoder({', '.join(f'{mode}={part.name!r}' for mode, part in self.parts.items())})"

    def _chosen(self, modes: Modes | None) -> list[tuple[ComposableEncoder, tuple[Mode, ...]]]:
        """Return the encoders to ask, with the modes of each."""
        asked = self.modes if modes is None else check_modes(modes, MODES)
        if missing := sorted(asked - self.modes):
            raise MissingMode(f"mode={missing[0]!r} is not available: {self!r} has {sorted(self.modes)}")
        passes = [(encoder, tuple(mode for mode in own if mode in asked)) for encoder, own in self._passes]
        return [(encoder, own) for encoder, own in passes if own]


def _passes(parts: Mapping[Mode, ComposableEncoder]) -> list[tuple[ComposableEncoder, tuple[Mode, ...]]]:
    """Return each different encoder with its modes."""
    encoders = dict.fromkeys(parts.values())
    return [(each, tuple(mode for mode, part in parts.items() if part is each)) for each in encoders]


def _joined(parts: Sequence[Encoded]) -> Encoded:
    values = {mode: part.with_sparse_score("sum") for part in parts for mode in part.modes}
    return Encoded(
        dense=values["dense"].dense if "dense" in values else None,
        sparse=values["sparse"].sparse if "sparse" in values else None,
        multi_vector=values["multi_vector"].multi_vector if "multi_vector" in values else None,
    )
