"""m3-mini's forward pass over one short text, in numpy: no import of torch, and no table of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
from safetensors.numpy import load_file
from scipy.special import erf

from m3_integrations.core.encoded import Array, Encoded, Mode, Modes, MultiVectors
from m3_integrations.models.conventions import CheckpointConventions
from m3_integrations.models.mini.low_rank import merged
from m3_integrations.models.mini.settings import HEADS, lexical_weights
from m3_integrations.models.mini.tokenizer import encode_text, special_tokens
from m3_integrations.models.mini.weight_file import WeightFile, bert_name
from m3_integrations.models.tokenization import prefix_tokens

_HALF_ROOT = np.float32(np.sqrt(0.5))


class LinearMap(NamedTuple):
    """A linear layer: shapes (out, in) and (out,)."""

    weight: Array
    bias: Array

    def __call__(self, states: Array) -> Array:
        return states @ self.weight.T + self.bias


class LayerNorm(NamedTuple):
    """Layer normalization."""

    weight: Array
    bias: Array
    eps: float

    def __call__(self, states: Array) -> Array:
        centered = states - states.mean(axis=1, keepdims=True)
        variance = np.mean(centered * centered, axis=1, keepdims=True)
        return np.asarray(centered / np.sqrt(variance + np.float32(self.eps)) * self.weight + self.bias, np.float32)


class TransformerLayer(NamedTuple):
    """A layer of BERT, by the names of the weight file."""

    heads: int
    q: LinearMap
    k: LinearMap
    v: LinearMap
    ao: LinearMap
    aln: LayerNorm
    fi: LinearMap
    fo: LinearMap
    oln: LayerNorm

    def __call__(self, states: Array) -> Array:
        states = self.aln(states + self.ao(self._attend(states)))
        inner = self.fi(states)
        return self.oln(states + self.fo(inner * np.float32(0.5) * (1 + erf(inner * _HALF_ROOT))))

    def _attend(self, states: Array) -> Array:
        shape = (len(states), self.heads, -1)
        queries, keys, values = (each(states).reshape(shape).swapaxes(0, 1) for each in (self.q, self.k, self.v))
        scores = queries @ keys.swapaxes(1, 2) * np.float32(queries.shape[2] ** -0.5)
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        attended: Array = (shares @ values).swapaxes(0, 1).reshape(len(states), -1)
        return attended


class ShortQuery(NamedTuple):
    """Token ids of a query, from cls to eos, and the number of its prefix tokens."""

    ids: npt.NDArray[np.int64]
    prefix: int


class MiniQueryModel:
    """m3-mini for one short query at a time; its numbers are those of the PyTorch model up to rounding.

    Args:
        file: Weight file.
        conventions: Conventions of m3-mini.
    """

    def __init__(self, file: WeightFile, conventions: CheckpointConventions) -> None:
        self._file, self._conventions = file, conventions
        self._hidden, self._layer_count, self._heads, *_ = file.numbers

    @property
    def hidden_size(self) -> int:
        """Dimension of the hidden states, and of dense and multi-vectors."""
        return self._hidden

    @property
    def vocab_size(self) -> int:
        """Number of sparse columns."""
        return len(self._file.scores)

    def tokenize(self, text: str) -> ShortQuery | None:
        """Tokenize a query; None if it needs several windows, or has special tokens in its text."""
        prefix = self._conventions.query_prefix
        if any(token in text for token in special_tokens(self._file).values()):
            return None
        encoding, ids = encode_text(self._file, prefix + text if text.strip() else prefix)
        return ShortQuery(ids, prefix_tokens(encoding, prefix)) if len(ids) <= self._conventions.max_length else None

    def encode(self, query: ShortQuery, modes: Modes) -> Encoded:
        """Encode a query in some modes."""
        hidden = self._hidden_states(query.ids)
        content = slice(1 + query.prefix, None)
        return Encoded(
            dense=_normalized(hidden.mean(axis=0, keepdims=True)) if "dense" in modes else None,
            sparse=self._sparse(hidden[content], query.ids[content]) if "sparse" in modes else None,
            multi_vector=self._multi_vector(hidden[content]) if "multi_vector" in modes else None,
        )

    def _hidden_states(self, ids: npt.NDArray[np.int64]) -> Array:
        states = self._file.rows("emb.word", ids.tolist(), self._hidden) + self._added_embeddings[: len(ids)]
        states = self._normalization(states)
        for layer in self._layers:
            states = layer(states)
        return states

    def _sparse(self, hidden: Array, ids: npt.NDArray[np.int64]) -> scipy.sparse.csr_array:
        weights = np.maximum(self._head("sparse")(hidden)[:, 0] + self._prior[ids], 0)
        file, normalization = self._file, self._conventions.lexical_length
        has_weight = (weights > 0) & ~np.isin(ids, [file.bos, file.eos, file.pad, file.unk])
        tokens, places = np.unique(ids[has_weight], return_inverse=True)
        best = np.zeros(len(tokens), np.float32)
        np.maximum.at(best, places, weights[has_weight])
        if normalization is not None:
            norm = np.sqrt(np.sum(best.astype(np.float64) ** 2, keepdims=True))
            best = (best * normalization.scale(norm)).astype(np.float32)
        return scipy.sparse.csr_array(
            (best, tokens.astype(np.int32), np.array([0, len(tokens)])), shape=(1, self.vocab_size)
        )

    def _multi_vector(self, hidden: Array) -> MultiVectors:
        return MultiVectors.of([_normalized(self._head("multi_vector")(hidden))], self._hidden)

    def _head(self, mode: Mode) -> LinearMap:
        return LinearMap(self._trained[f"{mode}.weight"], self._trained[f"{mode}.bias"])

    @cached_property
    def _trained(self) -> Mapping[str, Array]:
        return load_file(HEADS)

    @cached_property
    def _prior(self) -> Array:
        return np.asarray(lexical_weights(self._file.scores) * self._trained["lexical_scale"], np.float32)

    @cached_property
    def _added_embeddings(self) -> Array:
        token_type = self._file.tensor("emb.type")[: self._hidden]
        return self._file.tensor("emb.pos").reshape(-1, self._hidden) + token_type

    @cached_property
    def _normalization(self) -> LayerNorm:
        return LayerNorm(self._file.tensor("emb.ln.w"), self._file.tensor("emb.ln.b"), self._file.layer_norm_eps)

    @cached_property
    def _layers(self) -> list[TransformerLayer]:
        return [self._layer(number) for number in range(self._layer_count)]

    def _layer(self, number: int) -> TransformerLayer:
        def linear(name: str) -> LinearMap:
            path = f"l{number}.{name}"
            weight, bias = (self._file.tensor(f"{path}.{part}") for part in "wb")
            return LinearMap(merged(bert_name(f"{path}.w"), weight).reshape(len(bias), -1), bias)

        def norm(name: str) -> LayerNorm:
            path = f"l{number}.{name}"
            return LayerNorm(self._file.tensor(f"{path}.w"), self._file.tensor(f"{path}.b"), self._file.layer_norm_eps)

        attention = {name: linear(name) for name in ("q", "k", "v", "ao", "fi", "fo")}
        return TransformerLayer(self._heads, **attention, aln=norm("aln"), oln=norm("oln"))


def _normalized(vectors: Array) -> Array:
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(vectors / norms, np.float32)
