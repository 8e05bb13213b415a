"""The layout of sentence-transformers' MultiVectorEncoder: late interaction with a projection of every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import UNBOUNDED, inside, read_object, read_tensors
from m3_integrations.models.heads.late_interaction import LateInteraction, QueryExpansion
from m3_integrations.models.layouts.base import FolderLayout
from m3_integrations.models.layouts.bge_m3 import linear_of
from m3_integrations.models.layouts.sentence_transformers import check_normalize, read_modules, read_prompts
from m3_integrations.models.layouts.settings import read_model_settings, read_settings, read_transformer_settings
from m3_integrations.models.layouts.token_classification import warn_of_unread
from m3_integrations.models.layouts.transformers_folder import Backbone
from m3_integrations.models.transformer import Heads

_READS = "this package reads Transformer, Dense layers of tokens, MultiVectorMask and Normalize"
_EXPANSION_KEYS = {"strategy", "attend", "token", "length"}
_LENGTHS = ("query_length", "document_length")
_MASK = {"skiplist_words", "skiplist_tasks", "keep_only_token_ids"}
_DENSE = {"in_features", "out_features", "bias", "activation_function", "use_residual"} | {
    "module_input_name",
    "module_output_name",
}
_IDENTITIES = ("torch.nn.modules.linear.Identity", "torch.nn.Identity")


def is_multi_vector_encoder(folder: Path) -> bool:
    """Return whether a folder states that it is a MultiVectorEncoder."""
    config = read_object(folder / "config_sentence_transformers.json", default={})
    return config.get("model_type") == "MultiVectorEncoder" or "MultiVectorMask" in dict(read_modules(folder))


def read_layout(folder: Path) -> FolderLayout:
    """Read the layout of a MultiVectorEncoder.

    Raises:
        CheckpointError: If it has other modules than those of ColBERT, or states something that is not supported.
    """
    config = read_model_settings(folder)
    if config.get("similarity_fn_name") not in (None, "maxsim", "meanmaxsim"):
        named = config["similarity_fn_name"]
        raise CheckpointError(f"{folder} compares token vectors by {named!r}; supported are 'maxsim' and 'meanmaxsim'")
    modules = read_modules(folder)
    kinds = [kind for kind, _ in modules]
    dense = [inside(folder, path) for kind, path in modules if kind == "Dense"]
    ends = sorted(kinds[1 + len(dense) :])
    if kinds[:1] != ["Transformer"] or set(kinds[1 : 1 + len(dense)]) - {"Dense"} or "Normalize" not in ends:
        raise CheckpointError(f"{folder} has the modules {kinds}; {_READS}, in this order")
    if set(ends) - {"MultiVectorMask", "Normalize"} or len(set(ends)) != len(ends):
        raise CheckpointError(f"{folder} has the modules {kinds}; {_READS}, in this order")
    of_kind = {kind: inside(folder, path) for kind, path in modules}
    check_normalize(of_kind["Normalize"], "token_embeddings")
    root = inside(folder, modules[0][1])
    settings = read_transformer_settings(root, *_LENGTHS, "query_expansion")
    mask = read_settings(of_kind["MultiVectorMask"] / "config.json", _MASK) if "MultiVectorMask" in of_kind else {}
    if mask.get("keep_only_token_ids"):
        raise CheckpointError(f"{folder} keeps vectors of some token ids only, as for images, which is not supported")

    def late(tokenizer: PreTrainedTokenizerFast) -> LateInteraction:
        return LateInteraction(
            query_length=settings.get("query_length"),
            passage_length=settings.get("document_length"),
            expansion=_read_expansion(settings.get("query_expansion"), tokenizer),
            skiplist=mask.get("skiplist_words") or (),
            skipped_in=mask.get("skiplist_tasks") or ("document",),
        )

    length = settings.get("document_length") or settings.get("max_seq_length") or UNBOUNDED
    return late_layout(root, length, read_prompts(config), dense, late)


def late_layout(
    root: Path,
    max_length: int,
    prompts: Mapping[str, str],
    dense: Sequence[Path],
    late: Callable[[PreTrainedTokenizerFast], LateInteraction],
    markers: tuple[str, ...] = (),
) -> FolderLayout:
    """Return the layout of a late-interaction checkpoint.

    Args:
        root: Folder of the transformer.
        max_length: Longest passage in tokens.
        prompts: Prefixes by the names of `CheckpointConventions`.
        dense: Folders of the layers that project token vectors, in order.
        late: Function from the tokenizer to `LateInteraction`.
        markers: Prefixes that are one token each.
    """

    def read_heads(backbone: Backbone, _tokenizer: PreTrainedTokenizerFast) -> Heads:
        warn_of_unread(root, backbone.others)
        head = read_projection(dense, int(backbone.model.config.hidden_size))
        return Heads(dense=False, multi_vector=head)

    stated = {
        "pooling": None,
        "normalise": False,
        "max_length": max_length,
        "weights": {"multi_vector": 1.0},
        **prompts,
    }
    return FolderLayout(root, stated, read_heads, markers, late)


def _read_expansion(stated: Any, tokenizer: PreTrainedTokenizerFast) -> QueryExpansion | None:
    if stated is None:
        return None
    if (
        not isinstance(stated, Mapping)
        or set(stated) - _EXPANSION_KEYS
        or stated.get("strategy") not in ("fixed", "min")
    ):
        raise ValueError(
            f"query_expansion has a strategy of 'fixed' or 'min', a length, attend and token, got {stated!r}"
        )
    return QueryExpansion(
        length=stated.get("length", 0),
        token=stated.get("token") or expansion_token(tokenizer),
        attend=stated.get("attend", False),
        truncate=stated["strategy"] == "fixed",
    )


def expansion_token(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the token that expands queries by default: the mask token, or the last one of a text."""
    return str(tokenizer.mask_token or tokenizer.eos_token)


