"""The layout of BGE-M3: linear heads in files of their own, and our token prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import read_tensors
from m3_integrations.models.transformer import Heads

SPARSE_HEAD, MULTI_VECTOR_HEAD, TOKEN_PRIOR = "sparse_linear", "colbert_linear", "token_prior"


def read_heads(folder: Path, hidden: int, vocabulary: int) -> Heads:
    """Read the heads of a folder.

    Args:
        folder: Folder of the checkpoint.
        hidden: Hidden size of its transformer.
        vocabulary: Number of tokens.

    Raises:
        CheckpointError: If a file holds anything else than such a head.
    """
    prior = head_file(folder, TOKEN_PRIOR)
    sparse = _read_linear(folder, SPARSE_HEAD, hidden)
    vectors = _read_linear(folder, MULTI_VECTOR_HEAD, hidden)
    return Heads(
        sparse=None if prior and sparse and _is_zero(sparse) else sparse,
        token_prior=_read_prior(prior, vocabulary) if prior else None,
        multi_vector=nn.Identity() if vectors and _is_identity(vectors) else vectors,
    )


def _read_prior(path: Path, vocabulary: int) -> Tensor:
    weight = read_tensors(path).get("weight")
    if weight is None or weight.ndim != 1 or len(weight) < vocabulary:
        raise CheckpointError(f"{path} must hold a 'weight' of at least {vocabulary} values, one per token")
    return weight.float()


def _read_linear(folder: Path, name: str, hidden: int) -> nn.Linear | None:
    path = head_file(folder, name)
    if path is None:
        return None
    tensors = read_tensors(path)
    weight = tensors.get("weight")
    outputs = 1 if name == SPARSE_HEAD else "width"
    fits = weight is not None and weight.ndim == 2 and weight.shape[1] == hidden and outputs in ("width", len(weight))
    if weight is None or not fits or tensors.keys() - {"weight", "bias"}:
        held = {key: tuple(value.shape) for key, value in tensors.items()}
        raise CheckpointError(f"{path} must hold a 'weight' of ({outputs}, {hidden}) and a 'bias', but holds {held}")
    return linear_of(tensors)


def linear_of(tensors: Mapping[str, Tensor]) -> nn.Linear:
    """Return a frozen linear layer of these weights, in float32."""
    outputs, inputs = tensors["weight"].shape
    linear = nn.Linear(inputs, outputs, bias="bias" in tensors, device="meta")
    linear.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return linear.requires_grad_(False)


def head_file(folder: Path, name: str) -> Path | None:
    """Return the file of a head; None if there is none."""
    files = (folder / f"{name}.safetensors", folder / f"{name}.pt")
    return next((path for path in files if path.is_file()), None)


def _is_zero(linear: nn.Linear) -> bool:
    return not any(bool(value.any()) for value in linear.state_dict().values())


def _is_identity(linear: nn.Linear) -> bool:
    size, width = linear.weight.shape
    unbiased = linear.bias is None or not bool(linear.bias.any())
    return size == width and unbiased and torch.equal(linear.weight, torch.eye(size))
