"""Choice of m3-mini's recommended weights for each set of modes, on dev splits, and tables of what they give.

    python benchmarks/mode_weights.py DATA CACHE [--dtype bfloat16] [--backend openvino] [--split dev|test]

DATA holds the BEIR folders listed in ranking_sets.py, CACHE keeps the scores of each collection. On dev, for each set
of modes, the weights with the highest mean nDCG@10 minus the mean loss are chosen; the loss of a collection is how
far the sum falls below its best single mode; the same is done leaving out each collection in turn, which is then
measured with what the others choose. Then the tables: fusion rules side by side, and each collection with these rules.
The test split is for these tables alone. The sparse mode is shown with each of its conventions, beside BM25 over words.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ranking_sets import Array, Scores, load_sets

from m3_integrations import M3Encoder
from m3_integrations.core import MODES, Mode
from m3_integrations.core.scoring import reciprocal_ranks
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import Metric

GRID = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.42, 0.5, 0.6, 0.8, 1.0)
PAIRS: tuple[tuple[Mode, Mode], ...] = tuple(itertools.combinations(MODES, 2))
LEADER: Mapping[tuple[Mode, ...], Mode] = {("dense", "sparse"): "dense"}  # has weight 1; elsewhere multi_vector
EARLIER = {"dense": 0.05, "sum": 0.18, "multi_vector": 1.0}  # of all sets of modes, before each had its own
Rule = Callable[[Scores], Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--dtype")
    parser.add_argument("--backend", default="torch")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(dtype=arguments.dtype, backend=arguments.backend)
    sets = load_sets(arguments.data, arguments.split, encoder, arguments.cache)
    print_sparse(sets)
    for modes in (*PAIRS, MODES):
        print(f"\n{' + '.join(modes)}")
        if arguments.split == "dev":
            for sparse in ("mean", "idf") if "sparse" in modes else ("mean",):
                print_choice(modes, sparse, list(sets.values()))
        for name, rule in rules(encoder, modes).items():
            print_row(name, rule, modes, list(sets.values()))
        print_table(rules(encoder, modes), modes, sets)


def rules(encoder: M3Encoder, modes: Sequence[Mode]) -> dict[str, Rule]:
    """Return the fusion rules to compare for a sum of these modes."""
    recommended = encoder.weights_for(modes)
    found = {"earlier weights, sums": weighted({_name(mode, "sum"): EARLIER[_name(mode, "sum")] for mode in modes})}
    for sparse in ("mean", "idf"):
        found[f"recommended, {sparse}"] = weighted({_name(mode, sparse): recommended[mode] for mode in modes})
    return found | {"rank fusion": lambda scores: rank_fusion(scores, modes), "z-scores": lambda s: z_scores(s, modes)}


def _name(mode: Mode, sparse: str) -> str:
    return sparse if mode == "sparse" else mode


def weighted(weights: Mapping[str, float]) -> Rule:
    return lambda scores: sum(np.float32(weight) * scores[name] for name, weight in weights.items())  # type: ignore[return-value]


def rank_fusion(scores: Scores, modes: Sequence[Mode]) -> Array:
    """Return the scores of `SearchPlan(fusion="rrf")` over all passages."""
    ids = [f"{i:05}" for i in range(scores["grades"].shape[1])]
    total = np.zeros(scores["grades"].shape)
    for mode in modes:
        for row, each in enumerate(scores[_name(mode, "mean")].tolist()):
            total[row] += reciprocal_ranks(ids, each, skip_zeros=mode == "sparse")
    return total


def z_scores(scores: Scores, modes: Sequence[Mode]) -> Array:
    parts = [scores[_name(mode, "mean")] for mode in modes]
    return sum((p - p.mean(axis=1, keepdims=True)) / (p.std(axis=1, keepdims=True) + 1e-9) for p in parts)  # type: ignore[return-value]


def print_choice(modes: Sequence[Mode], sparse: str, sets: Sequence[Scores]) -> None:
    """Print the best weights of the grid, and how well weights do on collections that did not choose them."""
    leader = LEADER.get(tuple(modes), "multi_vector")
    others = [mode for mode in modes if mode != leader]
    grid = [dict(zip(others, row, strict=True)) | {leader: 1.0} for row in itertools.product(GRID, repeat=len(others))]
    named = [{_name(mode, sparse): weight for mode, weight in weights.items()} for weights in grid]
    best = np.array([best_single(scores, modes) for scores in sets])
    found = np.array([[ndcg(weighted(weights)(scores), scores) for scores in sets] for weights in named])
    merits = found + np.minimum(0.0, found - best)
    for i in np.argsort(-merits.mean(axis=1))[:5]:
        print_row(f"grid: {named[i]}", weighted(named[i]), modes, sets)
    if len(sets) > 1:
        left_out = [int(np.argmax(np.delete(merits, i, axis=1).mean(axis=1))) for i in range(len(sets))]
        kept = np.array([found[chosen, i] for i, chosen in enumerate(left_out)])
        print(f"  {'leaving each collection out, ' + sparse:42} {summary(kept, best)}")


def print_sparse(sets: Mapping[str, Scores]) -> None:
    """Print nDCG@10 of each mode alone and of BM25, by collection."""
    names = ("dense", "multi_vector", "sum", "idf", "bm25")
    print(f"{'':18}" + "".join(f"{name:>14}" for name in names))
    for collection, scores in sets.items():
        print(f"{collection:18}" + "".join(f"{ndcg(scores[name], scores):14.4f}" for name in names))
    means = [np.mean([ndcg(scores[name], scores) for scores in sets.values()]) for name in names]
    print(f"{'mean':18}" + "".join(f"{each:14.4f}" for each in means))


def print_row(name: str, rule: Rule, modes: Sequence[Mode], sets: Sequence[Scores]) -> None:
    found = np.array([ndcg(rule(scores), scores) for scores in sets])
    print(f"  {name:42} {summary(found, np.array([best_single(scores, modes) for scores in sets]))}")


def summary(found: Array, best: Array) -> str:
    losses = np.minimum(0.0, found - best)
    return f"mean {found.mean():.4f}, mean loss {-losses.mean():.4f}, worst {losses.min():+.4f}"


def print_table(named: Mapping[str, Rule], modes: Sequence[Mode], sets: Mapping[str, Scores]) -> None:
    for collection, scores in sets.items():
        best = best_single(scores, modes)
        shown = (ndcg(rule(scores), scores) for rule in named.values())
        print(f"  {collection:18}" + "".join(f" {found:.4f} ({found - best:+.4f})" for found in shown))


def best_single(scores: Scores, modes: Sequence[Mode]) -> float:
    return max(ndcg(scores[_name(mode, "mean")], scores) for mode in modes)


def ndcg(scored: Array, scores: Scores) -> float:
    """Return the mean nDCG@10; passages without a score, which sparse search does not find, are left out."""
    order = np.argsort(-scored, axis=1, kind="stable")[:, :10]
    metric = Metric.parse("ndcg@10")
    return float(np.mean(list(_each(metric, order, scored, scores["grades"]))))


def _each(metric: Metric, order: Array, scored: Array, grades: Array) -> Iterator[float]:
    for row, ranked in enumerate(order):
        relevant = {str(i): float(grades[row, i]) for i in np.flatnonzero(grades[row])}
        yield metric([str(i) for i in ranked if scored[row, i] != 0], relevant)


if __name__ == "__main__":
    main()
