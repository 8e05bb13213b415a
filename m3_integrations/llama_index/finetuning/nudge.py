"""NUDGE as fine-tuning engines: NudgeFinetuneEngine and Nudge."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store.base import VectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from m3_integrations.adapters.store_vectors import (
    NudgeOptions,
    QueryVectors,
    Similarity,
    StoreVectors,
    check_options,
    check_similarity,
    hold_out,
)
from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import M3Warning
from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import JudgedCollection
from m3_integrations.data.qa_json import Source, load_qa_dataset
from m3_integrations.llama_index.finetuning.nudged_embedding import (
    NudgedEmbedding,
    concatenate,
    embed_queries,
    embed_texts,
)
from m3_integrations.llama_index.vector_store import M3VectorStore
from m3_integrations.nudging.method.variants import MethodChoice, Propagate
from m3_integrations.nudging.optimize.dense import Nudged


class NudgeFinetuneEngine:
    """Fine-tuning engine for the vectors of a corpus (NUDGE, arXiv 2409.02343).

    It moves the embeddings of passages towards the queries that they answer. The model is not changed. Corpus texts are
    embedded in batches of `embed_model`, queries as in `embed_queries`.

    Args:
        dataset: Training queries and corpus: an object with `.queries`, `.corpus` and `.relevant_docs`, such as an
            EmbeddingQAFinetuneDataset, the path of a JSON file of one, or a JudgedCollection.
        embed_model: Any LlamaIndex embedding.
        val_dataset: Queries that choose gamma. Default: a fifth of the training queries, drawn by `seed`, with no text
            on both sides.
        nodes: Nodes of the index, if they are more than the corpus or are embedded with metadata. A node replaces the
            corpus text of its id, is embedded as LlamaIndex does, and competes even if it answers no query.
        method: "nudge-n" (keeps length 1), "nudge-m" (changes lengths) or "auto".
        metric: Metric to optimize; default "ndcg@10".
        propagate: See `nudge`.
        center: See `nudge`.
        gamma: See `nudge`.
        similarity: How the vector store compares vectors. Unless it is "dot", vectors are normalized to length 1 and
            "auto" does not choose "nudge-m", as cosine ignores length.
        seed: Seed of the split of the queries.
        show_progress: Show a progress bar while texts are embedded.

    Raises:
        ValueError: If a dataset is invalid, or `method` is "nudge-m" and `similarity` "cosine".
    """

    def __init__(
        self,
        dataset: Source,
        embed_model: BaseEmbedding,
        val_dataset: Source | None = None,
        *,
        nodes: Sequence[BaseNode] = (),
        method: MethodChoice = "auto",
        metric: str = "ndcg@10",
        propagate: Propagate = "auto",
        center: float | None = None,
        gamma: float | None = None,
        similarity: Similarity | None = None,
        seed: int = 0,
        show_progress: bool = False,
    ) -> None:
        self.options = NudgeOptions(method, metric, propagate, center, gamma)
        check_options(self.options, similarity)
        self.embed_model = embed_model
        self.similarity = similarity
        train, validation = load_qa_dataset(dataset), _load_optional(val_dataset)
        corpus = _texts_by_id(train.passages, validation.passages if validation else ())
        self._nodes = {**{id: TextNode(id_=id, text=text) for id, text in corpus.items()}, **_by_id(nodes)}
        self._given_ids = frozenset(_by_id(nodes))
        self._train, self._validation = _split(train.queries, validation.queries if validation else None, seed)
        self._show_progress = show_progress
        self._result: Nudged | None = None

    def finetune(self, **train_kwargs: Any) -> None:
        """Embed the texts and move their vectors; later calls reuse the embeddings.

        Args:
            **train_kwargs: None is supported.
        """
        _reject_unknown("finetune", train_kwargs)
        self._result = self._original.nudge(*self._queries, self.options)

    def get_finetuned_model(self, **model_kwargs: Any) -> NudgedEmbedding:
        """Return an embedding model with the moved vectors, to use instead of `embed_model`.

        Args:
            **model_kwargs: None is supported.

        Raises:
            RuntimeError: If `finetune` was not called.
        """
        _reject_unknown("get_finetuned_model", model_kwargs)
        result, texts = self.result, self._texts
        # Moved rows come first: of equal texts, NudgedEmbedding takes the first.
        rows = [*result.rows.tolist(), *sorted(set(range(len(texts))) - set(result.rows.tolist()))]
        return NudgedEmbedding(self.embed_model, [texts[row] for row in rows], result.passages[rows])

    @property
    def result(self) -> Nudged:
        """The moved vectors, with the metric before and after.

        Raises:
            RuntimeError: If `finetune` was not called.
        """
        if self._result is None:
            raise RuntimeError("there is no result yet; call finetune() first")
        return self._result

    def nodes(self) -> list[BaseNode]:
        """Return the nodes with their moved embeddings, for `VectorStoreIndex(nodes)`."""
        return _with_embeddings(self._nodes, self._vectors)

    def write(self, index: VectorStoreIndex) -> list[str]:
        """Write the moved embeddings into an index, and add missing nodes.

        Nodes of the index keep their text, metadata and document. In an M3VectorStore only the dense vectors change. If
        the `add` of a store does not replace nodes, they are deleted by `delete_nodes` first.

        Args:
            index: The index.

        Returns:
            The ids of the nodes.

        Raises:
            ValueError: If "nudge-m" moved the vectors and the store compares by cosine or in an unknown way, or if the
                store can neither return nor delete its nodes.
        """
        store = index.vector_store
        if self.result.moved:
            check_similarity(self.result.method, _similarity(store) or self.similarity, type(store).__name__)
        vectors, present = self._vectors, self._nodes_in(index)
        self._warn_of_other_texts(present)
        nodes = {**self._nodes, **present}
        if isinstance(store, M3VectorStore):
            if present:
                store.index.set_vectors(list(present), Encoded(dense=[vectors[id] for id in present]))
            nodes = {id: node for id, node in nodes.items() if id not in present}
        elif present and not isinstance(store, SimpleVectorStore):
            _delete_nodes(index, list(present))
        index.insert_nodes(_with_embeddings(nodes, vectors))
        return list(vectors)

    @property
    def _texts(self) -> list[str]:
        return [_embedded_text(node) for node in self._nodes.values()]

    @property
    def _vectors(self) -> dict[str, list[float]]:
        return dict(zip(self._nodes, self.result.passages.tolist(), strict=True))

    @cached_property
    def _original(self) -> StoreVectors:
        vectors = embed_texts(self.embed_model, self._texts, show_progress=self._show_progress)
        return StoreVectors(list(self._nodes), vectors, self.similarity)

    @cached_property
    def _queries(self) -> tuple[QueryVectors, QueryVectors]:
        return _embed(self.embed_model, self._train), _embed(self.embed_model, self._validation)

    def _nodes_in(self, index: VectorStoreIndex) -> dict[str, BaseNode]:
        """Return the nodes of this engine as the index holds them, without missing ones."""
        documents = {id: index.docstore.get_document(id, raise_error=False) for id in self._nodes}
        present = {id: node for id, node in documents.items() if node is not None}
        rest = [id for id in self._nodes if id not in present]
        if not rest or not index.vector_store.stores_text:
            return present
        try:
            return {**present, **_by_id(index.vector_store.get_nodes(node_ids=rest))}
        except NotImplementedError as error:
            if missing := [id for id in rest if id not in self._given_ids]:
                raise ValueError(
                    f"{type(index.vector_store).__name__} cannot return its nodes, so {len(missing)} nodes, "
                    f"{missing[0]!r} first, would lose their metadata; pass all nodes of the index to "
                    "NudgeFinetuneEngine(nodes=[...])"
                ) from error
            return {**present, **{id: self._nodes[id] for id in rest}}

    def _warn_of_other_texts(self, present: Mapping[str, BaseNode]) -> None:
        other = [id for id, node in present.items() if _embedded_text(node) != _embedded_text(self._nodes[id])]
        if other:
            warnings.warn(
                f"{len(other)} nodes of the index, {other[0]!r} first, were embedded with another text than was nudged "
                "(most likely with metadata); pass nodes=[...] to NudgeFinetuneEngine to nudge them as embedded",
                M3Warning,
                stacklevel=3,
            )


class Nudge:
    """Replacement for the class `Nudge` of llama-index-experimental.

    It has the arguments and methods of that class. It moves vectors by the rule of the paper (arXiv 2409.02343),
    without propagation; each `finetune` starts from the embeddings. Unlike that class it is correct for queries equal
    to their passage, queries without answers, and passages of the validation dataset only. NudgeFinetuneEngine has more
    options.

    Args:
        embed_model: Any LlamaIndex embedding.
        train_dataset: See `NudgeFinetuneEngine.dataset`.
        val_dataset: Queries that choose gamma; default a fifth of the training queries.
        use_nudge_n: NUDGE-N if True (default), NUDGE-M if False.
        device: Accepted and ignored; nothing is computed on a device.

    Attributes:
        corpus: Texts by id.
        corpus_embeddings: Their vectors, shape (passages, dim).
        result: The moved vectors, with the metric before and after; None before `finetune`.
    """

    def __init__(
        self,
        embed_model: BaseEmbedding,
        train_dataset: Source,
        val_dataset: Source | None = None,
        use_nudge_n: bool = True,
        device: str | None = None,
    ) -> None:
        self.embed_model = embed_model
        self.device = device
        train, validation = load_qa_dataset(train_dataset), _load_optional(val_dataset)
        self.corpus = _texts_by_id(train.passages, validation.passages if validation else ())
        self.corpus_embeddings = embed_texts(embed_model, list(self.corpus.values()))
        self.result: Nudged | None = None
        self._options = NudgeOptions("nudge-n" if use_nudge_n else "nudge-m", propagate=None)
        self._originals = self.corpus_embeddings
        parts = _split(train.queries, validation.queries if validation else None, seed=0)
        self._train, self._validation = (_embed(embed_model, part) for part in parts)

    def finetune(self) -> None:
        """Move the whole corpus by all queries, including inserted ones."""
        original = StoreVectors(list(self.corpus), self._originals)
        self.result = original.nudge(self._train, self._validation, self._options)
        self.corpus_embeddings = self.result.passages

    def insert_data_and_finetune(
        self, new_train_dataset_batch: Source, new_val_dataset_batch: Source | None = None
    ) -> None:
        """Add passages and move only these; they compete with the existing ones.

        Args:
            new_train_dataset_batch: Training queries and new passages.
            new_val_dataset_batch: Queries that choose gamma. Default: gamma of the last `finetune`, or held-out queries
                if there was none.

        Raises:
            ValueError: If a passage exists already.
            UnknownId: If an answer is not one of the new passages.
        """
        train, validation = load_qa_dataset(new_train_dataset_batch), _load_optional(new_val_dataset_batch)
        if existing := sorted(self.corpus.keys() & {passage.id for passage in train.passages}):
            raise ValueError(f"passages {existing[:3]} exist already; use new ids, or make one Nudge of both datasets")
        others = [each for each in validation.passages if each.id not in self.corpus] if validation else []
        batch = _texts_by_id(train.passages, others)
        options = self._options
        if validation is None and self.result is not None:
            options = options._replace(gamma=self.result.gamma)
        chosen_by = validation.queries if validation else train.queries if options.gamma is not None else None
        parts = _split(train.queries, chosen_by, seed=0)
        new_train, new_validation = (_embed(self.embed_model, part) for part in parts)
        originals = embed_texts(self.embed_model, list(batch.values()))
        original = StoreVectors(list(batch), originals)
        self.result = original.nudge(new_train, new_validation, options, background=self.corpus_embeddings)
        self.corpus = {**self.corpus, **batch}
        self._originals = concatenate(self._originals, originals)
        self.corpus_embeddings = concatenate(self.corpus_embeddings, self.result.passages)
        self._train = _join(self._train, new_train)
        if validation is not None or options.gamma is None:
            self._validation = _join(self._validation, new_validation)

    def get_finetuned_corpus_embeddings(self) -> Any:
        """Return the moved vectors, shape (passages, dim), in the order of `corpus`."""
        return self.corpus_embeddings


def _load_optional(source: Source | None) -> JudgedCollection | None:
    return None if source is None else load_qa_dataset(source)


def _split(
    train: Sequence[Query], validation: Sequence[Query] | None, seed: int
) -> tuple[Sequence[Query], Sequence[Query]]:
    return hold_out(train, seed) if validation is None else (train, validation)


def _embed(model: BaseEmbedding, queries: Sequence[Query]) -> QueryVectors:
    return QueryVectors(queries, embed_queries(model, [query.text for query in queries]))


def _join(first: QueryVectors, second: QueryVectors) -> QueryVectors:
    return QueryVectors([*first.queries, *second.queries], concatenate(first.vectors, second.vectors))


def _texts_by_id(*parts: Sequence[Passage]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for passage in (each for part in parts for each in part):
        texts.setdefault(passage.id, passage.text)
    return texts


def _by_id(nodes: Sequence[BaseNode]) -> dict[str, BaseNode]:
    return {node.node_id: node for node in nodes}


def _embedded_text(node: BaseNode) -> str:
    return node.get_content(MetadataMode.EMBED)


def _with_embeddings(nodes: Mapping[str, BaseNode], vectors: Mapping[str, list[float]]) -> list[BaseNode]:
    return [node.model_copy(update={"embedding": vectors[id]}) for id, node in nodes.items()]


def _similarity(store: BasePydanticVectorStore) -> Similarity | None:
    """Return how a store compares vectors, or None if it is unknown."""
    if isinstance(store, M3VectorStore):
        return "dot"
    return "cosine" if isinstance(store, SimpleVectorStore) else None


def _delete_nodes(index: VectorStoreIndex, ids: list[str]) -> None:
    try:
        index.delete_nodes(ids)
    except NotImplementedError as error:
        raise ValueError(
            f"{type(index.vector_store).__name__} cannot delete nodes by id, so their vectors cannot be replaced; "
            "fill an empty store: VectorStoreIndex(engine.nodes(), storage_context=..., embed_model=...)"
        ) from error


def _reject_unknown(method: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"{method} takes no {', '.join(sorted(kwargs))}; pass options of the nudge to the constructor")
