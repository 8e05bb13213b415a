"""Argument checks shared by every index."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from m3_integrations.core.encoded import MODES, Encoded, Mode, check_modes
from m3_integrations.core.errors import MissingMode, PassagesChanged, UnknownId, WrongDimension, WrongEncoder
from m3_integrations.core.types import Passage, SearchPlan, positive_integer
from m3_integrations.index.base import Fingerprinted
from m3_integrations.index.records import PassageRecord


class VectorUpdate(NamedTuple):
    """New embeddings of passages; row i of `encoded` belongs to ids[i]."""

    ids: list[str]
    encoded: Encoded


def check_encoder(
    location: object, fingerprint: str | None, label: str | None, encoder: Fingerprinted, kind: str
) -> None:
    """Check that an encoder is the one that filled an index, if that is known.

    Args:
        location: Location of the index.
        fingerprint: Fingerprint of the encoder that filled it.
        label: Its repr.
        encoder: The encoder to open it with.
        kind: "folder" or "collection".

    Raises:
        WrongEncoder: If it is another one; by name if it is an earlier version of this one.
    """
    if fingerprint is None or fingerprint == encoder.fingerprint:
        return
    if fingerprint in getattr(encoder, "former_fingerprints", ()):
        name = getattr(encoder, "name", "this model")
        call = f"m3 reencode {location} --model {name}" if kind == "folder" else "reencode_collection(index, None, ...)"
        raise WrongEncoder(
            f"{location} was filled by {name} of an earlier version of this package (fingerprint {fingerprint[:12]}), "
            f"with other vectors than {name} has now ({encoder.fingerprint[:12]}); encode it again: {call}"
        )
    raise WrongEncoder(
        f"{location} was filled by {label} (fingerprint {fingerprint[:12]}), and this encoder is {encoder!r} "
        f"(fingerprint {encoder.fingerprint[:12]}); open it with the encoder that filled it, or ingest the passages "
        f"into a new {kind}"
    )


def check_ids(ids: Collection[str], call: str) -> list[str]:
    """Return the ids as a list.

    Args:
        ids: Passage ids.
        call: Name of the caller, for the message.

    Raises:
        ValueError: If `ids` is a single string, which is a collection of letters.
    """
    if isinstance(ids, str):
        raise ValueError(f"{call} takes a list of ids, got the string {ids!r}; write {call}([{ids!r}])")
    return list(ids)


def last_rows(ids: Sequence[str]) -> dict[str, int]:
    """Map each id to its last row."""
    return {id: row for row, id in enumerate(ids)}


def deduplicate(passages: Sequence[Passage], encoded: Encoded) -> tuple[list[PassageRecord], Encoded]:
    """Return the records of passages and their embeddings; the last one of each id.

    Raises:
        ValueError: If metadata is not JSON.
    """
    records = {passage.id: PassageRecord.from_passage(passage) for passage in passages}
    return list(records.values()), encoded.take(list(last_rows([passage.id for passage in passages]).values()))


def width(mode: Mode, encoded: Encoded) -> int:
    """Return the number of dimensions of one mode; for sparse rows, the number of columns."""
    if mode == "multi_vector":
        return encoded.multi_vector.width
    return int((encoded.dense if mode == "dense" else encoded.sparse).shape[1])


def widths(encoded: Encoded) -> dict[Mode, int]:
    """Return the `width` of each mode."""
    return {mode: width(mode, encoded) for mode in MODES if mode in encoded.modes}


def check_count(kind: str, count: int, encoded: Encoded) -> None:
    """Check that there is one encoded row per item.

    Args:
        kind: What is counted ("passages"), for the message.
        count: Number of items.
        encoded: Embeddings.

    Raises:
        ValueError: If the counts differ.
    """
    if count != len(encoded):
        raise ValueError(f"got {count} {kind} but {len(encoded)} encoded rows; pass one row for each")


def check_widths(stored: Mapping[Mode, int], encoded: Encoded) -> None:
    """Check that embeddings have all stored modes, in their widths.

    Args:
        stored: Width of each mode of the index.
        encoded: Embeddings.

    Raises:
        MissingMode: If a mode is missing.
        WrongDimension: If a width differs.
    """
    for mode in stored:
        if mode not in encoded.modes:
            raise MissingMode(
                f"the index stores {sorted(stored)}, but these embeddings have only {sorted(encoded.modes)}; "
                f"pass modes={tuple(stored)!r} to the encoder"
            )
        if width(mode, encoded) != stored[mode]:
            raise WrongDimension(
                f"the index stores {mode} vectors of width {stored[mode]}, got {width(mode, encoded)}; "
                "use the encoder that filled it, or a new index"
            )


def check_unchanged(expected: Mapping[str, str], stored: Mapping[str, str]) -> None:
    """Check the content hashes passed to `Index.set_vectors_many`.

    Args:
        expected: Hashes that passages had.
        stored: Hashes that they have.

    Raises:
        PassagesChanged: If one differs.
    """
    changed = [id for id, hash in expected.items() if stored.get(id) != hash]
    if changed:
        raise PassagesChanged(
            f"{len(changed)} of {len(expected)} passages were replaced or deleted while vectors were computed for "
            f"them, such as {changed[0]!r}; nothing was written: repeat the call"
        )


def check_update(stored: Mapping[Mode, int], count: int, encoded: Encoded) -> None:
    """Check the embeddings passed to `Index.set_vectors`.

    Args:
        stored: Width of each mode of the index.
        count: Number of ids.
        encoded: New embeddings.

    Raises:
        MissingMode, WrongDimension, ValueError: As `Index.set_vectors` does.
    """
    check_count("ids", count, encoded)
    extra = [mode for mode in MODES if mode in encoded.modes and mode not in stored]
    if extra:
        raise MissingMode(f"the index stores {sorted(stored)}, not {' or '.join(extra)}; use encoded.only(index.modes)")
    check_widths({mode: stored[mode] for mode in encoded.modes}, encoded)


def check_search(stored: Mapping[Mode, int], mode: Mode, queries: Encoded, k: int) -> Encoded:
    """Check the arguments of `Index.search` and return the queries in the mode alone.

    Args:
        stored: Width of each mode of the index; empty before the first passage.
        mode: The mode to search by.
        queries: Encoded queries.
        k: Number of hits.

    Raises:
        MissingMode, WrongDimension, ValueError: As `Index.search` does.
    """
    positive_integer("k", k)
    return check_queries(stored, mode, queries)


def check_queries(stored: Mapping[Mode, int], mode: Mode, queries: Encoded) -> Encoded:
    """Check queries and return them in the mode alone; an index without modes accepts any.

    Raises:
        MissingMode: If the index or the queries lack the mode.
        WrongDimension: If the width differs.
    """
    check_modes((mode,), stored.keys() or MODES)
    queries = queries.only((mode,))
    if stored:
        check_widths({mode: stored[mode]}, queries)
    return queries


def check_score(
    stored: Mapping[Mode, int], mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]
) -> tuple[Encoded, list[list[str]]]:
    """Check the arguments of `Index.score`, except for unknown ids.

    Returns:
        The queries in the mode alone, and a list of ids per query.

    Raises:
        MissingMode, WrongDimension, ValueError: As `Index.score` does.
    """
    queries = check_queries(stored, mode, queries)
    if len(ids) != len(queries):
        raise ValueError(f"score takes one list of ids for each of {len(queries)} queries, got {len(ids)} lists")
    return queries, [check_ids(query_ids, "score") for query_ids in ids]


def unknown_id_error(id: str) -> UnknownId:
    """Return the error for an unknown id."""
    return UnknownId(f"the index has no passage {id!r}; index.ids() lists its passages")


def check_updates(updates: Sequence[tuple[Sequence[str], Encoded]]) -> list[VectorUpdate]:
    """Check the updates of `Index.set_vectors_many`, as far as possible without the index.

    Raises:
        ValueError: If the ids are a single string, or if two updates replace the same passage in the same mode.
    """
    checked = [VectorUpdate(check_ids(ids, "set_vectors"), encoded) for ids, encoded in updates]
    seen: dict[Mode, set[str]] = {}
    for ids, encoded in checked:
        for mode in encoded.modes:
            updated = seen.setdefault(mode, set())
            twice = updated.intersection(ids)
            if twice:
                raise ValueError(
                    f"two updates replace the {mode!r} vectors of {min(twice)!r}; remove it from one of them"
                )
            updated.update(ids)
    return checked


def resolve_updates(stored: Mapping[Mode, int], updates: Sequence[VectorUpdate]) -> list[VectorUpdate]:
    """Check updates against the index; return those with ids, each id once.

    Args:
        stored: Width of each mode of the index.
        updates: Updates from `check_updates`.

    Raises:
        MissingMode, WrongDimension, ValueError: As `Index.set_vectors` does.
    """
    resolved = []
    for ids, encoded in updates:
        if ids:
            check_update(stored, len(ids), encoded)
            rows = last_rows(ids)
            resolved.append(VectorUpdate(list(rows), encoded.take(list(rows.values()))))
    return resolved


def check_plan(plan: SearchPlan | None) -> SearchPlan | None:
    """Check a search plan to store; the default plan is stored as none."""
    if plan is not None and not isinstance(plan, SearchPlan):
        raise TypeError(f"the plan of an index is a SearchPlan or None, got {plan!r}")
    return None if plan == SearchPlan() else plan
