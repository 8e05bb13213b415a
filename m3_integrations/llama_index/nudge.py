"""NUDGE at LlamaIndex's door: a finetuning engine that moves the vectors of a corpus and leaves the model alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store.base import VectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import M3Warning
from m3_integrations.core.texts import Passage, Query
from m3_integrations.llama_index.nudged import NudgedEmbedding, embed_queries, embed_texts, same_dimension
from m3_integrations.llama_index.vector_store import M3VectorStore
from m3_integrations.nudging.by_id import (
    Asked,
    Comparison,
    NudgeOptions,
    Stored,
    held_out,
    require_known,
    require_options,
)
from m3_integrations.nudging.datasets import Source, collection_of
from m3_integrations.nudging.dense import Nudged


class NudgeFinetuneEngine:
    """Moves the embeddings of a corpus towards the questions that it answers, in the shape of LlamaIndex's engines.

    dataset, val_dataset: anything with `.queries`, `.corpus` and `.relevant_docs`, the path of a JSON file of these, or
    a Collection of ours. No val_dataset: a fifth of the questions is held out, drawn by `seed`, no text on both sides.
    embed_model: any; its texts are embedded in its batches, its queries as `embed_queries` says.
    nodes: what is in the index, where that is more than the corpus, or is embedded with metadata; a node takes the
    place of the corpus text of its id, is read as LlamaIndex embeds it, and competes even if no question asks for it.
    method, metric, spread, centre, gamma: as in `nudge`. compares_by: how the store will compare; unless it is "dot",
    vectors are brought to length 1, and "auto" does not take "m", whose lengths a cosine takes no account of.
    """

    def __init__(
        self,
        dataset: Source,
        embed_model: BaseEmbedding,
        val_dataset: Source | None = None,
        *,
        nodes: Sequence[BaseNode] = (),
        method: Literal["auto", "n", "m"] = "auto",
        metric: str = "ndcg@10",
        spread: Literal["auto", "neighbours"] | None = "auto",
        centre: float | None = None,
        gamma: float | None = None,
        compares_by: Comparison | None = None,
        seed: int = 0,
        show_progress: bool = False,
    ) -> None:
        """Raises ValueError for a dataset that is none, and for method "m" where compares_by is "cosine"."""
        self.options = NudgeOptions(method, metric, spread, centre, gamma)
        require_options(self.options, compares_by)
        self.embed_model = embed_model
        self.compares_by = compares_by
        train = collection_of(dataset)
        validation = None if val_dataset is None else collection_of(val_dataset)
        corpus = _texts_of(train.passages, validation.passages if validation else ())
        self._nodes = {**{id: TextNode(id_=id, text=text) for id, text in corpus.items()}, **_by_id(nodes)}
        self._given = frozenset(_by_id(nodes))
        self._train, self._validation = _sides(train.queries, validation.queries if validation else None, seed)
        self._show_progress = show_progress
        self._result: Nudged | None = None

    def finetune(self, **train_kwargs: Any) -> None:
        """Embed, once, and move. Calling it again changes nothing: it starts from where the texts were."""
        _refuse("finetune", train_kwargs)
        self._result = self._stored.nudged(*self._asked, self.options)

    def get_finetuned_model(self, **model_kwargs: Any) -> NudgedEmbedding:
        """A model to be used in the place of the one that was given. Raises RuntimeError before finetune()."""
        _refuse("get_finetuned_model", model_kwargs)
        result, texts = self.result, self._texts
        moved = [*result.rows.tolist(), *sorted(set(range(len(texts))) - set(result.rows.tolist()))]
        return NudgedEmbedding(self.embed_model, [texts[row] for row in moved], result.passages[moved])

    @property
    def result(self) -> Nudged:
        """What moved, and the metric before and after. Raises RuntimeError before finetune()."""
        if self._result is None:
            raise RuntimeError("nothing is nudged yet; call finetune() first")
        return self._result

    def nodes(self) -> list[BaseNode]:
        """The nodes with their embeddings, for VectorStoreIndex(nodes), which embeds no node that has one."""
        return _embedded(self._nodes, self._vectors)

    def write(self, index: VectorStoreIndex) -> list[str]:
        """Put the embeddings into an index in the place of its own, and answer the ids; nodes that it lacks are added.

        Nodes in the index keep their text, metadata and document. In an M3VectorStore the dense vectors alone change;
        a store whose `add` does not replace loses its nodes by `delete_nodes` before they are added anew.
        Raises ValueError where "m" moved them and the store compares by cosine, or nobody said how; and for a store
        that can neither show nor delete its nodes.
        """
        store = index.vector_store
        if self.result.moved:
            require_known(self.result.method, _comparison(store) or self.compares_by, type(store).__name__)
        vectors, there = self._vectors, self._in(index)
        self._warn_of_other_texts(there)
        nodes = {**self._nodes, **there}
        if isinstance(store, M3VectorStore):
            if there:
                store.index.set_vectors(list(there), Encoded(dense=[vectors[id] for id in there]))
            nodes = {id: node for id, node in nodes.items() if id not in there}
        elif there and not isinstance(store, SimpleVectorStore):
            _delete(index, list(there))
        index.insert_nodes(_embedded(nodes, vectors))
        return list(vectors)

    @property
    def _texts(self) -> list[str]:
        return [node.get_content(MetadataMode.EMBED) for node in self._nodes.values()]

    @property
    def _vectors(self) -> dict[str, list[float]]:
        return dict(zip(self._nodes, self.result.passages.tolist(), strict=True))

    @cached_property
    def _stored(self) -> Stored:
        vectors = embed_texts(self.embed_model, self._texts, show_progress=self._show_progress)
        return Stored(list(self._nodes), vectors, self.compares_by)

    @cached_property
    def _asked(self) -> tuple[Asked, Asked]:
        return _ask(self.embed_model, self._train), _ask(self.embed_model, self._validation)

    def _in(self, index: VectorStoreIndex) -> dict[str, BaseNode]:
        """Our nodes as the index has them; those that it does not have are passed over."""
        kept = {id: index.docstore.get_document(id, raise_error=False) for id in self._nodes}
        there = {id: node for id, node in kept.items() if node is not None}
        rest = [id for id in self._nodes if id not in there]
        if not rest or not index.vector_store.stores_text:
            return there
        try:
            return {**there, **_by_id(index.vector_store.get_nodes(node_ids=rest))}
        except NotImplementedError as unable:
            if missing := [id for id in rest if id not in self._given]:
                raise ValueError(
                    f"{type(index.vector_store).__name__} does not show its nodes, so {missing[0]!r} and {len(missing)}"
                    " in all would lose their metadata; pass nodes=[...], all that are in it, to NudgeFinetuneEngine"
                ) from unable
            return {**there, **{id: self._nodes[id] for id in rest}}

    def _warn_of_other_texts(self, there: Mapping[str, BaseNode]) -> None:
        other = [id for id, node in there.items() if _embeds(node) != _embeds(self._nodes[id])]
        if other:
            warnings.warn(
                f"{len(other)} nodes, {other[0]!r} first, are embedded in this index with another text (their metadata,"
                " most likely) than was nudged; pass nodes=[...] to NudgeFinetuneEngine to nudge them as they are",
                M3Warning,
                stacklevel=3,
            )


class Nudge:
    """The class of that name of llama-index-experimental, for who used it: same arguments, same methods.

    It moves by the paper's rule, without spread, and starts from where the texts were at each call of `finetune`. What
    that class gets wrong is right here: questions that equal their passage, questions without an answer, passages of
    the validation dataset alone. `result` has the figures; `device` has no use, for nothing is computed on one.
    NudgeFinetuneEngine can do more.
    """

    def __init__(
        self,
        embed_model: BaseEmbedding,
        train_dataset: Source,
        val_dataset: Source | None = None,
        use_nudge_n: bool = True,
        device: str | None = None,
    ) -> None:
        """No val_dataset: a fifth of the questions is held out to choose by."""
        self.embed_model = embed_model
        self.device = device
        train = collection_of(train_dataset)
        validation = None if val_dataset is None else collection_of(val_dataset)
        self.corpus = _texts_of(train.passages, validation.passages if validation else ())
        self.corpus_embeddings = embed_texts(embed_model, list(self.corpus.values()))
        self.result: Nudged | None = None
        self._options = NudgeOptions("n" if use_nudge_n else "m", spread=None)
        self._start = self.corpus_embeddings
        sides = _sides(train.queries, validation.queries if validation else None, seed=0)
        self._train, self._validation = (_ask(embed_model, side) for side in sides)

    def finetune(self) -> None:
        """Move the whole corpus by all questions, those that were inserted too."""
        stored = Stored(list(self.corpus), self._start)
        self.result = stored.nudged(self._train, self._validation, self._options)
        self.corpus_embeddings = self.result.passages

    def insert_data_and_finetune(
        self, new_train_dataset_batch: Source, new_val_dataset_batch: Source | None = None
    ) -> None:
        """Add passages at the end and move these, in competition with those that are there, which stay where they are.

        No validation: they move as far as `finetune` did, or, before it, as held-out questions say. Raises ValueError
        for passages that are there already, UnknownId for answers that are none of the new passages.
        """
        train = collection_of(new_train_dataset_batch)
        validation = None if new_val_dataset_batch is None else collection_of(new_val_dataset_batch)
        if again := sorted(self.corpus.keys() & {passage.id for passage in train.passages}):
            raise ValueError(f"passages {again[:3]} are there already; give new ids, or make a Nudge of one dataset")
        others = [each for each in validation.passages if each.id not in self.corpus] if validation else []
        batch = _texts_of(train.passages, others)
        options = self._options
        if validation is None and self.result is not None:
            options = options._replace(gamma=self.result.gamma)
        asked = validation.queries if validation else train.queries if options.gamma is not None else None
        new_train, new_validation = (_ask(self.embed_model, side) for side in _sides(train.queries, asked, seed=0))
        start = embed_texts(self.embed_model, list(batch.values()))
        stored = Stored(list(batch), start)
        self.result = stored.nudged(new_train, new_validation, options, background=self.corpus_embeddings)
        self.corpus = {**self.corpus, **batch}
        self._start = same_dimension(self._start, start)
        self.corpus_embeddings = same_dimension(self.corpus_embeddings, self.result.passages)
        self._train = _joined(self._train, new_train)
        if validation is not None or options.gamma is None:
            self._validation = _joined(self._validation, new_validation)

    def get_finetuned_corpus_embeddings(self) -> Any:
        """(passages, dim) in the order of `corpus`: the train dataset's, then what came later."""
        return self.corpus_embeddings


