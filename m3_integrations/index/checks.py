"""What every index refuses, said in the same words, and what is left then to be written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from m3_integrations.core.encoded import MODES, Encoded, Mode, check_modes
from m3_integrations.core.errors import MissingMode, UnknownId, WrongDimension
from m3_integrations.core.texts import Passage
from m3_integrations.index.entries import Entry


def list_of_ids(ids: Collection[str], call: str) -> list[str]:
    """The ids as a list. Raises ValueError for a bare string, which is a collection of letters."""
    if isinstance(ids, str):
        raise ValueError(f"{call} takes a list of ids, got the string {ids!r}; write {call}([{ids!r}])")
    return list(ids)


def last_rows(ids: Sequence[str]) -> dict[str, int]:
    """For each id the last row that it has."""
    return {id: row for row, id in enumerate(ids)}


def latest_of(passages: Sequence[Passage], encoded: Encoded) -> tuple[list[Entry], Encoded]:
    """What is to be kept of passages, and their vectors: of an id that comes twice the last."""
    entries = {passage.id: Entry.of(passage) for passage in passages}
    return list(entries.values()), encoded.take(list(last_rows([passage.id for passage in passages]).values()))


def width(mode: Mode, encoded: Encoded) -> int:
    """How wide the rows of one mode are: dimensions, sparse columns, or the width of each vector."""
    if mode == "multi_vector":
        return encoded.multi_vector.width
    return int((encoded.dense if mode == "dense" else encoded.sparse).shape[1])


def widths(encoded: Encoded) -> dict[Mode, int]:
    return {mode: width(mode, encoded) for mode in MODES if mode in encoded.modes}


def check_count(kind: str, count: int, encoded: Encoded) -> None:
    """Raises ValueError unless there is one encoded row for each."""
    if count != len(encoded):
        raise ValueError(f"got {count} {kind} but {len(encoded)} encoded rows; give one row for each")


def check_widths(kept: Mapping[Mode, int], encoded: Encoded) -> None:
    """Raises MissingMode where a kept mode is absent, WrongDimension where its width is another."""
    for mode in kept:
        if mode not in encoded.modes:
            raise MissingMode(
                f"the index keeps {sorted(kept)}, but these vectors are {sorted(encoded.modes)}; "
                f"pass modes={tuple(kept)!r} to the encoder"
            )
        if width(mode, encoded) != kept[mode]:
            raise WrongDimension(
                f"the index keeps {mode} vectors of width {kept[mode]}, got {width(mode, encoded)}; "
                "use the encoder that filled it, or a new index"
            )


def check_replacement(kept: Mapping[Mode, int], count: int, encoded: Encoded) -> None:
    """What `set_vectors` refuses, beside strangers."""
    check_count("ids", count, encoded)
    strange = [mode for mode in MODES if mode in encoded.modes and mode not in kept]
    if strange:
        raise MissingMode(
            f"the index keeps {sorted(kept)} and no {' or '.join(strange)}; leave it out with encoded.only(index.modes)"
        )
    check_widths({mode: kept[mode] for mode in encoded.modes}, encoded)


def check_search(kept: Mapping[Mode, int], mode: Mode, queries: Encoded, k: int) -> Encoded:
    """The queries in the mode alone. Raises what `search` raises."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return check_queries(kept, mode, queries)


def check_queries(kept: Mapping[Mode, int], mode: Mode, queries: Encoded) -> Encoded:
    """The queries in the mode alone. Raises MissingMode, WrongDimension; an index that never held any takes all."""
    check_modes((mode,), kept.keys() or MODES)
    asked = queries.only((mode,))
    if kept:
        check_widths({mode: kept[mode]}, asked)
    return asked


def check_score(
    kept: Mapping[Mode, int], mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]
) -> tuple[Encoded, list[list[str]]]:
    """The queries in the mode alone, and a list of ids for each. Raises what `score` raises, beside strangers."""
    asked = check_queries(kept, mode, queries)
    if len(ids) != len(queries):
        raise ValueError(f"score takes one list of ids for each of {len(queries)} queries, got {len(ids)} lists")
    return asked, [list_of_ids(each, "score") for each in ids]


def unknown(id: str) -> UnknownId:
    return UnknownId(f"the index holds no passage {id!r}; index.ids() lists those that it holds")


class Change(NamedTuple):
    """Vectors that are to replace others: row i of `encoded` is ids[i]."""

    ids: list[str]
    encoded: Encoded


def check_changes(changes: Sequence[tuple[Sequence[str], Encoded]]) -> list[Change]:
    """Raises what `set_many` refuses whatever is kept: a bare string, two changes of one passage in one mode."""
    named = [Change(list_of_ids(ids, "set_vectors"), encoded) for ids, encoded in changes]
    seen: dict[Mode, set[str]] = {}
    for ids, encoded in named:
        for mode in encoded.modes:
            known = seen.setdefault(mode, set())
            twice = known.intersection(ids)
            if twice:
                raise ValueError(
                    f"two changes replace the {mode!r} vectors of {min(twice)!r}; "
                    "say in one of them what they are to be"
                )
            known.update(ids)
    return named


def newest(kept: Mapping[Mode, int], changes: Sequence[Change]) -> list[Change]:
    """Those that change something, each id once with its last row. Raises what `set_many` refuses of what is kept."""
    some = [change for change in changes if change.ids]
    for ids, encoded in some:
        check_replacement(kept, len(ids), encoded)
    return [
        Change(list(latest), encoded.take(list(latest.values())))
        for latest, encoded in ((last_rows(ids), encoded) for ids, encoded in some)
    ]
