"""Trials of damage: a bit or a block of a file of an index folder changes, as on a failing disk."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

from m3_integrations import Field, LocalIndex, Nudger, Passage, Query
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import DamagedFolder, M3Error
from m3_integrations.index import check_index, repair_index
from m3_integrations.index.local.array_file import map_arrays
from m3_integrations.nudging.feedback import Feedback
from m3_integrations.nudging.ledger_vectors import Dimensions
from m3_integrations.nudging.nudger import open_ledger
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(32, 256, 16)
KINDS = (
    "dense-*.segment",
    "sparse-*.segment",
    "multi_vector-*.segment",
    "*.graph",
    "*.lists",
    "catalogue.sqlite",
    "nudges.sqlite",
)
PAGE = 4096


def make_folder(folder: Path, precision: str) -> None:
    """Make an index with replaced, deleted and nudged passages, a graph, centroid lists and a ledger."""
    words = random.Random(3)
    texts = [f"text {i} " + " ".join(f"w{words.randrange(300)}" for _ in range(12)) for i in range(240)]
    options = {"precision": {"multi_vector": precision}, "exact_below": 50}
    with LocalIndex.open(folder, ENCODER, **options) as index:
        for start in (0, 120):
            part = range(start, start + 120)
            passages = [Passage(f"p{i}", texts[i], {"n": i}) for i in part]
            index.add(passages, ENCODER.encode_passages([texts[i] for i in part]))
        index.delete([f"p{i}" for i in range(20)])
        changed = [f"p{i}" for i in range(100, 140)]
        index.set_vectors(changed, ENCODER.encode_passages([f"other {id}" for id in changed]))
        queries = [Query(f"q{i}", " ".join(texts[i].split()[:5]), {f"p{i}": 1.0}) for i in range(180, 220)]
        nudger = Nudger(ENCODER, index)
        nudger.fit(queries[:25], queries[25:], modes=("dense",))
        nudger.close()
        Feedback(ENCODER, index).add("w1 w2", "p30", is_useful=True)
        for mode in ("dense", "multi_vector"):
            index.search(mode, ENCODER.encode_queries(["w1"]), 3)  # saves a graph, and lists


def answers(folder: Path) -> list[object]:
    """Return what an index and its ledger answer, in one form of each call."""
    queries = ENCODER.encode_queries(["w1 w2", "text 5 w7", "w9"])
    with LocalIndex.open(folder, ENCODER, exact_below=50) as index:
        found: list[object] = [
            index.search(mode, queries, 8, where) for mode in MODES for where in (None, Field("n", "<", 150))
        ]
        ids = index.ids()
        found += [ids, index.passages(), index.content_hashes(), index.content_hashes(ids[:5]), index.plan, len(index)]
        found += [index.encoder, contents(index)]
        nudger = Nudger(ENCODER, index)
        found += [nudger.queries(), nudger.versions()]
        nudger.close()
        with closing(open_ledger(index, ENCODER, None)) as ledger:
            encoded = ledger.encoded("train", ("dense",), Dimensions(32, 256, 16))
            found += [encoded.dense.tobytes(), str(ledger.originals("dense", 32)), ledger.judgements()]
    return found


def contents(index: LocalIndex) -> dict[str, object]:
    """Return every passage with its vectors as bytes."""
    ids = index.ids()
    vectors = index.vectors(ids)
    rows = vectors.sparse
    spans = [slice(*pair) for pair in zip(rows.indptr, rows.indptr[1:], strict=False)]
    kept: dict[str, object] = {}
    for i, (id, passage, span) in enumerate(zip(ids, index.passages(ids), spans, strict=True)):
        parts = (vectors.dense[i], rows.indices[span], rows.data[span], vectors.multi_vector[i])
        kept[id] = (passage, *(part.tobytes() for part in parts))
    return kept


def damage(path: Path, chance: random.Random) -> tuple[int, int]:
    """Flip a bit or zero 4 kB of a file; return the bytes that changed, as begin and end."""
    before = path.read_bytes()
    data = bytearray(before)
    while data == before:
        at = chance.randrange(len(data))
        if chance.random() < 0.5:
            data[at] ^= 1 << chance.randrange(8)
        else:
            data[at : at + PAGE] = bytes(len(data[at : at + PAGE]))
    path.unlink()  # the copy may be a hard link
    path.write_bytes(data)
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(data, np.uint8))
    return int(changed[0]), int(changed[-1]) + 1


def rows_in(path: Path, begin: int, end: int) -> set[int]:
    """Return the slots of the rows of an intact segment with bytes in a range."""
    arrays = map_arrays(path, path.stat().st_size)
    slots, touched = arrays["slots"], set()
    bounds = arrays.get("offsets", np.arange(len(slots) + 1))
    names = {"slots", "written", "offsets"} | (
        {"values"} if "values" in arrays else {"columns", "weights", "numbers", "scales"}
    )
    for name in names & set(arrays):
        array, start = arrays[name], arrays.offset(name)
        size = array.nbytes // max(1, len(array))
        first, last = (begin - start) // size, -(-(end - start) // size)
        elements = range(max(0, first), min(len(array), last))
        if not elements:
            continue
        if name in ("slots", "written"):
            touched |= set(elements)
        elif name == "offsets":  # a row needs both of its ends
            touched |= {row for element in elements for row in (element - 1, element) if 0 <= row < len(slots)}
        else:
            ends = np.searchsorted(bounds, [elements.start, elements.stop - 1], side="right") - 1
            touched |= set(range(int(ends[0]), int(ends[1]) + 1))
    return {int(slots[row]) for row in touched}


def knows_slots(path: Path, begin: int, end: int) -> bool:
    """Return whether damage leaves the slots or their copy, and the checksums at the end of the file.

    If it does not, the older vectors of these passages may or may not be outdated, and are not taken.
    """
    arrays = map_arrays(path, path.stat().st_size)
    spans = [(arrays.offset(name), arrays.offset(name) + arrays[name].nbytes) for name in ("slots", "slots_copy")]
    return end <= spans[1][1] and not all(begin < last and first < end for first, last in spans)


def run_trials(folder: Path, place: Path, count: int, seed: int) -> Counter[str]:
    """Damage copies of a folder, and compare answers, check and repair with the intact folder.

    Returns:
        Number of trials by outcome.

    Raises:
        AssertionError: If an answer is wrong without an error, damage is not found, or an undamaged passage is lost.
    """
    chance, outcomes, truth = random.Random(seed), Counter[str](), answers(folder)
    with LocalIndex.open(folder, ENCODER) as index:
        content = contents(index)
        slot_of = {}
        with index._catalog.read() as transaction:
            slot_of = dict(transaction.slots_and_ids())
    for trial in range(count):
        copy, new = place / f"copy-{trial}", place / f"new-{trial}"
        shutil.copytree(folder, copy)
        kind = KINDS[trial % len(KINDS)]
        path = chance.choice(sorted(copy.glob(kind)))
        begin, end = damage(path, chance)
        label = f"trial {trial} of seed {seed}: {path.name} bytes {begin} to {end}"
        report = check_index(copy)
        assert "sqlite" in kind or not report.is_whole, f"{label}: not found"
        try:
            found = answers(copy)
            assert found == truth, f"{label}: wrong answers"
            outcome = "same answers"
        except M3Error:
            assert not report.is_whole, f"{label}: an error, and not found"
            outcome = "an error"
        outcomes[f"{kind}: {outcome}, {'not damaged' if report.is_whole else 'found'}"] += 1
        outcomes[repaired(label, copy, new, report, content)] += 1
        if "segment" in kind:
            touched = {slot_of.get(slot) for slot in rows_in(folder / path.name, begin, end)} - {None}
            left = {each.id for each in report.passages} if knows_slots(folder / path.name, begin, end) else set()
            assert left <= touched, f"{label}: undamaged passages {sorted(left - touched)[:5]} are taken for damaged"
        for each in (copy, new):
            shutil.rmtree(each, ignore_errors=True)
    return outcomes


def repaired(label, copy, new, report, content) -> str:
    """Repair a folder and compare all that was saved."""
    try:
        result = repair_index(copy, new)
    except DamagedFolder:
        return "repair: nothing can be read of the catalog"
    if result.target is None:
        return "repair: no passage is damaged"
    with LocalIndex.open(new, ENCODER) as index:
        saved = contents(index)
    assert saved.items() <= content.items(), f"{label}: a saved passage differs"
    lost = content.keys() - saved.keys()
    if not lost <= {each.id for each in result.left}:  # the catalog's inner pages lead to them
        assert any("not those that were written" in each.problem for each in result.check.files), label
        return "repair: passages cannot be found and are not listed"
    return "repair: every passage is saved" if not lost else "repair: every undamaged passage is saved"
