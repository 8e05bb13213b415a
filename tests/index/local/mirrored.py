"""A folder and an exact index in memory to which the same is done, and which must stay equal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.core.types import Passage, Query
from m3_integrations.index.base import Index
from m3_integrations.index.filters import Field
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.quantization.codecs import Precision
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.sample_data import same_vectors

ENCODER = HashEncoder(8, 4, 64)
WORDS = ("red", "blue", "green", "cat", "dog", "bird")
QUESTIONS = ENCODER.encode_queries(["red cat", "dog dog blue", "unheard", ""])
QUERIES = [Query(f"q{i}", f"{WORDS[i % 6]} ask{i % 3}", {f"p{i % 6}": 1.0}) for i in range(18)]


class MirroredIndex:
    """An index in a folder, its mirror in memory, and a mirror without nudges.

    Args:
        folder: A folder that does not exist.
        precision: How the folder stores multi-vectors. The mirror of int8 or int4 holds the stored values.
    """

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.folder, self.precision = folder, precision
        self.index = LocalIndex.open(folder, ENCODER, precision={"multi_vector": precision})
        self.mirror, self.plain = MemoryIndex(), MemoryIndex()
        self.is_nudged = False

    def add(self, ids: Sequence[str], texts: Sequence[str], *, elsewhere: bool = False) -> None:
        """Add passages, in this process or in another one."""
        passages = [Passage(id, text, {"n": len(text)}) for id, text in zip(ids, texts, strict=True)]
        if elsewhere:
            other_process().call(folder=self.folder, method="add", ids=ids, texts=texts)
        else:
            self.index.add(passages, ENCODER.encode_passages(texts))
        last = {passage.id: passage for passage in passages}
        self._mirror_added(list(last.values()))

    def delete(self, ids: Sequence[str], *, purge: bool = False, elsewhere: bool = False) -> None:
        """Delete passages, in this process or in another one."""
        if elsewhere:
            other_process().call(folder=self.folder, method="delete", ids=ids)
        else:
            self.index.delete(ids, purge=purge)
        for mirror in (self.mirror, self.plain):
            mirror.delete(ids)

    def set_vectors(self, ids: Sequence[str], texts: Sequence[str], mode: Mode) -> None:
        """Replace the vectors of known passages in one mode, unless they are nudged."""
        known = [id for id in dict.fromkeys(ids) if id in set(self.mirror.ids())]
        if not known or self.is_nudged:
            return
        encoded = ENCODER.encode_passages([texts[i % len(texts)] for i in range(len(known))], (mode,))
        self.index.set_vectors(known, encoded)
        stored = self._stored(known, encoded)
        for mirror in (self.mirror, self.plain):
            mirror.set_vectors(known, stored)

    def fit(self) -> None:
        """Nudge, if a question has an answer."""
        if not any(id in self.mirror.content_hashes() for query in QUERIES[:12] for id in query.relevant):
            return
        for index in (self.index, *([self.mirror] if self.precision == "float32" else [])):
            with closing(Nudger(ENCODER, index)) as nudger:
                nudger.fit(QUERIES[:12], QUERIES[12:], modes=MODES, method="nudge-n")
        self._mirror_nudged()

    def revert(self) -> None:
        """Restore the original vectors."""
        for index in (self.index, *([self.mirror] if self.precision == "float32" else [])):
            with closing(Nudger(ENCODER, index)) as nudger:
                nudger.revert()
        self._mirror_nudged()
        self.is_nudged = False
        ids = self.plain.ids()
        if ids:
            assert same_vectors(self.index.vectors(ids), self.plain.vectors(ids))

    def reopen(self) -> None:
        """Close the folder and open it again."""
        self.index.close()
        self.index = LocalIndex.open(self.folder, ENCODER)

    def check(self, mirror: Index | None = None) -> None:
        """Compare the answers of the folder with those of a mirror."""
        mirror, ids = mirror or self.mirror, self.mirror.ids()
        assert self.index.ids() == ids
        assert self.index.passages() == mirror.passages()
        assert self.index.content_hashes() == mirror.content_hashes()
        if ids:
            assert same_vectors(self.index.vectors(ids), mirror.vectors(ids))
        for mode in MODES if ids else ():
            for where in (None, Field("n", ">", 6)):
                self._check_search(mirror, mode, where)

    def close(self) -> None:
        self.index.close()

    def compare_search(self, mode: Mode) -> None:
        """Compare the answers of one mode."""
        if len(self.mirror):
            self._check_search(self.mirror, mode, None)

    def _check_search(self, mirror: Index, mode: Mode, where: Field | None) -> None:
        found, expected = (each.search(mode, QUESTIONS, 5, where) for each in (self.index, mirror))
        if mode != "multi_vector" or self.precision != "int4":
            assert found == expected
            return
        for hits, wanted in zip(found, expected, strict=True):  # int4 rotates the query instead of the vectors
            assert np.allclose([hit.score for hit in hits], [hit.score for hit in wanted], atol=1e-5)

    def _stored(self, ids: Sequence[str], encoded: Encoded) -> Encoded:
        """Return embeddings with the values that the folder stores."""
        if self.precision == "float32" or "multi_vector" not in encoded.modes:
            return encoded
        parts = {mode: getattr(encoded, mode) for mode in encoded.modes}
        return Encoded(**{**parts, "multi_vector": self.index.vectors(ids, ("multi_vector",)).multi_vector})

    def _mirror_added(self, passages: Sequence[Passage]) -> None:
        if passages:
            encoded = ENCODER.encode_passages([passage.text for passage in passages])
            stored = self._stored([passage.id for passage in passages], encoded)
            for mirror in (self.mirror, self.plain):
                mirror.add(passages, stored)

    def _mirror_nudged(self) -> None:
        self.is_nudged = True
        ids = self.mirror.ids()
        if self.precision != "float32" and ids:
            self.mirror.set_vectors(ids, self.index.vectors(ids))


class OtherProcess:
    """A process that writes to folders when it is told to."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.index.local.mirrored"]
        root = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii"
        )

    def call(self, **command: Any) -> None:
        """Carry out a command there; it raises here what it raises there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "done\n", answer


@cache
def other_process() -> OtherProcess:
    """Start the other process at its first use; it ends with this one."""
    return OtherProcess()


def _serve() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        with LocalIndex.open(command["folder"], ENCODER) as index:
            if command["method"] == "delete":
                index.delete(command["ids"])
            else:
                ids, texts = command["ids"], command["texts"]
                passages = [Passage(id, text, {"n": len(text)}) for id, text in zip(ids, texts, strict=True)]
                index.add(passages, ENCODER.encode_passages(texts))
        print("done", flush=True)


if __name__ == "__main__":
    _serve()
