"""Passages in one set of words and questions mostly in another; as a script, fits without end, to be killed."""

from __future__ import annotations

import sys

import numpy as np

from m3_integrations.core.types import Passage, Query
from m3_integrations.evaluation.metrics import evaluate
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder()
_TOPICS = [np.random.default_rng(i).choice(200, 5, replace=False) for i in range(60)]
PASSAGES = [Passage(f"p{i:02}", " ".join(f"w{word}" for word in topic)) for i, topic in enumerate(_TOPICS)]


def filled(index):
    index.add(PASSAGES, ENCODER.encode_passages([passage.text for passage in PASSAGES]))
    return index


def asked(n, tag, seed):
    """Questions by one word of their passage, and three that stand for its words and occur in no passage."""
    rng = np.random.default_rng(seed)
    queries = []
    for i in range(n):
        which = int(rng.integers(0, len(PASSAGES)))
        words = [f"s{word}" for word in rng.choice(_TOPICS[which], 3, replace=False)]
        queries.append(Query(f"{tag}{i}", f"{' '.join(words)} w{_TOPICS[which][0]}", {f"p{which:02}": 1.0}))
    return queries


def everything(index):
    return index.vectors(index.ids())


def nothing_differs(a, b):
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(_arrays(a), _arrays(b), strict=True))


def _arrays(encoded):
    sparse, late = encoded.sparse, encoded.multi_vector
    return encoded.dense, sparse.data, sparse.indices.astype(np.int64), sparse.indptr, late.values, late.offsets


def score(index, queries, plan, encoder=ENCODER):
    found = Retriever(encoder, index, plan).retrieve_many([query.text for query in queries])
    run = {query.id: [match.passage.id for match in each] for query, each in zip(queries, found, strict=True)}
    return evaluate(run, queries, ["ndcg@10"])["ndcg@10"]


if __name__ == "__main__":
    with LocalIndex.open(sys.argv[1], ENCODER) as opened:
        nudger = Nudger(ENCODER, opened)
        while True:  # until it is killed
            nudger.fit(asked(80, "t", 1), asked(20, "v", 2), modes=("sparse", "multi_vector"))
            print("fitted", flush=True)
            nudger.revert()
