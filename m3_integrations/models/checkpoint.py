"""Checkpoints in the layouts of BGE-M3, sentence-transformers, transformers and our own.

Our layout is BGE-M3's with `m3_config.json`, which states what BGE-M3's layout leaves to the caller (pooling,
normalization, prefixes, recommended mode weights), and `token_prior.safetensors` for a token prior.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from m3_integrations.core.encoded import Mode
from m3_integrations.core.errors import CheckpointError, HeadsMissing, M3Error, PartNotRead
from m3_integrations.models.checkpoint_files import UNBOUNDED, read_error, read_object, read_tensors
from m3_integrations.models.conventions import CheckpointConventions, PivotedLengthNormalization, Pooling, SpecialTokens
from m3_integrations.models.heads.late_interaction import LateInteraction
from m3_integrations.models.layouts import multi_vector_encoder, pylate, sparse_encoder
from m3_integrations.models.layouts.base import FolderLayout
from m3_integrations.models.layouts.bge_m3 import (
    MULTI_VECTOR_HEAD,
    SPARSE_HEAD,
    TOKEN_PRIOR,
    head_file,
    linear_of,
    read_heads,
)
from m3_integrations.models.layouts.sentence_transformers import sentence_transformers_conventions, stated_conventions
from m3_integrations.models.layouts.sparse_encoder import QUERY_WEIGHTS, TERM_EXPANSION
from m3_integrations.models.layouts.token_classification import read_sparse_head
from m3_integrations.models.layouts.transformers_folder import (
    Backbone,
    bare,
    count_positions,
    quiet_transformers,
    read_backbone,
    read_tokenizer,
    register_markers,
)
from m3_integrations.models.mini import backbone as mini_backbone
from m3_integrations.models.mini.settings import HEADS, NAME, mini_conventions
from m3_integrations.models.transformer import Heads

OWN_FILE = "m3_config.json"
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.pt", "*.safetensors", "*.bin"]
_NOT_FROM_HUB = ["onnx/*", "openvino/*", "*.onnx", "tf_model*", "flax_model*", "training_args.bin", "optimizer*"]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: weights, tokenizer and conventions.

    Attributes:
        name: The name that the user passed.
        folder: Its folder; None for m3-mini.
        narrow_head: Multi-vector head in float32 if it is not that of the folder.
        origins: Checkpoints of the heads by mode, if they come from several; backbone and tokenizer are equal in all.
    """

    name: str
    backbone: PreTrainedModel
    heads: Heads
    tokenizer: Tokenizer
    special: SpecialTokens
    token_names: Mapping[str, str]
    conventions: CheckpointConventions
    folder: Path | None  # None for m3-mini
    narrow_head: nn.Linear | None = None
    origins: Mapping[Mode, Checkpoint] | None = None

    def hash_weights(self) -> str:
        """Return 64 hex digits over stored weights and tokenizer.

        They are equal in every file format and precision.
        """
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for name, values in sorted(self._stored_tensors(), key=lambda pair: pair[0]):
            digest.update(f"{name}{tuple(values.shape)}".encode())
            digest.update(_bytes(values))
        return digest.hexdigest()

    def stored(self) -> tuple[PreTrainedModel, Heads]:
        """Return backbone and heads in float32.

        They are read again if they were loaded in another precision.
        """
        if self.backbone.dtype == torch.float32:
            return self.backbone, self.heads
        if self.origins is not None:
            stored = {mode: origin.stored() for mode, origin in self.origins.items()}
            heads = combine_heads({mode: heads for mode, (_, heads) in stored.items()})
            return next(iter(stored.values()))[0], heads
        again = read_mini() if self.folder is None else _read_folder(self.name, self.folder, self.conventions.pooling)
        if self.narrow_head is None:
            return again.backbone, again.heads
        return again.backbone, replace(again.heads, multi_vector=self.narrow_head)

    def hash_backbone(self) -> str:
        """Return 64 hex digits over the transformer's weights and the tokenizer, without heads."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for name, values in sorted(self.stored()[0].state_dict().items()):
            digest.update(f"{name}{tuple(values.shape)}".encode())
            digest.update(_bytes(values))
        return digest.hexdigest()

    def narrowed(self, directions: npt.NDArray[np.float64]) -> Checkpoint:
        """Return a checkpoint that shares the weights and projects its multi-vectors.

        Args:
            directions: Projection, shape (new dim, dim). The new head is one linear layer, directions @ weight and
                directions @ bias, in float32.

        Returns:
            A checkpoint with the projected head.
        """
        backbone, heads = self.stored()
        assert heads.multi_vector is not None  # callers request available modes only
        projection = torch.from_numpy(directions)
        head = _state(_as_linear(heads.multi_vector, int(backbone.config.hidden_size)))
        projected = {name: (projection @ value.double()).float() for name, value in head.items()}
        # Two heads: the one in `heads` is converted to the encoder's precision, the other stays in float32.
        return replace(
            self, heads=replace(self.heads, multi_vector=linear_of(projected)), narrow_head=linear_of(projected)
        )

    def _stored_tensors(self) -> Iterator[tuple[str, Tensor]]:
        backbone, heads = self.stored()
        yield from backbone.state_dict().items()
        yield from _head_tensors(heads).items()
        if heads.expansion is not None:
            options = json.dumps(asdict(heads.expansion.options), sort_keys=True)
            for name, value in sparse_encoder.expansion_tensors(heads.expansion, backbone).items():
                yield f"{TERM_EXPANSION}.{name}.{options}", value


def combine_heads(parts: Mapping[Mode, Heads]) -> Heads:
    """Return the heads of modes from different checkpoints with one backbone."""
    lexical, late = parts.get("sparse", Heads()), parts.get("multi_vector", Heads())
    return Heads(
        sparse=lexical.sparse,
        token_prior=lexical.token_prior,
        multi_vector=late.multi_vector,
        dense="dense" in parts,
        expansion=lexical.expansion,
        query_weights=lexical.query_weights,
    )


def combine(parts: Mapping[Mode, Checkpoint]) -> Checkpoint:
    """Return one checkpoint of modes from different ones, whose backbones and tokenizers are equal.

    Args:
        parts: Checkpoint of each mode; their lengths and prefixes are equal.
    """
    first = next(iter(parts.values()))
    conventions = replace(first.conventions, pooling=None, lexical_length=None, max_terms=None, truncate_dim=None)
    if "dense" in parts:
        stated = parts["dense"].conventions
        conventions = replace(
            conventions, pooling=stated.pooling, normalise=stated.normalise, truncate_dim=stated.truncate_dim
        )
    if "sparse" in parts:
        stated = parts["sparse"].conventions
        conventions = replace(
            conventions,
            lexical_length=stated.lexical_length,
            max_terms=stated.max_terms,
            sparse_score=stated.sparse_score,
        )
    heads = combine_heads({mode: part.heads for mode, part in parts.items()})
    return replace(first, heads=heads, conventions=conventions, narrow_head=None, origins=dict(parts))


def read(model: str, *, revision: str | None = None, pooling: Pooling | None = None) -> Checkpoint:
    """Read a checkpoint in float32.

    Args:
        model: "m3-mini", a local folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        pooling: Pooling of a plain transformers folder, which does not state it.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If it cannot be read; the message says what to pass instead.
    """
    if model == NAME:
        return read_mini()
    folder = _find(model, revision)
    try:
        return _read_folder(model, folder, pooling)
    except M3Error:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise read_error(f"{folder} cannot be read as a checkpoint: {{reason}}; download it again", error) from None


def read_mini(*, trained: bool = True) -> Checkpoint:
    """Read the bundled model.

    Args:
        trained: Use the trained heads and the update of the encoder of this package instead of idf weights, an identity
            projection, and the encoder of multilingual-e5-small.

    Returns:
        The checkpoint.
    """
    parts = mini_backbone.read_mini(trained=trained)
    prior = torch.from_numpy(parts.lexical)
    untrained = Heads(token_prior=prior, multi_vector=nn.Identity())
    return Checkpoint(
        name=NAME,
        backbone=parts.backbone,
        heads=_trained_heads(prior) if trained else untrained,
        tokenizer=parts.tokenizer,
        special=_special_ids(parts.tokenizer, parts.special_tokens),
        token_names=parts.special_tokens,
        conventions=mini_conventions(trained=trained),
        folder=None,
    )


def _trained_heads(prior: Tensor) -> Heads:
    tensors = read_tensors(HEADS)
    scaled = prior * tensors.pop("lexical_scale")
    return Heads(_linear_of(tensors, "sparse"), scaled, _linear_of(tensors, "multi_vector"))


def _linear_of(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    return linear_of({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})


def _find(model: str, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model!r} is a file; name the folder that holds config.json")
    try:
        folder = Path(
            snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FROM_HUB)
        )
    except HFValidationError as error:
        raise CheckpointError(f"there is no folder {model!r} and it is not a hub id; {_NAMES}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"there is no folder {model!r}, and the hub returned no such model ({type(error).__name__}); {_NAMES}"
        ) from error

    _check_heads_were_downloaded(model, revision, folder)
    return folder


def _check_heads_were_downloaded(model: str, revision: str | None, folder: Path) -> None:
    """Reject a cached copy of BGE-M3 without heads, and warn of another model's if the hub cannot say that it has none.

    Tools that use the dense vector alone leave such copies.
    """
    file = f"{SPARSE_HEAD}.pt"
    if (folder / OWN_FILE).is_file() or head_file(folder, SPARSE_HEAD) or head_file(folder, MULTI_VECTOR_HEAD):
        return
    if (folder / "modules.json").is_file() and _layout_of_one_mode(folder) is not None:
        return
    if try_to_load_from_cache(model, file, revision=revision or "main") is _CACHED_NO_EXIST:
        return
    try:
        hf_hub_download(model, file, revision=revision)
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return  # the model has no such head
        problem = (
            f"the cached copy of {model!r} has no heads for sparse and multi-vector retrieval ({file} and "
            f"{MULTI_VECTOR_HEAD}.pt are missing), and the hub cannot be reached"
        )
        if "bge-m3" in model.lower():
            raise CheckpointError(f"{problem}; connect to the hub once, or run: hf download {model}") from error
        warnings.warn(f"{problem} to ask whether it has any; only dense vectors are available", HeadsMissing, 3)


_NAMES = "name a folder, a hub id such as 'BAAI/bge-m3', or 'm3-mini', which needs no download"


def _read_folder(name: str, folder: Path, pooling: Pooling | None) -> Checkpoint:
    layout = _read_layout(folder)
    if pooling is not None and layout.stated.get("pooling", pooling) is None:
        raise CheckpointError(f"{name!r} has no dense mode to pool; leave out pooling={pooling!r}")
    stated = layout.stated if pooling is None else {**layout.stated, "pooling": pooling}
    conventions = _conventions(name, folder, stated)
    tokenizer = read_tokenizer(layout.root)
    register_markers(tokenizer, layout.markers)
    conventions = _with_late_interaction(folder, conventions, layout, tokenizer)
    backbone = read_backbone(layout.root)
    _require_embeddings(folder, backbone.model, tokenizer)
    longest = min(conventions.max_length, count_positions(backbone.model))
    if conventions.max_length == UNBOUNDED:  # else the stated length stands, as in sentence-transformers
        longest = min(longest, int(tokenizer.model_max_length))
    _require_dimensions(folder, conventions, int(backbone.model.config.hidden_size))
    heads = layout.read_heads(backbone, tokenizer)
    token_names = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return Checkpoint(
        name=name,
        backbone=backbone.model,
        heads=replace(heads, dense=conventions.pooling is not None),
        tokenizer=bare(tokenizer),
        special=_special_ids(tokenizer.backend_tokenizer, token_names),
        token_names=token_names,
        conventions=_with_max_length(folder, conventions, longest),
        folder=folder,
    )


def _with_late_interaction(
    folder: Path, conventions: CheckpointConventions, layout: FolderLayout, tokenizer: PreTrainedTokenizerFast
) -> CheckpointConventions:
    if layout.late is not None:
        try:
            conventions = replace(conventions, late=layout.late(tokenizer))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} states late interaction that is not supported: {error}") from error
    expansion = None if conventions.late is None else conventions.late.expansion
    if expansion is not None and expansion.token not in tokenizer.get_vocab():
        raise CheckpointError(f"the tokenizer of {folder} has no token {expansion.token!r}, which expands queries")
    return conventions


def _with_max_length(folder: Path, conventions: CheckpointConventions, longest: int) -> CheckpointConventions:
    try:
        return replace(conventions, max_length=longest)
    except ValueError as error:
        raise CheckpointError(f"{folder} reads too little: {error}") from error


def _layout_of_one_mode(folder: Path) -> Callable[[Path], FolderLayout] | None:
    """Return the reader of a folder of SPLADE or ColBERT, by its modules; None for any other."""
    if sparse_encoder.is_sparse_encoder(folder):
        return sparse_encoder.read_layout
    if pylate.is_pylate(folder):
        return pylate.read_layout
    return multi_vector_encoder.read_layout if multi_vector_encoder.is_multi_vector_encoder(folder) else None


def _read_layout(folder: Path) -> FolderLayout:
    """Read what a folder states, by the first of its files that a layout knows."""
    stated: dict[str, Any] = {}
    if (folder / OWN_FILE).is_file():
        stated = read_object(folder / OWN_FILE)
    elif (folder / "modules.json").is_file():
        read_layout = _layout_of_one_mode(folder)
        if read_layout is not None:
            _warn_of_heads(folder)
            return read_layout(folder)
        stated = sentence_transformers_conventions(folder)
    else:
        stated = stated_conventions(folder)
        if head_file(folder, SPARSE_HEAD) or head_file(folder, MULTI_VECTOR_HEAD):
            stated["pooling"] = "cls"  # what FlagEmbedding's fine-tuning writes: BGE-M3's conventions, unstated

    def read_linear_heads(backbone: Backbone, tokenizer: PreTrainedTokenizerFast) -> Heads:
        hidden = int(backbone.model.config.hidden_size)
        tokens = tokenizer.backend_tokenizer.get_vocab_size()
        heads = read_heads(folder, hidden, tokens)
        classifier = read_sparse_head(folder, backbone.model.config, backbone.others)
        if classifier is not None and heads.sparse is None:
            heads = replace(heads, sparse=classifier)
        return replace(heads, **sparse_encoder.read_sparse_heads(folder, backbone.model, tokens))

    return FolderLayout(folder, stated, read_linear_heads)


def _warn_of_heads(folder: Path) -> None:
    """Warn of BGE-M3's heads in a folder whose layout has one mode."""
    files = [file.name for name in (SPARSE_HEAD, MULTI_VECTOR_HEAD, TOKEN_PRIOR) if (file := head_file(folder, name))]
    if files:
        warnings.warn(f"{folder} has {files}, which no mode of its layout uses", PartNotRead, stacklevel=6)


