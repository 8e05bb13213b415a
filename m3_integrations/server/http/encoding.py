"""Endpoints that encode: the APIs of text-embeddings-inference and OpenAI, and /embed_all."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from starlette.responses import Response

from m3_integrations import __version__
from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.encoded import DENSE, MODES, Array, Encoded, Mode
from m3_integrations.core.types import is_blank
from m3_integrations.encoders.base import Encoder, check_texts, sparse_score_of
from m3_integrations.encoders.remote import Role
from m3_integrations.encoders.wire_format import MEDIA_TYPE, WireDtype, to_npz
from m3_integrations.retrieval.reranking import rerank_encoded
from m3_integrations.server.batching import BatchingEncoder
from m3_integrations.server.http.responses import RefusedRequest, bytes_response, json_response
from m3_integrations.server.http.schemas import (
    EmbedAllRequest,
    EmbedRequest,
    OpenAIEmbeddingsRequest,
    RerankRequest,
    TextsRequest,
)
from m3_integrations.server.settings import ServerSettings

MAX_JSON_NUMBERS = 8_000_000  # of multi-vectors in one answer, about 160 MB
_SPARSE: tuple[Mode, ...] = ("sparse",)
INVALID = 422


class EncodingEndpoints:
    """Handlers of the endpoints that encode.

    Args:
        batching: The encoder.
        settings: Limits.
    """

    def __init__(self, batching: BatchingEncoder, settings: ServerSettings) -> None:
        self._batching = batching
        self._settings = settings

    @property
    def encoder(self) -> Encoder:
        return self._batching.encoder

    @property
    def model(self) -> str:
        """Name of the model."""
        return model_name(self.encoder)

    async def embed(self, request: EmbedRequest) -> Response:
        """Return dense vectors as lists."""
        if not request.normalize:
            raise RefusedRequest(INVALID, "normalize=false is not available: vectors are as the model gives them")
        self._check_dimensions(request.dimensions)
        encoded = await self._encode(request.role, _to_list(request.inputs), DENSE)
        return json_response(encoded.dense.tolist())

    async def embed_sparse(self, request: TextsRequest) -> Response:
        """Return sparse weights by token id."""
        encoded = await self._encode(request.role, _to_list(request.inputs), _SPARSE)
        return json_response(_sparse_lists(encoded))

    async def embed_all(self, request: EmbedAllRequest) -> Response:
        """Return all modes, as JSON or .npz."""
        encoded = await self._encode(request.input_type, _to_list(request.inputs), request.modes)
        stated = {"X-M3-Fingerprint": self.encoder.fingerprint}
        if request.format == "npz":
            return bytes_response(await to_thread(to_npz, encoded, request.dtype), MEDIA_TYPE, stated)
        return json_response(await to_thread(self._to_json, encoded, request.dtype), stated)

    async def rerank(self, request: RerankRequest) -> Response:
        """Return texts ranked by the weighted sum of their scores."""
        if is_blank(request.query):
            raise RefusedRequest(INVALID, "the query is empty; send what to rank the texts by")
        weights = self.encoder.weights
        modes = [mode for mode in MODES if weights.get(mode)]
        texts = self._check_texts(request.texts)
        query = await self._encode("query", [request.query], modes)
        ranked = rerank_encoded(query, await self._encode("passage", texts, modes), weights)
        results: list[dict[str, Any]] = [{"index": each.position, "score": each.score} for each in ranked]
        if request.return_text:
            results = [{**each, "text": texts[each["index"]]} for each in results]
        return json_response(results)

    async def openai_embeddings(self, request: OpenAIEmbeddingsRequest) -> Response:
        """Return dense vectors in the shape of OpenAI's API."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        if not all(isinstance(text, str) for text in texts):
            raise RefusedRequest(
                INVALID,
                "input must be texts, not tokens; in LangChain, OpenAIEmbeddings(check_embedding_ctx_length=False)",
            )
        self._check_dimensions(request.dimensions)
        encoded = await self._encode(request.input_type, texts, DENSE)
        tokens = await to_thread(self._count_tokens, texts)
        vectors = [_to_openai(vector, request.encoding_format) for vector in encoded.dense]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": self.model, "usage": usage})

    async def openai_models(self) -> Response:
        """List the model in the shape of OpenAI's API."""
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "m3_integrations"}
        return json_response({"object": "list", "data": [model]})

    async def info(self) -> Response:
        """Describe model and limits in the shape of text-embeddings-inference, and the encoder under "m3"."""
        return json_response(await to_thread(self._describe))

    def _describe(self) -> dict[str, Any]:
        encoder, settings = self.encoder, self._settings
        modes = [mode for mode in MODES if mode in encoder.modes]
        sets = [subset for size in range(1, len(modes) + 1) for subset in combinations(modes, size)]
        return {
            "model_id": self.model,
            "model_sha": None,
            "model_dtype": getattr(encoder, "dtype", "float32"),
            "model_type": {"embedding": {"pooling": "unknown"}},
            "max_concurrent_requests": settings.max_requests,
            "max_input_length": getattr(encoder, "max_length", None),
            "max_batch_tokens": getattr(encoder, "batch_tokens", None),
            "max_client_batch_size": settings.max_texts,
            "auto_truncate": True,
            "version": __version__,
            "m3": {
                "fingerprint": encoder.fingerprint,
                "modes": modes,
                "weights": {",".join(each): dict(encoder.weights_for(each)) for each in sets},
                "sparse_score": sparse_score_of(encoder),
                "dense_dim": encoder.dense_dim,
                "multi_vector_dim": encoder.multi_vector_dim,
                "vocab_size": encoder.vocab_size,
                "max_body": settings.max_body,
            },
        }

    async def _encode(self, role: Role, texts: Sequence[str], modes: Sequence[Mode] | None) -> Encoded:
        return await self._batching.encode(role, self._check_texts(texts), modes)

    def _check_texts(self, texts: Sequence[str]) -> Sequence[str]:
        most = self._settings.max_texts
        if not 0 < len(texts) <= most:
            raise RefusedRequest(413 if texts else INVALID, f"send 1 to {most} texts in a request, got {len(texts):,}")
        return check_texts(texts)

    def _check_dimensions(self, dimensions: int | None) -> None:
        if dimensions not in (None, self.encoder.dense_dim):
            raise RefusedRequest(
                INVALID,
                f"dimensions={dimensions} is not available: vectors have {self.encoder.dense_dim}; leave it out",
            )

    def _count_tokens(self, texts: Sequence[str]) -> int:
        """Return the number of tokens; 0 for an encoder without a tokenizer."""
        count = getattr(self.encoder, "token_count", None)
        return 0 if count is None else sum(count(texts))

    def _to_json(self, encoded: Encoded, dtype: WireDtype) -> dict[str, Any]:
        value: dict[str, Any] = {"model": self.model, "fingerprint": self.encoder.fingerprint}
        if "dense" in encoded.modes:
            value["dense"] = _numbers(encoded.dense, dtype).tolist()
        if "sparse" in encoded.modes:
            value["sparse"] = _sparse_lists(encoded, dtype)
        if "multi_vector" in encoded.modes:
            if encoded.multi_vector.values.size > MAX_JSON_NUMBERS:
                raise RefusedRequest(
                    413,
                    f"the multi-vectors have {encoded.multi_vector.values.size:,} numbers; send fewer texts, or "
                    'ask for "format": "npz"',
                )
            value["multi_vector"] = [_numbers(each, dtype).tolist() for each in encoded.multi_vector]
        return value


def model_name(encoder: Encoder) -> str:
    """Return the name of an encoder's checkpoint; without one, its repr."""
    return str(getattr(encoder, "name", None) or repr(encoder))


def _to_list(inputs: str | Sequence[str]) -> Sequence[str]:
    return [inputs] if isinstance(inputs, str) else inputs


def _numbers(values: Array, dtype: WireDtype) -> Array:
    return values if dtype == "float32" else values.astype(np.float16).astype(np.float32)


def _sparse_lists(encoded: Encoded, dtype: WireDtype = "float32") -> list[list[dict[str, Any]]]:
    rows = encoded.with_sparse_score("sum").sparse
    indices, weights = rows.indices.tolist(), _numbers(rows.data, dtype).tolist()
    offsets = rows.indptr.tolist()
    return [
        [{"index": index, "value": value} for index, value in zip(indices[i:j], weights[i:j], strict=True)]
        for i, j in pairwise(offsets)
    ]


def _to_openai(vector: Array, encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
