"""Fewer and narrower vectors of late interaction: bytes a passage, nDCG@10, milliseconds to score the candidates.

python benchmarks/late_size.py DATA/scifact DATA/xquad/{ar,de,en,es,hi,zh} [--width 192 128] [--token-pooling 1 2 3]

DATA/...: BEIR folders. Dense and sparse search propose 100 passages each, which are ranked by late interaction alone
and by all modes in the encoder's weights. Each folder is encoded once; then its vectors are what `narrowed(passages,
width)`, of 500 of its passages at most, and `token_pooling` make of them. Bytes are those of the multi-vector segments
a passage, in --precision; milliseconds are the median of a question's late interaction, and the mean of pooling a
passage. --keep: where encoded passages and questions stay, for the next run to start from.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

from precision import BATCH, filled, judged
from timing import timed

from m3_integrations import Encoded, LocalIndex, M3Encoder, Passage
from m3_integrations.core.encoded import MultiVectors
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.core.narrowing import Directions, principal_directions, projected
from m3_integrations.core.token_pooling import pool_tokens
from m3_integrations.evaluation.beir import Collection, read_beir
from m3_integrations.index.codes import PRECISIONS, Precision

SAMPLE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, nargs="*", default=[192, 128], help="beside the full one")
    parser.add_argument("--token-pooling", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(asked.model, dtype=asked.dtype)
    print(f"{encoder!r}, kept as {asked.precision}, each: value (difference from the first row)")
    sizes, times = f"{'width':>6}{'pooled':>7}{'bytes':>9}{'smaller':>9}", f"{'ms':>7}{'pool ms':>9}"
    print(f"{'':16}{sizes}{'late alone':>19}{'all modes':>19}{times}")
    with tempfile.TemporaryDirectory() as temporary:
        for folder in asked.folders:
            measure(encoder, read_beir(folder), f"{folder.parent.name}-{folder.name}", asked, Path(temporary))


def measure(encoder: M3Encoder, collection: Collection, name: str, asked: argparse.Namespace, temporary: Path) -> None:
    questions = [Passage(query.id, query.text) for query in collection.queries]
    keep = asked.keep or temporary
    with (
        filled(keep / name, encoder, collection.passages, queries=False) as source,
        filled(keep / f"{name}-queries", encoder, questions, queries=True) as of_questions,
    ):
        queries = of_questions.vectors([query.id for query in collection.queries])
        first: Row | None = None
        for width in (encoder.width, *asked.width):
            directions = None if width == encoder.width else directions_of(source, collection, width)
            for pooling in asked.token_pooling:
                with tempfile.TemporaryDirectory() as path:
                    folder = Path(path)
                    pool = copy_reduced(source, collection, folder, asked.precision, directions, pooling)
                    found = row_of(folder, reduced(queries, directions, 1), collection, encoder, pool)
                first = first or found
                print(f"{name:16.16}{width:6}{pooling:7}{found.beside(first)}", flush=True)


class Row(NamedTuple):
    """size: bytes a passage. late, fused: nDCG@10. seconds: of a question's late interaction. pool: of a passage."""

    size: float
    late: float
    fused: float
    seconds: float
    pool: float

    def beside(self, first: Row) -> str:
        late, fused = (f"{now:.4f} ({now - then:+.4f})" for now, then in zip(self[1:3], first[1:3], strict=True))
        times = f"{1000 * self.seconds:7.1f}{1000 * self.pool:9.2f}"
        return f"{self.size:9.0f}{first.size / self.size:8.2f}x{late:>19}{fused:>19}{times}"


def row_of(folder: Path, queries: Encoded, collection: Collection, encoder: M3Encoder, pool: float) -> Row:
    with LocalIndex.open(folder) as index:
        late, fused, seconds = judged(index, queries, collection.queries, encoder.weights)
    size = sum(each.stat().st_size for each in folder.glob("multi_vector-*.segment"))
    return Row(size / len(collection.passages), late, fused, seconds, pool)


def directions_of(source: LocalIndex, collection: Collection, width: int) -> Directions:
    """Those that `narrowed` finds, of passages from all over the collection."""
    step = -(-len(collection.passages) // SAMPLE)
    some = [passage.id for passage in collection.passages[::step]]
    return principal_directions([source.vectors(some, ("multi_vector",)).multi_vector.values], width)


def copy_reduced(
    source: LocalIndex,
    collection: Collection,
    folder: Path,
    precision: Precision,
    directions: Directions | None,
    pooling: int,
) -> float:
    """Every passage into a new index, with the vectors that the settings leave it; the seconds a passage of pooling."""
    spent = 0.0
    with LocalIndex.open(folder, precision={"multi_vector": precision}) as index:
        for start in range(0, len(collection.passages), BATCH):
            some = collection.passages[start : start + BATCH]
            narrow = reduced(source.vectors([passage.id for passage in some]), directions, 1)
            seconds, left = timed(partial(reduced, narrow, None, pooling))
            spent += seconds
            index.add(some, left)
    return spent / len(collection.passages)


def reduced(encoded: Encoded, directions: Directions | None, pooling: int) -> Encoded:
    vectors = encoded.multi_vector
    if directions is not None:
        vectors = MultiVectors(projected(vectors.values, directions), vectors.offsets)
    return encoded.with_multi_vector(pool_tokens(vectors, pooling))


if __name__ == "__main__":
    main()