def _require_dimensions(folder: Path, conventions: CheckpointConventions, hidden: int) -> None:
    if (conventions.truncate_dim or 1) > hidden:
        raise CheckpointError(f"{folder} states truncate_dim={conventions.truncate_dim}, but has {hidden} dimensions")


def _require_embeddings(folder: Path, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    table: Any = backbone.get_input_embeddings()
    rows, last = table.weight.shape[0], max(tokenizer.get_vocab().values())
    if last >= rows:
        raise CheckpointError(
            f"the tokenizer of {folder} has the token id {last}, but the model has embeddings for {rows} tokens; take "
            "both from one checkpoint"
        )


def _conventions(name: str, folder: Path, stated: Mapping[str, Any]) -> CheckpointConventions:
    if "pooling" not in stated and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name!r} holds no model: config.json is missing; name a folder with config.json, weights and a "
            "tokenizer, or a model of the Hugging Face Hub"
        )
    if "pooling" not in stated:
        raise CheckpointError(
            f"{name!r} is a plain transformers folder and does not state its pooling; "
            "write from_pretrained(..., pooling='mean') or pooling='cls'"
        )
    if stated["pooling"] not in ("cls", "mean", None):
        raise CheckpointError(f"{name!r} pools by {stated['pooling']!r}; this package reads 'cls' and 'mean'")
    try:
        if stated.get("lexical_length") is not None:
            stated = {**stated, "lexical_length": PivotedLengthNormalization(**stated["lexical_length"])}
        if stated.get("late") is not None:
            stated = {**stated, "late": LateInteraction.from_json(stated["late"])}
        return CheckpointConventions(**{"max_length": UNBOUNDED, **stated})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} has options that this version cannot use: {error}") from error


