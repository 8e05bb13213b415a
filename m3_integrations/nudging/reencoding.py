"""An index encoded with another model: prepared beside it, compared on judged queries, switched in one commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple, cast

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import DENSE
from m3_integrations.core.errors import WrongCollection
from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.evaluation.metrics import Metric, evaluate
from m3_integrations.index.base import Fingerprinted, Index
from m3_integrations.index.copying import copy_index
from m3_integrations.index.local.catalog import FILE_NAME as CATALOG
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.local.ledger_file import ledger_file, own_ledger_name
from m3_integrations.index.opening import EncoderIdentity
from m3_integrations.index.qdrant import QdrantIndex
from m3_integrations.nudging.feedback import Feedback, read_judgements
from m3_integrations.nudging.ledger import FILE_NAME, Version
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.retrieval.ingestion import IngestReport, ingest
from m3_integrations.retrieval.retriever import Retriever

PASSAGES_AT_ONCE = 256
ROUNDING = 1e-9  # of a mean metric
TRIES = 5  # switches, while other processes change passages

OnProgress = Callable[[IngestReport], object]


@dataclass(frozen=True, repr=False)
class Reencoding(FieldsDisplay):
    """An index encoded with another model.

    Attributes:
        passages: Number of passages.
        queries: Number of judged queries compared.
        metric: Metric of the comparison.
        before: Mean metric with the former encoder; None without it or without judged queries.
        after: Mean metric with the new one.
        is_fitted: Whether the nudge of the index was fitted again.
        is_switched: Whether the index now has the new encoder.
    """

    passages: int
    queries: int
    metric: str
    before: float | None
    after: float | None
    is_fitted: bool
    is_switched: bool


def reencode(
    folder: str | Path,
    encoder: Encoder | None,
    new_encoder: Encoder,
    *,
    queries: Sequence[Query] | None = None,
    metric: str = "ndcg@10",
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Reencoding:
    """Encode the passages of a folder with another model, and switch to it unless judged queries lose.

    The passages are encoded into a folder beside the index, which serves meanwhile; run again after an interruption,
    the call continues. The judged queries of the ledger are fitted again in the new space if the index is nudged. The
    switch is one commit. Objects that have the index open then raise WrongEncoder and must be opened again. The former
    embeddings stay in the folder `<name>.previous`, for `undo_reencode`.

    Args:
        folder: Folder of the index.
        encoder: The encoder that filled it; None if it is no longer available, such as the m3-mini of an earlier
            version: then nothing is compared, and the index switches.
        new_encoder: The new encoder.
        queries: Judged queries to compare with; by default the validation queries of the ledger, or its training ones.
        metric: Metric of the comparison.
        force: Switch although the metric falls.
        on_progress: Called with the counts of encoded passages so far.

    Returns:
        The figures, and whether the index was switched.

    Raises:
        WrongEncoder: If the index was filled by neither of the encoders.
    """
    location = Path(folder).absolute()
    stage_folder = location.with_name(f"{location.name}.reencode-{new_encoder.fingerprint[:12]}")
    with LocalIndex.open(location) as opened:
        passages, (fingerprint, label) = len(opened), opened.encoder
    if fingerprint == new_encoder.fingerprint:  # killed after the switch, or nothing to do
        _remove(stage_folder)
        return Reencoding(passages, 0, metric, None, None, is_fitted=False, is_switched=True)
    former = encoder or EncoderIdentity(fingerprint or "", label or "an encoder")
    with LocalIndex.open(location, former) as index, LocalIndex.open(stage_folder, new_encoder) as stage:
        _encode_missing(index, stage, new_encoder, on_progress)
        is_fitted, judged = _carry_ledger(index, former, stage, new_encoder)
        result = _compare(index, encoder, stage, new_encoder, judged if queries is None else queries, metric)
        result = replace(result, is_fitted=is_fitted, is_switched=force or not _falls(result))
        if result.is_switched:
            _keep_former(index, location.with_name(f"{location.name}.previous"))
            _copy_ledger(stage.folder, location, new_encoder.fingerprint)
            _switch(index, stage, new_encoder, on_progress)
    if result.is_switched:
        _remove(stage_folder)
    return result


def undo_reencode(folder: str | Path, encoder: Encoder | None = None) -> None:
    """Give an index the embeddings and the plan that it had before `reencode`, in one commit.

    Args:
        folder: Folder of the index.
        encoder: The former encoder, for passages that were added or changed since; None if there are none.

    Raises:
        FileNotFoundError: If the former embeddings are not there.
        ValueError: If passages were changed since, and there is no encoder.
    """
    location = Path(folder).absolute()
    former = location.with_name(f"{location.name}.previous")
    if not former.is_dir():
        raise FileNotFoundError(f"there is no {former}, which holds the former embeddings; re-encode with that model")
    with LocalIndex.open(location) as index, LocalIndex.open(former, encoder) as previous:
        if index.encoder != previous.encoder:  # otherwise killed after the switch
            if encoder is not None:
                _encode_missing(index, previous, encoder, None)
            elif index.content_hashes() != previous.content_hashes():
                raise ValueError(f"passages of {location} were changed since; give the former encoder to encode them")
            index.replace_embeddings(previous)
    _remove(former)


def reencode_collection(
    index: QdrantIndex,
    encoder: Encoder | None,
    fresh: QdrantIndex,
    new_encoder: Encoder,
    alias: str,
    *,
    queries: Sequence[Query] = (),
    metric: str = "ndcg@10",
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Reencoding:
    """Encode a Qdrant collection into another one, and point an alias to it unless judged queries lose.

    Readers of the alias see the former collection until it switches, which is atomic. `index.set_alias(alias)` undoes
    it. Run again after an interruption, the call continues.

    Args:
        index: The collection that the alias names now, opened by its own name.
        encoder: The encoder that filled it; None as in `reencode`.
        fresh: The collection to fill.
        new_encoder: The new encoder.
        alias: The alias that readers use.
        queries: Judged queries to compare with.
        metric: Metric of the comparison.
        force: Switch although the metric falls.
        on_progress: Called with the counts of encoded passages so far.

    Returns:
        Metrics before and after, and whether the alias was switched.

    Raises:
        WrongCollection: If both are the same collection, or a folder.
    """
    if index.encoder[0] == new_encoder.fingerprint:
        raise WrongCollection(f"{index!r} holds embeddings of the new encoder; give the former collection first")
    _encode_missing(index, fresh, new_encoder, on_progress)
    result = _compare(index, encoder, fresh, new_encoder, queries, metric)
    result = replace(result, is_switched=force or not _falls(result))
    if result.is_switched:
        fresh.set_alias(alias)
    return result


def _encode_missing(index: Index, stage: Index, encoder: Encoder, on_progress: OnProgress | None) -> None:
    """Encode the passages that the stage lacks, and delete those that the index no longer has."""
    ingest(encoder, stage, _passages(index), on_progress=on_progress)
    stage.delete(sorted(set(stage.ids()) - set(index.ids())))


def _passages(index: Index) -> Iterator[Passage]:
    ids = index.ids()
    for start in range(0, len(ids), PASSAGES_AT_ONCE):
        part = ids[start : start + PASSAGES_AT_ONCE]
        yield from index.passages(sorted(index.content_hashes(part)))  # some may be deleted meanwhile


class _NudgeState(NamedTuple):
    """Queries of a ledger, and the version that its index holds; None for the original vectors."""

    train: list[Query]
    validation: list[Query]
    version: Version | None


def _nudge_state(index: LocalIndex, encoder: Fingerprinted) -> _NudgeState:
    if not ledger_file(index.folder, encoder.fingerprint).is_file():  # opening a Nudger would create it
        return _NudgeState([], [], None)
    with closing(Nudger(cast("Encoder", encoder), index)) as nudger:  # which only reads the ledger
        version = next((each for each in nudger.versions() if each.number == nudger.version), None)
        return _NudgeState(nudger.queries("train"), nudger.queries("validation"), version)


def _carry_ledger(
    index: LocalIndex, encoder: Fingerprinted, stage: LocalIndex, new_encoder: Encoder
) -> tuple[bool, list[Query]]:
    """Fit the nudge of an index again, or carry its queries over; return whether it was fitted, and judged queries."""
    train, validation, version = _nudge_state(index, encoder)
    known = set(stage.ids())
    with closing(Nudger(new_encoder, stage)) as nudger:
        if not nudger.versions():  # otherwise fitted before an interruption
            stage.plan = _plan_without_weights(index.plan)
            if version is not None and any(id in known for query in train for id in query.relevant):
                modes = tuple(mode for mode in version.options.modes if mode in new_encoder.modes) or DENSE
                nudger.fit(train, validation, **{**version.options._asdict(), "modes": modes})
            else:
                nudger.add_queries(train, "train")
                nudger.add_queries(validation, "validation")
            carried = Feedback(new_encoder, stage)
            if not carried.judgements():  # otherwise carried before an interruption
                carried.extend(read_judgements(encoder, index))
        return bool(nudger.versions()), validation or train


def _plan_without_weights(plan: SearchPlan | None) -> SearchPlan | None:
    """Return a plan for another encoder: the same candidates, with that encoder's own weights."""
    return None if plan is None else replace(plan, weights=None, modes=None, sparse_score=None, calibration=None)


