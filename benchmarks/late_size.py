"""Smaller multi-vectors by token pooling and PCA projection: bytes per passage, nDCG@10, time to score candidates.

python benchmarks/late_size.py DATA/scifact DATA/xquad/{ar,de,en,es,hi,zh} [--dims 192 128] [--token-pooling 1 2 3]

DATA/...: BEIR folders. Dense and sparse search generate 100 candidates each, which are ranked by multi-vector scores
alone and by all modes with the encoder's weights. Each folder is encoded once. Its vectors are then reduced as by
`with_projection`, fitted on at most 500 passages, and by `token_pooling`. Bytes are those of the multi-vector segments
per passage, in --precision; milliseconds are the median to score a query's candidates and the mean to pool a passage.
--cache: folder for encoded passages and queries, reused by the next run.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

from precision import BATCH, evaluate_index, open_encoded
from timing import timed

from m3_integrations import Encoded, LocalIndex, M3Encoder, Passage
from m3_integrations.core import MultiVectors
from m3_integrations.data import JudgedCollection, read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.index.quantization import PRECISIONS, Precision
from m3_integrations.models.heads.projection import Directions, principal_directions, projected
from m3_integrations.models.token_pooling import pool_tokens

SAMPLE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dims", type=int, nargs="*", default=[192, 128], help="dimensions besides the full ones")
    parser.add_argument("--token-pooling", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(options.model, dtype=options.dtype)
    print(f"{encoder!r}, precision {options.precision}, each: value (difference from the first row)")
    sizes, times = f"{'dims':>6}{'pooled':>7}{'bytes':>9}{'smaller':>9}", f"{'ms':>7}{'pool ms':>9}"
    print(f"{'':16}{sizes}{'multi-vector':>19}{'all modes':>19}{times}")
    with tempfile.TemporaryDirectory() as temporary:
        for folder in options.folders:
            measure(encoder, read_beir(folder), f"{folder.parent.name}-{folder.name}", options, Path(temporary))


def measure(
    encoder: M3Encoder, collection: JudgedCollection, name: str, options: argparse.Namespace, temporary: Path
) -> None:
    questions = [Passage(query.id, query.text) for query in collection.queries]
    cache = options.cache or temporary
    with (
        open_encoded(cache / name, encoder, collection.passages, queries=False) as source,
        open_encoded(cache / f"{name}-queries", encoder, questions, queries=True) as encoded_questions,
    ):
        queries = encoded_questions.vectors([query.id for query in collection.queries])
        first: Row | None = None
        for dim in (encoder.multi_vector_dim, *options.dims):
            directions = None if dim == encoder.multi_vector_dim else fit_directions(source, collection, dim)
            for pooling in options.token_pooling:
                with tempfile.TemporaryDirectory() as path:
                    folder = Path(path)
                    pool = copy_reduced(source, collection, folder, options.precision, directions, pooling)
                    row = measure_row(folder, reduce_vectors(queries, directions, 1), collection, encoder, pool)
                first = first or row
                print(f"{name:16.16}{dim:6}{pooling:7}{row.format(first)}", flush=True)


class Row(NamedTuple):
    """Bytes per passage, nDCG@10 of multi-vectors and of all modes, seconds to score a query and to pool a passage."""

    size: float
    multi_vector: float
    all_modes: float
    seconds: float
    pool: float

    def format(self, first: Row) -> str:
        multi_vector, all_modes = (
            f"{now:.4f} ({now - then:+.4f})" for now, then in zip(self[1:3], first[1:3], strict=True)
        )
        times = f"{1000 * self.seconds:7.1f}{1000 * self.pool:9.2f}"
        return f"{self.size:9.0f}{first.size / self.size:8.2f}x{multi_vector:>19}{all_modes:>19}{times}"


def measure_row(folder: Path, queries: Encoded, collection: JudgedCollection, encoder: M3Encoder, pool: float) -> Row:
    with LocalIndex.open(folder) as index:
        multi_vector, all_modes, seconds = evaluate_index(index, queries, collection.queries, encoder.weights)
    size = sum(each.stat().st_size for each in folder.glob("multi_vector-*.segment"))
    return Row(size / len(collection.passages), multi_vector, all_modes, seconds, pool)


def fit_directions(source: LocalIndex, collection: JudgedCollection, dim: int) -> Directions:
    """Fit the projection on passages spread over the collection."""
    step = -(-len(collection.passages) // SAMPLE)
    sample = [passage.id for passage in collection.passages[::step]]
    return principal_directions([source.vectors(sample, ("multi_vector",)).multi_vector.values], dim)


def copy_reduced(
    source: LocalIndex,
    collection: JudgedCollection,
    folder: Path,
    precision: Precision,
    directions: Directions | None,
    pooling: int,
) -> float:
    """Copy all passages to a new index with reduced vectors; return the seconds per passage to pool."""
    spent = 0.0
    with LocalIndex.open(folder, precision={"multi_vector": precision}) as index:
        for start in range(0, len(collection.passages), BATCH):
            batch = collection.passages[start : start + BATCH]
            projected_vectors = reduce_vectors(source.vectors([passage.id for passage in batch]), directions, 1)
            seconds, pooled = timed(partial(reduce_vectors, projected_vectors, None, pooling))
            spent += seconds
            index.add(batch, pooled)
    return spent / len(collection.passages)


def reduce_vectors(encoded: Encoded, directions: Directions | None, pooling: int) -> Encoded:
    vectors = encoded.multi_vector
    if directions is not None:
        vectors = MultiVectors(projected(vectors.values, directions), vectors.offsets)
    return encoded.with_multi_vector(pool_tokens(vectors, pooling))


if __name__ == "__main__":
    main()