def _special_ids(tokenizer: Tokenizer, names: Mapping[str, str]) -> SpecialTokens:
    def id_of(*keys: str) -> int | None:
        return next((tokenizer.token_to_id(names[key]) for key in keys if key in names), None)

    cls, eos = id_of("cls_token", "bos_token"), id_of("eos_token", "sep_token")
    framed = tokenizer.encode("").ids
    if cls is None or eos is None or framed != [cls, eos]:
        raise CheckpointError(
            f"the tokenizer frames a text as {tokenizer.encode('').tokens}, not as one beginning and one ending token"
        )
    pad = id_of("pad_token", "unk_token")
    return SpecialTokens(cls=cls, eos=eos, pad=eos if pad is None else pad, unk=id_of("unk_token"))


def save(checkpoint: Checkpoint, folder: Path, conventions: CheckpointConventions) -> None:
    """Write a folder in BGE-M3's layout, with `m3_config.json`; FlagEmbedding loads it too.

    A token prior goes into a file of its own, which FlagEmbedding does not read.

    Args:
        checkpoint: Checkpoint to save.
        folder: Target folder; an existing one must hold a model or be empty.
        conventions: Conventions to write.

    Raises:
        CheckpointError: If the folder holds something other than a model.
    """
    backbone, heads = checkpoint.stored()  # before writing: this folder may be their source
    _remove_stale_heads(folder)
    with quiet_transformers():
        backbone.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        tokenizer_object=checkpoint.tokenizer, model_max_length=conventions.max_length, **checkpoint.token_names
    )
    tokenizer.save_pretrained(folder)
    hidden = int(backbone.config.hidden_size)
    if heads.sparse is not None or heads.token_prior is not None:
        torch.save(_state(heads.sparse or _zero_linear(hidden)), folder / f"{SPARSE_HEAD}.pt")
    if heads.multi_vector is not None:
        torch.save(_state(_as_linear(heads.multi_vector, hidden)), folder / f"{MULTI_VECTOR_HEAD}.pt")
    sparse_encoder.save_sparse_heads(folder, heads, backbone)
    if heads.token_prior is not None:
        save_file({"weight": heads.token_prior.float().cpu().contiguous()}, folder / f"{TOKEN_PRIOR}.safetensors")
    (folder / OWN_FILE).write_text(json.dumps(asdict(conventions), indent=2) + "\n", encoding="utf-8")


