"""What every index refuses, said in the same words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from m3_integrations.core.encoded import MODES, Encoded, Mode, check_modes
from m3_integrations.core.errors import MissingMode, UnknownId, WrongDimension


def list_of_ids(ids: Collection[str], call: str) -> list[str]:
    """The ids as a list. Raises ValueError for a bare string, which is a collection of letters."""
    if isinstance(ids, str):
        raise ValueError(f"{call} takes a list of ids, got the string {ids!r}; write {call}([{ids!r}])")
    return list(ids)


def last_rows(ids: Sequence[str]) -> dict[str, int]:
    """For each id the last row that it has."""
    return {id: row for row, id in enumerate(ids)}


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


def check_pairs(queries: Encoded, ids: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless there is one list of ids for each query."""
    if len(ids) != len(queries):
        raise ValueError(f"score takes one list of ids for each of {len(queries)} queries, got {len(ids)} lists")


def unknown(id: str) -> UnknownId:
    return UnknownId(f"the index holds no passage {id!r}; index.ids() lists those that it holds")


def check_once(changes: Sequence[tuple[Sequence[str], Encoded]]) -> None:
    """Raises ValueError where two changes replace the vectors of one passage in one mode."""
    seen: dict[Mode, set[str]] = {}
    for ids, encoded in changes:
        for mode in encoded.modes:
            known = seen.setdefault(mode, set())
            twice = known.intersection(ids)
            if twice:
                raise ValueError(
                    f"two changes replace the {mode!r} vectors of {min(twice)!r}; "
                    "say in one of them what they are to be"
                )
            known.update(ids)