def _compare(
    index: Index, encoder: Encoder | None, stage: Index, new_encoder: Encoder, queries: Sequence[Query], metric: str
) -> Reencoding:
    known = set(stage.ids())
    judged = [query for query in queries if any(grade > 0 and id in known for id, grade in query.relevant.items())]
    before = _mean(Retriever(encoder, index), judged, metric) if judged and encoder is not None else None
    after = _mean(Retriever(new_encoder, stage), judged, metric) if judged else None
    return Reencoding(len(stage), len(judged), metric, before, after, is_fitted=False, is_switched=False)


def _mean(retriever: Retriever, queries: Sequence[Query], metric: str) -> float:
    found = retriever.retrieve_many([query.text for query in queries], Metric.parse(metric).k)
    run = {query.id: [match.passage.id for match in each] for query, each in zip(queries, found, strict=True)}
    return evaluate(run, queries, (metric,))[metric]


def _falls(result: Reencoding) -> bool:
    return result.before is not None and result.after is not None and result.after < result.before - ROUNDING


def _keep_former(index: LocalIndex, former: Path) -> None:
    """Copy an index with its embeddings, so that the change can be undone."""
    fingerprint, label = index.encoder
    identity = EncoderIdentity(fingerprint or "", label or "an encoder")
    if former.is_dir():
        with LocalIndex.open(former) as kept:
            is_older = kept.encoder[0] not in (None, fingerprint)
        if is_older:
            _remove(former)
    with LocalIndex.open(former, identity) as kept:
        copy_index(index, kept)
        kept.plan = index.plan
        kept.delete(sorted(set(kept.ids()) - set(index.ids())))


def _copy_ledger(stage: Path, folder: Path, fingerprint: str) -> None:
    """Put the ledger of a stage into the folder of the index, where the new encoder will find it."""
    target = folder / own_ledger_name(fingerprint)
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(stage / FILE_NAME)) as source, closing(sqlite3.connect(unfinished)) as copy:
        source.backup(copy)
    for ending in ("-wal", "-shm"):
        target.with_name(f"{target.name}{ending}").unlink(missing_ok=True)
    unfinished.replace(target)


def _switch(index: LocalIndex, stage: LocalIndex, encoder: Encoder, on_progress: OnProgress | None) -> None:
    """Switch to the embeddings of a stage, with those of passages that were changed meanwhile."""
    for _ in range(TRIES):
        try:
            index.replace_embeddings(stage)
        except ValueError:
            _encode_missing(index, stage, encoder, on_progress)
        else:
            return
    index.replace_embeddings(stage)


def _remove(folder: Path) -> None:
    """Remove an index that was made here; renamed first, so that no half of it is left under its name."""
    removed = folder.with_name(f"{folder.name}.removed")
    if removed.is_dir():
        rmtree(removed)
    if (folder / CATALOG).is_file():
        rmtree(folder.rename(removed))