def _remove_stale_heads(folder: Path) -> None:
    """Remove the heads of an earlier checkpoint from the folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} exists and holds no model; save into a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SPARSE_HEAD, MULTI_VECTOR_HEAD, TOKEN_PRIOR, TERM_EXPANSION, QUERY_WEIGHTS):
        while stale := head_file(folder, name):
            stale.unlink()


def _state(linear: nn.Linear) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu() for name, value in linear.state_dict().items()}


def _zero_linear(hidden: int) -> nn.Linear:
    """A linear layer that adds nothing, for lexical weights from a token prior alone."""
    linear = nn.Linear(hidden, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _as_linear(head: nn.Linear | nn.Identity, hidden: int) -> nn.Linear:
    if isinstance(head, nn.Linear):
        return head
    linear = nn.Linear(hidden, hidden)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _head_tensors(heads: Heads) -> dict[str, Tensor]:
    parts = {SPARSE_HEAD: heads.sparse, MULTI_VECTOR_HEAD: heads.multi_vector}
    tensors = {
        f"{name}.{key}": value
        for name, head in parts.items()
        if isinstance(head, nn.Linear)
        for key, value in _state(head).items()
    }
    if isinstance(heads.multi_vector, nn.Identity):
        tensors[MULTI_VECTOR_HEAD] = torch.zeros(0)
    if heads.token_prior is not None:
        tensors[TOKEN_PRIOR] = heads.token_prior
    if heads.query_weights is not None:
        tensors[QUERY_WEIGHTS] = heads.query_weights
    return tensors


def _bytes(values: Tensor) -> memoryview:
    array: npt.NDArray[np.float32] = values.detach().float().cpu().contiguous().numpy()
    return array.data.cast("B") if array.size else memoryview(b"")
