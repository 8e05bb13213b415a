"""nDCG@10 of several models side by side, in each mode and in the recommended sums.

    python benchmarks/compare_models.py DATA CACHE MODEL [MODEL ...] [--split dev|test] [--shares 0.25 0.5 0.75]

A MODEL is a folder, "m3-mini" or a hub id. DATA holds the BEIR folders listed in ranking_sets.py; CACHE keeps the
scores, so that an interrupted run goes on. With --shares, interpolations between the weights of the first two models
are measured too: this chose the share of m3-mini's update, on dev splits. Printed are the figures of the first model,
and the differences of the others; on dev, also which model each collection would get if the others chose.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ranking_sets
import torch
from mode_weights import ndcg, weighted
from ranking_sets import Array, Scores

from m3_integrations import M3Encoder
from m3_integrations.core import MODES
from m3_integrations.data import JudgedCollection
from m3_integrations.encoders.base import EncoderConfig
from m3_integrations.errors import TextsTruncated
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.checkpoint import Checkpoint

COLUMNS = ("dense", "mean", "multi_vector", "dense + sparse", "all")
SHOWN = ("dense", "sparse", "multi_vector", "dense + sparse", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--shares", nargs="*", type=float, default=[], help="interpolations between the first two")
    parser.add_argument("--sets", nargs="*", help="names of collections, by default all")
    parser.add_argument("--passages", type=int, default=ranking_sets.PASSAGES, help="passages of a collection at most")
    parser.add_argument("--queries", type=int, default=ranking_sets.QUERIES, help="queries of a collection at most")
    parser.add_argument("--max-length", type=int, default=512, help="tokens read of a passage")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    found: dict[str, dict[str, list[float]]] = {}
    for name, encoder in encoders(options):
        found[name] = {each: figures(scores, encoder) for each, scores in score_sets(name, encoder, options)}
        print_model(name, found[name], next(iter(found.values())))
    if options.split == "dev" and len(found) > 1:
        print_choices({name: np.array(list(sets.values())) for name, sets in found.items()})


def encoders(options: argparse.Namespace) -> Iterator[tuple[str, M3Encoder]]:
    """Yield the models and the interpolations by name."""
    config = EncoderConfig(max_length=options.max_length, window_overlap="truncate")
    for model in options.models:
        yield Path(model).name, M3Encoder(checkpoints.read(model), config)
    for share in options.shares:
        start, end = (checkpoints.read(model) for model in options.models[:2])
        yield f"{share:g}", M3Encoder(interpolate(start, end, share), config)


def interpolate(start: Checkpoint, end: Checkpoint, share: float) -> Checkpoint:
    """Return a checkpoint with weights between those of two (WiSE-FT, arXiv 2109.01903); those of `start` change."""
    parts = [(start.backbone, end.backbone)]
    parts += [(getattr(start.heads, name), getattr(end.heads, name)) for name in ("sparse", "multi_vector")]
    with torch.no_grad():
        for first, second in parts:
            for weight, target in zip(first.parameters(), second.parameters(), strict=True):
                weight.lerp_(target, share)
    return replace(end, backbone=start.backbone, heads=start.heads)


def score_sets(name: str, encoder: M3Encoder, options: argparse.Namespace) -> Iterator[tuple[str, Scores]]:
    """Yield the scores of each collection, read from the cache or computed."""
    once = ranking_sets.EncodedOnce(encoder)
    for each, make in ranking_sets.collections(options.data, options.split):
        path = options.cache / name / f"{options.split}-{each.replace('/', '-').replace(' ', '-')}.npz"
        if options.sets and each not in options.sets:
            continue
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            collection = smaller(make(), options)
            scores: dict[str, Any] = ranking_sets.mode_scores(*once(collection))
            np.savez_compressed(path, grades=ranking_sets.grades(collection), **scores)
            print(f"scored {name} {each}", flush=True)
        yield each, dict(np.load(path))


def smaller(collection: JudgedCollection, options: argparse.Namespace) -> JudgedCollection:
    """Return a collection with fewer passages and queries; other passages than the answers stay if there is room."""
    if len(collection.passages) <= options.passages:
        return JudgedCollection(collection.passages, collection.queries[: options.queries])
    rng = np.random.default_rng(1)
    stored = {passage.id for passage in collection.passages}
    answers = sorted(stored & {id for query in collection.queries for id in query.relevant})
    chosen = set(rng.permutation(answers)[: options.passages].tolist())
    queries = [query for query in collection.queries if query.relevant.keys() & chosen]
    return JudgedCollection([each for each in collection.passages if each.id in chosen], queries[: options.queries])


def figures(scores: Scores, encoder: M3Encoder) -> list[float]:
    """Return nDCG@10 of each mode and of the recommended sums."""
    pair, every = encoder.weights_for(("dense", "sparse")), encoder.weights_for(MODES)
    named = [
        {("mean" if mode == "sparse" else mode): weight for mode, weight in each.items()} for each in (pair, every)
    ]
    return [ndcg(scores[mode], scores) for mode in COLUMNS[:3]] + [
        ndcg(weighted(each)(scores), scores) for each in named
    ]


def print_model(name: str, sets: Mapping[str, Sequence[float]], first: Mapping[str, Sequence[float]]) -> None:
    print(f"\n{name:18}" + "".join(f"{column:>16}" for column in SHOWN))
    for each, row in sets.items():
        print(f"{each:18}" + cells(row, first[each]))
    for group in ("", "xquad", "cross-lingual"):
        rows = [each for each in sets if in_group(each, group)]
        if rows:
            means = (np.mean([found[each] for each in rows], axis=0).tolist() for found in (sets, first))
            print(f"{f'mean {group} ({len(rows)})':18}" + cells(*means))


def in_group(name: str, group: str) -> bool:
    asked, _, stored = name.removeprefix("xquad ").partition("-")
    return name.startswith("xquad ") and (asked == stored) == (group == "xquad") if group else "xquad" not in name


def cells(row: Sequence[float], first: Sequence[float]) -> str:
    return "".join(f"{value:8.4f} {value - start:+7.4f}" for value, start in zip(row, first, strict=True))


def print_choices(found: Mapping[str, Array]) -> None:
    """Print the model that the other collections choose for each one, by the mean of all columns, and what it gives."""
    names, values = list(found), np.array(list(found.values()))
    merits = values.mean(axis=2)
    chosen = [int(np.argmax(np.delete(merits, i, axis=1).mean(axis=1))) for i in range(merits.shape[1])]
    kept = np.mean([values[model, i] - values[0, i] for i, model in enumerate(chosen)], axis=0)
    print("\nchosen leaving each collection out:", ", ".join(names[model] for model in chosen))
    print("mean difference with these:", " ".join(f"{gain:+.4f}" for gain in kept))


if __name__ == "__main__":
    main()