def read_projection(layers: Sequence[Path], hidden: int) -> nn.Linear | nn.Identity:
    """Read layers that project token vectors, as one linear layer.

    Args:
        layers: Folders of Dense modules, in order.
        hidden: Hidden size of the transformer.

    Raises:
        CheckpointError: If a layer is not linear, or layers do not fit each other.
    """
    if not layers:
        return nn.Identity()
    weight, bias = torch.eye(hidden, dtype=torch.float64), torch.zeros(hidden, dtype=torch.float64)
    for layer in layers:
        matrix, offset = _read_dense(layer, len(weight))
        weight, bias = matrix @ weight, matrix @ bias + offset
    tensors = {"weight": weight.float(), "bias": bias.float()}
    return linear_of(tensors if bool(bias.any()) else {"weight": tensors["weight"]})


def _read_dense(folder: Path, inputs: int) -> tuple[Tensor, Tensor]:
    """Return the matrix and the offset of a Dense module, with its residual connection, in float64."""
    config = _read_dense_settings(folder)
    file = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), None
    )
    if file is None:
        raise CheckpointError(f"{folder} lacks model.safetensors; download it again")
    tensors = {name: value.double() for name, value in read_tensors(file).items()}
    weight, residual = tensors.get("linear.weight"), tensors.get("residual.weight")
    held = {name: tuple(value.shape) for name, value in tensors.items()}
    known = {"linear.weight", "linear.bias", "residual.weight"}
    if weight is None or weight.ndim != 2 or weight.shape[1] != inputs or tensors.keys() - known:
        raise CheckpointError(f"{file} must hold a 'linear.weight' of (width, {inputs}), but holds {held}")
    stated = {"in_features": inputs, "out_features": len(weight), "bias": "linear.bias" in tensors}
    if wrong := [key for key, value in stated.items() if config.get(key, value) != value]:
        raise CheckpointError(f"{folder} states {wrong[0]}={config[wrong[0]]!r}, but its file holds {held}")
    offset = tensors.get("linear.bias", torch.zeros(len(weight), dtype=torch.float64))
    if len(offset) != len(weight) or (residual is not None and residual.shape != weight.shape):
        raise CheckpointError(f"{file} holds tensors of different widths: {held}")
    if config.get("use_residual"):
        if residual is None and len(weight) != inputs:
            raise CheckpointError(f"{file} lacks 'residual.weight', which its config.json states; it holds {held}")
        weight = weight + (torch.eye(inputs, dtype=torch.float64) if residual is None else residual)
    elif residual is not None:
        raise CheckpointError(f"{file} holds 'residual.weight', but its config.json states no use_residual")
    return weight, offset


def _read_dense_settings(folder: Path) -> dict[str, Any]:
    config = read_settings(folder / "config.json", _DENSE)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "token_embeddings"):
            raise CheckpointError(
                f"{folder} applies Dense to {config[key]!r}; supported is 'token_embeddings' in late interaction"
            )
    activation = config.get("activation_function")
    if activation not in _IDENTITIES:
        raise CheckpointError(f"{folder} has the activation {activation!r}; supported are linear layers, with Identity")
    return config
