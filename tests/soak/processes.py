"""Eight processes over one folder, killed at random: MCP servers, `m3 index`, nudges, searches, purges.

python -m tests.soak.processes --seconds 300
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import PassagesChanged
from m3_integrations.core.scoring import score_mode
from m3_integrations.core.types import Passage, Query
from m3_integrations.index.base import HybridRequest
from m3_integrations.index.filters import Field
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.nudging.feedback import Feedback
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder

if TYPE_CHECKING:
    from m3_integrations import M3Encoder

ROOT = Path(__file__).parents[2]
ENCODER = HashEncoder(8, 4, 64)
WORDS = ("red", "blue", "green", "cat", "dog", "bird")
WRITERS = ("mcp-0", "mcp-1", "ingest", "purge")
ROLES = (*WRITERS, "nudge", "search-0", "search-1", "search-2")
WAIT = 300.0  # seconds for another writer: many processes share few processors
QUERIES = [Query(f"q{i}", f"{WORDS[i % 6]} ask{i % 3}", {f"fixed-{i % 6}": 1.0}) for i in range(18)]


def text_of(role: str, number: int) -> str:
    """Return the text that a role writes with a number."""
    choice = random.Random(f"{role} {number}")
    return " ".join([*choice.choices(WORDS, k=3), role, str(number)])


class Journal:
    """What a role has begun and what was acknowledged, in a file of its own that survives a kill."""

    def __init__(self, place: Path, role: str) -> None:
        self._path = place / f"{role}.journal"
        self.entries = [json.loads(line) for line in self._lines()]

    def _lines(self) -> Iterator[str]:
        if self._path.exists():
            yield from (line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n"))

    def write(self, *entry: object) -> None:
        with self._path.open("a") as file:
            if self._path.stat().st_size and not self._path.read_text().endswith("\n"):
                file.write("\n")
            file.write(json.dumps(entry) + "\n")


def writes(index: LocalIndex, place: Path, role: str) -> None:
    """Add, replace and delete passages of this role, in a journal: begun, done."""
    journal = Journal(place, role)
    number = 1 + max((entry[1] for entry in journal.entries), default=-1)
    while True:
        ids = [f"{role}-{random.Random(number).randrange(30)}-{i}" for i in range(4)]
        is_deletion = number % 4 == 3
        journal.write("begin", number, is_deletion, ids)
        if is_deletion:
            index.delete(ids, purge=role == "purge")
        elif role == "purge":
            texts = [text_of(role, number)] * len(ids)
            index.add([Passage(id, texts[0], {"n": number}) for id in ids], ENCODER.encode_passages(texts))
        else:
            index_by_command(index, place, [Passage(id, text_of(role, number), {"n": number}) for id in ids])
        journal.write("done", number, is_deletion, ids)
        number += 1


def index_by_command(index: LocalIndex, place: Path, passages: Sequence[Passage]) -> None:
    """Write a file of passages and index it as `m3 index` does once the model is loaded."""
    from m3_integrations.cli.commands.index import update_index  # slow to import
    from m3_integrations.cli.output import terminal
    from m3_integrations.cli.sources import Sources

    file = place / "passages.jsonl"
    lines = [{"_id": each.id, "text": each.text, "metadata": each.metadata} for each in passages]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    terminal.quiet = True
    update_index(place / "index", index, cast("M3Encoder", ENCODER), Sources(files=[file], rows=len(passages)))


async def serve_agent(index: LocalIndex, place: Path, role: str) -> None:
    """Remember, forget and judge passages of this role as the official client of an MCP server over the folder."""
    from mcp import Client  # slow to import, and the other roles start often

    from m3_integrations.server import create_mcp_server

    journal, judged = Journal(place, role), Journal(place, f"{role}-feedback")
    number = 1 + max((entry[1] for entry in journal.entries), default=-1)
    async with Client(create_mcp_server(ENCODER, index, name="soak", can_write=True)) as client:

        async def call(tool: str, **arguments: object) -> None:
            result = await client.call_tool(tool, arguments)
            if result.is_error and tool != "forget":  # of a passage that is not there
                raise AssertionError(f"{tool}: {result.content}")

        while True:
            ids, is_deletion = [f"{role}-{random.Random(number).randrange(30)}"], number % 4 == 3
            journal.write("begin", number, is_deletion, ids)
            if is_deletion:
                await call("forget", id=ids[0])
            else:
                await call("remember", text=text_of(role, number), id=ids[0])
            journal.write("done", number, is_deletion, ids)
            if not is_deletion:
                await call("search", query=text_of(role, number))
                await call("feedback", id=ids[0], useful=True, query=f"{role} question {number}")
                judged.write(f"{role} question {number}")
            number += 1


def agents(index: LocalIndex, place: Path, role: str) -> None:
    asyncio.run(serve_agent(index, place, role))


def nudges(index: LocalIndex, place: Path, role: str) -> None:
    """Fit, revert and forget, over passages that do not change."""
    fixed = [Passage(f"fixed-{i}", f"{WORDS[i]} fixed", {"n": i}) for i in range(6)]
    index.add(fixed, ENCODER.encode_passages([passage.text for passage in fixed]))
    while True:
        with closing(Nudger(ENCODER, index)) as nudger, suppress(PassagesChanged):
            nudger.fit(QUERIES[:12], QUERIES[12:], modes=("dense",), method="nudge-n")
            nudger.revert()
        time.sleep(0.2)


def searches(index: LocalIndex, place: Path, role: str) -> None:
    """Search, and compare the score of each hit with that of its text."""
    choice = random.Random()
    while True:
        question = " ".join(choice.choices(WORDS, k=2))
        query, where = ENCODER.encode_queries([question]), choice.choice([None, Field("n", ">", 3)])
        request = HybridRequest(dict.fromkeys(MODES, 10), {"sparse": 1.0, "multi_vector": 1.0})
        (hits,) = index.search_hybrid(query, request, 5, where)
        for hit in hits:
            passage = ENCODER.encode_passages([hit.passage.text])
            for mode in ("sparse", "multi_vector"):  # dense vectors are nudged
                expected = float(score_mode(mode, query, passage)[0][0])
                if not np.isclose(hit.by_mode[mode], expected, atol=1e-4):
                    raise AssertionError(f"{hit.passage!r} has the {mode} score {hit.by_mode[mode]}, not {expected}")
        len(index), index.ids(where)


WORK: dict[str, Callable[[LocalIndex, Path, str], None]] = {
    "mcp": agents,
    "ingest": writes,
    "purge": writes,
    "nudge": nudges,
    "search": searches,
}


def work(place: Path, role: str) -> None:
    """Do what a role does until the process is killed; reopen the folder now and then."""
    while True:
        with LocalIndex.open(place / "index", ENCODER, write_timeout=WAIT) as index:
            WORK[role.partition("-")[0]](index, place, role)


def faults_of(place: Path) -> list[str]:
    """Compare the folder with the journals of its writers."""
    found: list[str] = []
    with LocalIndex.open(place / "index", ENCODER) as index:
        index.verify()
        passages = {passage.id: passage for passage in index.passages()}
        for role in WRITERS:
            last: dict[str, tuple[str | None, ...]] = {}
            for event, number, is_deletion, ids in Journal(place, role).entries:
                text = None if is_deletion else text_of(role, number)
                for id in ids:  # one that had begun may have happened, or not
                    last[id] = (text,) if event == "done" else (*last.get(id, (None,)), text)
            for id, texts in last.items():
                held = passages[id].text if id in passages else None
                if held not in texts:
                    found.append(f"{id} holds {held!r}, and not one of {texts}")
            extra = {id for id in passages if id.startswith(role)} - last.keys()
            found += [f"{id} was never written" for id in sorted(extra)]
        recorded = {judgement.query for judgement in Feedback(ENCODER, index).judgements()}
        acknowledged = {entry[0] for role in WRITERS for entry in Journal(place, f"{role}-feedback").entries}
        found += [f"the judgement of {query!r} is lost" for query in sorted(acknowledged - recorded)]
        with closing(Nudger(ENCODER, index)) as nudger:
            nudger.revert()
        ids = index.ids()
        expected = ENCODER.encode_passages([passages[id].text for id in ids])
        if ids and not np.array_equal(index.vectors(ids, ("dense",)).dense, expected.dense):
            found.append("a vector is not that of its text after the revert")
    return found


def run(place: Path, seconds: float, seed: int, kills: int | None = None) -> tuple[Counter[str], list[str]]:
    """Run all roles, kill one at random again and again, and start it again.

    Args:
        place: An empty folder.
        seconds: Seconds to run, or longer until `kills` is reached.
        seed: Seed of who is killed.
        kills: Number of processes to kill; None kills one every ten seconds, so that work is done between.

    Returns:
        Counts of kills and journal entries, and what went wrong.
    """
    choice, processes, counts, faults = random.Random(seed), {}, Counter[str](), []

    def start(role: str) -> None:
        command = [sys.executable, "-m", "tests.soak.processes", "--place", str(place), "--role", role]
        processes[role] = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)

    with LocalIndex.open(place / "index", ENCODER):
        pass
    for role in ROLES:
        start(role)
    end = time.monotonic() + seconds
    while time.monotonic() < end or (kills is not None and counts["kills"] < kills):
        time.sleep(10 if kills is None else 0.05)
        for role, process in list(processes.items()):
            if process.poll() is not None:
                faults.append(f"{role} ended with {process.returncode}: {process.stderr.read().decode()[-600:]}")
                start(role)
        role = choice.choice(ROLES)
        if kills is None or any((place / f"{each}.journal").exists() for each in ROLES):
            processes[role].send_signal(signal.SIGKILL)
            processes[role].communicate()
            counts["kills"] += 1
            start(role)
    for process in processes.values():
        process.kill()
        process.communicate()
    for role in ROLES:
        counts["journal entries"] += len(Journal(place, role).entries)
        counts["judgements"] += len(Journal(place, f"{role}-feedback").entries)
    return counts, [*faults, *faults_of(place)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path)
    parser.add_argument("--role", choices=ROLES)
    arguments = parser.parse_args()
    if arguments.role is not None:
        work(arguments.place, arguments.role)
    with tempfile.TemporaryDirectory() as place:
        counts, faults = run(Path(place), arguments.seconds, arguments.seed)
    if not counts["judgements"]:
        faults.append("the processes were killed before they did anything; run it longer, or on a faster machine")
    print(f"{arguments.seconds:.0f} s, {len(ROLES)} processes, {dict(counts)}, {len(faults)} errors")
    for fault in faults[:20]:
        print(f"  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
