"""The layout of GTE: a token classifier of one label is the sparse head (mGTE, arXiv 2407.19669, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig

from m3_integrations.core.errors import CheckpointError, PartNotRead
from m3_integrations.models.checkpoint_files import read_named_tensors
from m3_integrations.models.layouts.bge_m3 import linear_of

_CLASSIFIER = frozenset({"classifier.weight", "classifier.bias"})
_MASKED_LM = ("cls.predictions.", "cls.seq_relationship.", "lm_head.", "vocab_", "head.", "decoder.", "generator_")
_TASKS = ("ForSequenceClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction")
SUPPORTED = "this package reads encoders with pooling, and the sparse and multi-vector heads that docs/models.md lists"


def read_sparse_head(folder: Path, config: PreTrainedConfig, others: Collection[str]) -> nn.Linear | None:
    """Read the token classifier of a folder as a sparse head; refuse other heads, and warn of unused ones.

    Args:
        folder: Folder in the transformers layout.
        config: Its configuration.
        others: Names of tensors in its weight files that the backbone does not have.

    Returns:
        A linear layer hidden -> 1; None without a classifier.

    Raises:
        CheckpointError: If it holds a head of another kind.

    Warns:
        PartNotRead: If it holds tensors that no mode uses.
    """
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    unread = {name for name in others if not _is_unimportant(name)}
    if architecture.endswith(_TASKS) and unread:
        raise CheckpointError(f"{folder} is a {architecture}, not an encoder; {SUPPORTED}")
    if architecture == "HF_ColBERT":
        raise CheckpointError(
            f"{folder} is in Stanford ColBERT's own layout; load it with sentence_transformers.MultiVectorEncoder and "
            "call save_pretrained(folder)"
        )
    if "classifier.weight" in unread:
        return _read_classifier(folder, int(config.hidden_size), unread)
    if architecture.endswith("ForTokenClassification") and unread:
        raise CheckpointError(f"{folder} is a {architecture} without classifier.weight; download it again")
    warn_of_unread(folder, others)
    return None


def _read_classifier(folder: Path, hidden: int, unread: Collection[str]) -> nn.Linear:
    if more := sorted(set(unread) - _CLASSIFIER):
        raise CheckpointError(f"{folder} has a token classifier of more than one layer, with {more[:3]}; {SUPPORTED}")
    tensors = read_named_tensors(folder, _CLASSIFIER & set(unread))
    labels = len(tensors["classifier.weight"])
    if tensors["classifier.weight"].shape != (1, hidden):
        raise CheckpointError(
            f"{folder} classifies tokens into {labels} labels, which are no lexical weights; {SUPPORTED}"
        )
    return linear_of({name.removeprefix("classifier."): value for name, value in tensors.items()})


def warn_of_unread(folder: Path, others: Collection[str]) -> None:
    """Warn of tensors that no mode uses.

    Args:
        folder: Folder in the transformers layout.
        others: Names of tensors in its weight files that neither the backbone nor a head has.
    """
    unread = sorted(name for name in others if not _is_unimportant(name))
    if not unread:
        return
    masked_lm = all(name.startswith(_MASKED_LM) for name in unread)
    part = "a masked-language-model head" if masked_lm else f"weights such as {unread[:3]}"
    hint = "; a sparse mode from it needs sentence-transformers' SparseEncoder layout" if masked_lm else ""
    warnings.warn(f"{folder} has {part}, which no mode uses{hint}", PartNotRead, stacklevel=7)


def _is_unimportant(name: str) -> bool:
    """Return whether a tensor is a pooler, used only by classifiers, or a buffer that transformers recomputes."""
    return "pooler." in name or name.endswith(("position_ids", "inv_freq", "token_type_ids"))
