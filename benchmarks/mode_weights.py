"""Choice of m3-mini's recommended weights for each set of modes, on dev splits.

    python benchmarks/mode_weights.py DATA [--scores FOLDER]

DATA holds the BEIR folders listed in SETS; at most 240 relevant passages of each, and 200 of the questions that they
answer, are used. examples/world is added, where most questions and answers differ in language, and pairs of languages
from Tatoeba. For each set of modes, the weights with the highest mean nDCG@10 minus the mean loss are chosen, where the
loss of a collection is how far the sum falls below its best single mode; then the table of the recommended weights.
XQuAD's pairs of languages are reported only: no weight is chosen by them. Sparse scores are those of the checkpoint's
convention, means over a question's weights for m3-mini.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder
from m3_integrations.core import MODES, Mode, score_mode
from m3_integrations.data import JudgedCollection, read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import Metric

Array = np.ndarray
Scores = Mapping[str, Array]  # (queries, passages) by mode, and the grades as "grades"
SETS = (
    *((name, "dev") for name in ("norquad_no", "cmrc2018_zh", "scifact", "afriqa_fr", "facqa_id", "faquad_pt")),
    *((name, "dev") for name in ("jaquad_ja", "iapp_th", "stackfaq", "medquad", "long_qmsum_en")),
    *((f"tatoeba/{language}", "test") for language in ("ita", "tur", "kor", "swh")),
)
WORLD = Path(__file__).parents[1] / "examples" / "world"
REPORTED = ("ar", "de", "en", "es", "hi", "zh")  # languages of XQuAD
GRID = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.36, 0.42, 0.5, 0.6, 0.8, 1.0)
PAIRS: tuple[tuple[Mode, Mode], ...] = tuple(itertools.combinations(MODES, 2))
LEADER: Mapping[tuple[Mode, ...], Mode] = {("dense", "sparse"): "dense"}  # has weight 1; elsewhere multi_vector
PASSAGES, QUERIES = 240, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scores", type=Path, help="folder that keeps the scores of each collection")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained()
    collections = {}
    for name, folder, split in [
        *((name, arguments.data / name, split) for name, split in SETS),
        ("world", WORLD, "dev"),
    ]:
        collections[name] = load_scores(name, folder, split, encoder, arguments.scores)
        print(
            f"{name:14}" + "".join(f" {mode} {ndcg(collections[name], {mode: 1.0}):.4f}" for mode in MODES), flush=True
        )
    reported = load_xquad(arguments.data, encoder, arguments.scores)
    for modes in (*PAIRS, MODES):
        print(f"\n{' + '.join(modes)}: best weights of a grid")
        for weights in best_weights(modes, list(collections.values()))[:5]:
            print_row(weights, list(collections.values()))
        print("recommended weights")
        print_table(encoder.weights_for(modes), collections)
        print_table(encoder.weights_for(modes), reported)


def load_scores(name: str, folder: Path, split: str, encoder: M3Encoder, kept: Path | None) -> Scores:
    return keep_scores(name.replace("/", "-"), read_beir(folder, split), encoder, kept)


def keep_scores(name: str, collection: JudgedCollection, encoder: M3Encoder, kept: Path | None) -> Scores:
    path = kept and kept / f"{name}.npz"
    if path is not None and path.is_file():
        return dict(np.load(path))
    scores = compute_scores(encoder, sample(collection))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **scores)  # type: ignore[arg-type]  # numpy types its keywords as its own options
    return scores


def load_xquad(data: Path, encoder: M3Encoder, kept: Path | None) -> dict[str, Scores]:
    """Return the scores of questions in each language on the passages in each."""
    found = {}
    collections = {language: read_beir(data / "xquad" / language, "test") for language in REPORTED}
    for asked, stored in itertools.product(REPORTED, repeat=2):
        mixed = JudgedCollection(collections[stored].passages, collections[asked].queries)  # the ids are the same
        found[f"xquad {asked}-{stored}"] = keep_scores(f"xquad-{asked}-{stored}", mixed, encoder, kept)
    return found


def sample(collection: JudgedCollection) -> JudgedCollection:
    rng = np.random.default_rng(0)
    answers = sorted({id for query in collection.queries for id in query.relevant})
    chosen = set(rng.permutation(answers)[:PASSAGES].tolist())
    passages = [passage for passage in collection.passages if passage.id in chosen]
    queries = [query for query in collection.queries if query.relevant.keys() & chosen]
    return JudgedCollection(passages, [queries[i] for i in rng.permutation(len(queries))[:QUERIES]])


def compute_scores(encoder: M3Encoder, collection: JudgedCollection) -> Scores:
    queries = encoder.encode_queries([query.text for query in collection.queries])
    passages = encoder.encode_passages([passage.text for passage in collection.passages])
    grades = [[query.relevant.get(passage.id, 0.0) for passage in collection.passages] for query in collection.queries]
    return {"grades": np.array(grades), **{mode: score_mode(mode, queries, passages) for mode in MODES}}


def best_weights(modes: Sequence[Mode], collections: Sequence[Scores]) -> list[dict[Mode, float]]:
    """Return the weights of the grid, best first."""
    leader = LEADER.get(tuple(modes), "multi_vector")
    others = [mode for mode in modes if mode != leader]
    grid = [dict(zip(others, row, strict=True)) | {leader: 1.0} for row in itertools.product(GRID, repeat=len(others))]
    return sorted(grid, key=lambda weights: -float(np.mean(list(merits(weights, modes, collections)))))


def merits(weights: Mapping[Mode, float], modes: Sequence[Mode], collections: Sequence[Scores]) -> Iterator[float]:
    for scores in collections:
        found = ndcg(scores, weights)
        yield found + min(0.0, found - best_single(scores, modes))


def losses(weights: Mapping[Mode, float], collections: Sequence[Scores]) -> Array:
    """Return how far the sum is below the best of its modes, 0 or less, for each collection."""
    return np.array([min(0.0, ndcg(scores, weights) - best_single(scores, list(weights))) for scores in collections])


def best_single(scores: Scores, modes: Sequence[Mode]) -> float:
    return max(ndcg(scores, {mode: 1.0}) for mode in modes)


def ndcg(scores: Scores, weights: Mapping[Mode, float]) -> float:
    total = sum(np.float32(weight) * scores[mode] for mode, weight in weights.items())
    order = np.argsort(-total, axis=1, kind="stable")[:, :10]
    metric, ids = Metric.parse("ndcg@10"), [str(i) for i in range(scores["grades"].shape[1])]
    relevant = [{ids[i]: float(row[i]) for i in np.flatnonzero(row)} for row in scores["grades"]]
    return float(np.mean([metric([ids[i] for i in row], each) for row, each in zip(order, relevant, strict=True)]))


def print_row(weights: Mapping[Mode, float], collections: Sequence[Scores]) -> None:
    found, lost = [ndcg(scores, weights) for scores in collections], losses(weights, collections)
    shown = " ".join(f"{mode} {weights[mode]:<5}" for mode in MODES if mode in weights)
    print(f"  {shown} mean {np.mean(found):.4f}, mean loss {-lost.mean():.4f}, worst {lost.min():+.4f}")


def print_table(weights: Mapping[Mode, float], collections: Mapping[str, Scores]) -> None:
    for name, scores in collections.items():
        found = ndcg(scores, weights)
        print(f"  {name:14} {found:.4f} {found - best_single(scores, list(weights)):+.4f}")
    print_row(weights, list(collections.values()))


if __name__ == "__main__":
    main()
