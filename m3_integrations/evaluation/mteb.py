"""MTEB interfaces: an encoder with any search plan as SearchProtocol, its dense vectors as EncoderProtocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from m3_integrations.core.encoded import DENSE, MODES, Array, Encoded, Mode
from m3_integrations.core.errors import MissingMode
from m3_integrations.core.optional import import_optional
from m3_integrations.core.scoring import reciprocal_ranks
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.base import Index
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever

ORGANIZATION = "m3-integrations"
_MODEL_TYPES: Mapping[Mode, str] = {"dense": "dense", "sparse": "sparse", "multi_vector": "late-interaction"}

Row = Mapping[str, Any]


class MtebSearch:
    """An encoder and a search plan as MTEB's SearchProtocol: `mteb.evaluate(MtebSearch(encoder, mode="dense"), tasks)`.

    Args:
        encoder: Encoder.
        mode: One mode alone; None is the plan.
        plan: Search plan; by default all modes of the encoder.
        name: Name of the model in the results.
        make_index: Makes an index for each corpus; by default in memory.

    Raises:
        MissingExtra: If mteb is not installed.
        MissingMode: If the encoder lacks the mode.
        ValueError: If both a mode and a plan are given.
    """

    def __init__(
        self,
        encoder: Encoder,
        mode: Mode | None = None,
        plan: SearchPlan | None = None,
        *,
        name: str = "m3",
        make_index: Callable[[], Index] = MemoryIndex,
    ) -> None:
        import_optional("mteb", extra="mteb")
        if mode is not None and plan is not None:
            raise ValueError(f"mode={mode!r} and a plan are both given; leave one of them out")
        if mode is not None and mode not in encoder.modes:
            raise MissingMode(f"mode={mode!r} is not available: {encoder!r} has {sorted(encoder.modes)}")
        self.encoder, self.mode, self.name = encoder, mode, name
        self.plan = plan if mode is None else SearchPlan(propose=(mode,), weights={mode: 1.0})
        self._make_index = make_index
        self._retriever: Retriever | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """Metadata of the model, with the mode and the fingerprint of the encoder."""
        kind = "hybrid" if self.mode is None else _MODEL_TYPES[self.mode]
        suffix = "hybrid" if self.mode is None else self.mode.replace("_", "-")
        return _model_meta(f"{self.name}-{suffix}", self.encoder, kind)

    def index(self, corpus: Iterable[Row], **_: Any) -> None:
        """Encode and index a corpus.

        Args:
            corpus: Rows with "id", "text" and possibly "title"; a passage is title and text on two lines, as those
                of a BEIR folder.
            **_: Other arguments of MTEB.
        """
        index = self._make_index()
        modes = None if self.mode is None else (self.mode,)
        ingest(self.encoder, index, (Passage(str(row["id"]), _text_of(row)) for row in corpus), modes=modes)
        self._retriever = Retriever(self.encoder, index, self.plan)

    def search(
        self,
        queries: Iterable[Row],
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Search the corpus, or rank the passages named.

        Args:
            queries: Rows with "id" and "text".
            top_k: Number of passages per query.
            top_ranked: Passage ids by query id, of reranking tasks: these alone are ranked.
            **_: Other arguments of MTEB.

        Returns:
            Scores by query id and passage id. Equal scores differ by a float, so that the ranking stays.
        """
        if self._retriever is None:
            raise ValueError("there is no corpus; call index() first")
        rows = list(queries)
        ids, texts = [str(row["id"]) for row in rows], [_query_text(row) for row in rows]
        if top_ranked is None:
            matches = self._retriever.retrieve_many(texts, top_k)
            found = [{match.passage.id: match.score for match in each} for each in matches]
        else:
            found = self._rank(texts, [list(map(str, top_ranked.get(id, ()))) for id in ids], top_k)
        return {id: _strictly_descending(scores) for id, scores in zip(ids, found, strict=True)}

    def _rank(self, texts: Sequence[str], candidates: Sequence[Sequence[str]], k: int) -> list[dict[str, float]]:
        """Score these candidates of each query exactly, best first, ties by id."""
        retriever = self._retriever
        if retriever is None or not texts:
            return []
        weights, queries = retriever.weights, retriever.encode(texts)
        known = [sorted(retriever.index.content_hashes(ids)) for ids in candidates]
        scores = {mode: retriever.index.score(mode, queries, known) for mode in MODES if mode in weights}
        found = []
        for i, ids in enumerate(known):
            by_mode = {mode: each[i].tolist() for mode, each in scores.items()}
            if retriever.fusion == "rrf":
                by_mode = {m: reciprocal_ranks(ids, each, skip_zeros=m == "sparse") for m, each in by_mode.items()}
            total = {id: sum(weights[mode] * by_mode[mode][j] for mode in by_mode) for j, id in enumerate(ids)}
            found.append(dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:k]))
        return found