def _sides(
    train: Sequence[Query], validation: Sequence[Query] | None, seed: int
) -> tuple[Sequence[Query], Sequence[Query]]:
    return held_out(train, seed) if validation is None else (train, validation)


def _ask(model: BaseEmbedding, queries: Sequence[Query]) -> Asked:
    return Asked(queries, embed_queries(model, [query.text for query in queries]))


def _joined(first: Asked, then: Asked) -> Asked:
    return Asked([*first.queries, *then.queries], same_dimension(first.vectors, then.vectors))


def _texts_of(*parts: Sequence[Passage]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for passage in (each for part in parts for each in part):
        texts.setdefault(passage.id, passage.text)
    return texts


def _by_id(nodes: Sequence[BaseNode]) -> dict[str, BaseNode]:
    return {node.node_id: node for node in nodes}


def _embeds(node: BaseNode) -> str:
    return node.get_content(MetadataMode.EMBED)


def _embedded(nodes: Mapping[str, BaseNode], vectors: Mapping[str, list[float]]) -> list[BaseNode]:
    return [node.model_copy(update={"embedding": vectors[id]}) for id, node in nodes.items()]


def _comparison(store: BasePydanticVectorStore) -> Comparison | None:
    """How a store compares, where it is one whose way is known."""
    if isinstance(store, M3VectorStore):
        return "dot"
    return "cosine" if isinstance(store, SimpleVectorStore) else None


def _delete(index: VectorStoreIndex, ids: list[str]) -> None:
    try:
        index.delete_nodes(ids)
    except NotImplementedError as unable:
        raise ValueError(
            f"{type(index.vector_store).__name__} cannot delete nodes by id, so their vectors cannot be replaced; "
            "fill an empty store: VectorStoreIndex(engine.nodes(), storage_context=..., embed_model=...)"
        ) from unable


def _refuse(call: str, settings: Mapping[str, Any]) -> None:
    if settings:
        raise TypeError(f"{call} takes no {', '.join(sorted(settings))}; options of the nudge go to the constructor")