class MtebEncoder:
    """Dense vectors of an encoder as MTEB's EncoderProtocol, for tasks of every kind.

    Args:
        encoder: Encoder with dense vectors.
        name: Name of the model in the results.

    Raises:
        MissingExtra: If mteb is not installed.
        MissingMode: If the encoder has no dense vectors.
    """

    def __init__(self, encoder: Encoder, *, name: str = "m3") -> None:
        import_optional("mteb", extra="mteb")
        if "dense" not in encoder.modes:
            raise MissingMode(f"{encoder!r} has no dense vectors; use MtebSearch")
        self.encoder, self.name = encoder, name

    @property
    def mteb_model_meta(self) -> Any:
        """Metadata of the model, with the fingerprint of the encoder."""
        return _model_meta(f"{self.name}-dense-vectors", self.encoder, "dense")

    def encode(self, inputs: Iterable[Mapping[str, Sequence[Any]]], *, prompt_type: Any = None, **_: Any) -> Array:
        """Encode batches of texts.

        Args:
            inputs: Batches with "text", and of documents possibly "title" and "body".
            prompt_type: "document" encodes passages; anything else, queries.
            **_: Other arguments of MTEB.

        Returns:
            Dense vectors, shape (texts, dim).
        """
        is_document = getattr(prompt_type, "value", prompt_type) == "document"
        encode = self.encoder.encode_passages if is_document else self.encoder.encode_queries
        parts: list[Encoded] = []
        for batch in inputs:
            bodies = batch.get("body", batch["text"]) if is_document else batch["text"]
            titles = batch.get("title", [""] * len(bodies))
            rows = ({"title": title, "text": text} for title, text in zip(titles, bodies, strict=True))
            parts.append(encode([_text_of(row) for row in rows], modes=DENSE))
        return np.concatenate([part.dense for part in parts])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the inner products of all pairs, shape (first, second), as a torch tensor."""
        first, second = _tensors(embeddings1, embeddings2)
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the inner product of each pair, as a torch tensor."""
        first, second = _tensors(embeddings1, embeddings2)
        return (first * second).sum(-1)


def _text_of(row: Row) -> str:
    title = row.get("title") or ""
    return f"{title}\n{row['text']}" if title else str(row["text"])


def _query_text(row: Row) -> str:
    instruction = row.get("instruction") or ""
    return f"{row['text']} {instruction}" if instruction else str(row["text"])


def _strictly_descending(scores: Mapping[str, float]) -> dict[str, float]:
    """Lower equal scores by as little as float32 can, since MTEB's ranking of equal scores is another."""
    last, found = np.float32(np.inf), {}
    for id, score in scores.items():
        last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf), dtype=np.float32))
        found[id] = float(last)
    return found


def _model_meta(name: str, encoder: Encoder, kind: str) -> Any:
    meta: Any = import_optional("mteb.models.model_meta", extra="mteb").ModelMeta
    about = {
        "name": f"{ORGANIZATION}/{name}",
        "revision": encoder.fingerprint[:12],
        "embed_dim": encoder.dense_dim or None,
        "similarity_fn_name": "dot",
        "model_type": [kind],
        "use_instructions": False,
    }
    return meta.create_empty(about)


def _tensors(*embeddings: Any) -> list[Any]:
    import torch

    return [torch.as_tensor(np.atleast_2d(np.asarray(each))) for each in embeddings]
