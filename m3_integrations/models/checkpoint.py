"""Checkpoints in the layouts of BGE-M3, sentence-transformers, transformers and our own.

Our layout is BGE-M3's with `m3_config.json`, which states what BGE-M3's layout leaves to the caller (pooling,
normalization, prefixes, recommended mode weights), and `token_prior.safetensors` for a token prior.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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

from m3_integrations.core.encoded import Mode, SparseScore
from m3_integrations.core.errors import CheckpointError, HeadsMissing
from m3_integrations.core.types import SearchPlan
from m3_integrations.models import mini
from m3_integrations.models.checkpoint_files import UNBOUNDED, read_object, read_tensors
from m3_integrations.models.layouts.bge_m3 import (
    MULTI_VECTOR_HEAD,
    SPARSE_HEAD,
    TOKEN_PRIOR,
    head_file,
    linear_of,
    read_heads,
)
from m3_integrations.models.layouts.sentence_transformers import sentence_transformers_conventions
from m3_integrations.models.layouts.token_classification import read_sparse_head
from m3_integrations.models.layouts.transformers_folder import (
    bare,
    count_positions,
    quiet_transformers,
    read_backbone,
    read_tokenizer,
)
from m3_integrations.models.transformer import Heads, PivotedLengthNormalization, Pooling

OWN_FILE = "m3_config.json"
# The sum that BGE-M3's training distils (FlagEmbedding, encoder_only/m3/modeling.py); its compute_score has 1, 1, 1.
BGE_M3_WEIGHTS: Mapping[Mode, float] = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.pt", "*.safetensors", "*.bin"]
_NOT_FROM_HUB = ["onnx/*", "openvino/*", "*.onnx", "tf_model*", "flax_model*", "training_args.bin", "optimizer*"]


@dataclass(frozen=True)
class CheckpointConventions:
    """Conventions that turn texts into vectors, in addition to the weights.

    Attributes:
        pooling: Pooling of the dense vector.
        normalise: Whether dense vectors are normalized; spelled as in the checkpoint's file.
        max_length: Longest sequence in tokens, special tokens included.
        query_prefix: Text put before every query.
        passage_prefix: Text put before every passage.
        weights: Recommended weight of each mode in a summed score of all modes.
        pair_weights: Recommended weights of sums of two modes; those of other pairs are taken from `weights`.
        sparse_score: "sum" of the products of shared tokens' weights, as in BGE-M3, or "mean", that sum divided by the
            sum of the query's weights. All weights are for it.
        lexical_length: Length normalization of lexical weights; None for none, as in BGE-M3.
        window_overlap: Tokens shared by the windows in which longer texts are read; None truncates them.
        truncate_dim: Leading dimensions of the dense vector to use (Matryoshka); None uses all.

    Raises:
        ValueError: If a value is invalid.
    """

    pooling: Pooling
    normalise: bool = True
    max_length: int = 512
    query_prefix: str = ""
    passage_prefix: str = ""
    weights: Mapping[Mode, float] = field(default_factory=lambda: dict(BGE_M3_WEIGHTS))
    pair_weights: Sequence[Mapping[Mode, float]] = ()
    lexical_length: PivotedLengthNormalization | None = None
    window_overlap: int | None = None
    truncate_dim: int | None = None
    sparse_score: SparseScore = "sum"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pair_weights", tuple(self.pair_weights))  # a list in JSON
        if not isinstance(self.normalise, bool):
            raise ValueError(f"normalise is true or false, got {self.normalise!r}")
        for name, number, least in (("window_overlap", self.window_overlap, 0), ("truncate_dim", self.truncate_dim, 1)):
            if number is not None and (type(number) is not int or number < least):
                raise ValueError(f"{name} is a whole number from {least}, got {number!r}")
        if not isinstance(self.max_length, int) or self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length!r}")
        if not isinstance(self.query_prefix, str) or not isinstance(self.passage_prefix, str):
            raise ValueError(f"prefixes are strings, got {self.query_prefix!r} and {self.passage_prefix!r}")
        for pair in self.pair_weights:
            if not isinstance(pair, Mapping) or len(pair) != 2:
                raise ValueError(f"pair_weights holds mappings of two modes to weights, got {pair!r}")
        for weights in (self.weights, *self.pair_weights):
            SearchPlan(weights=weights, sparse_score=self.sparse_score)  # raises ValueError for invalid ones


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens; cls begins a sequence, eos ends it."""

    cls: int
    eos: int
    pad: int
    unk: int | None

    @property
    def unweighted(self) -> list[int]:
        """Ids without a lexical weight, those that BGE-M3's own code leaves out."""
        return [id for id in (self.cls, self.eos, self.pad, self.unk) if id is not None]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: weights, tokenizer and conventions.

    Attributes:
        name: The name that the user passed.
        folder: Its folder; None for m3-mini.
        narrow_head: Multi-vector head in float32 if it is not that of the folder.
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
        again = read_mini() if self.folder is None else _read_folder(self.name, self.folder, self.conventions.pooling)
        if self.narrow_head is None:
            return again.backbone, again.heads
        return again.backbone, replace(again.heads, multi_vector=self.narrow_head)

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
    if model == mini.NAME:
        return read_mini()
    return _read_folder(model, _find(model, revision), pooling)


def read_mini(*, trained: bool = True) -> Checkpoint:
    """Read the bundled model.

    Args:
        trained: Use the trained heads of this package instead of idf weights and an identity projection.

    Returns:
        The checkpoint.
    """
    parts = mini.read_mini()
    prior = torch.from_numpy(parts.lexical)
    untrained = Heads(token_prior=prior, multi_vector=nn.Identity())
    return Checkpoint(
        name=mini.NAME,
        backbone=parts.backbone,
        heads=_trained_heads(prior) if trained else untrained,
        tokenizer=parts.tokenizer,
        special=_special_ids(parts.tokenizer, parts.special_tokens),
        token_names=parts.special_tokens,
        conventions=CheckpointConventions(
            pooling="mean",
            query_prefix="query: ",
            passage_prefix="passage: ",
            weights=mini.WEIGHTS,
            pair_weights=mini.PAIR_WEIGHTS,
            sparse_score=mini.SPARSE_SCORE,
            window_overlap=mini.WINDOW_OVERLAP,
            lexical_length=mini.LEXICAL_LENGTH if trained else None,
        ),
        folder=None,
    )


def _trained_heads(prior: Tensor) -> Heads:
    tensors = read_tensors(mini.HEADS)
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
    conventions = _conventions(name, folder, pooling)
    tokenizer = read_tokenizer(folder)
    backbone, others = read_backbone(folder)
    _require_embeddings(folder, backbone, tokenizer)
    limit = count_positions(backbone)
    longest = min(conventions.max_length, limit, int(tokenizer.model_max_length))
    heads = read_heads(folder, backbone.config.hidden_size, tokenizer.backend_tokenizer.get_vocab_size())
    classifier = read_sparse_head(folder, backbone.config, others)
    if classifier is not None and heads.sparse is None:
        heads = replace(heads, sparse=classifier)
    token_names = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return Checkpoint(
        name=name,
        backbone=backbone,
        heads=heads,
        tokenizer=bare(tokenizer),
        special=_special_ids(tokenizer.backend_tokenizer, token_names),
        token_names=token_names,
        conventions=replace(conventions, max_length=longest),
        folder=folder,
    )


def _require_embeddings(folder: Path, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    table: Any = backbone.get_input_embeddings()
    rows, last = table.weight.shape[0], max(tokenizer.get_vocab().values())
    if last >= rows:
        raise CheckpointError(
            f"the tokenizer of {folder} has the token id {last}, but the model has embeddings for {rows} tokens; take "
            "both from one checkpoint"
        )


def _conventions(name: str, folder: Path, pooling: Pooling | None) -> CheckpointConventions:
    stated = _stated(folder)
    if pooling is not None:
        stated = {**stated, "pooling": pooling}
    if "pooling" not in stated:
        raise CheckpointError(
            f"{name!r} is a plain transformers folder and does not state its pooling; "
            "write from_pretrained(..., pooling='mean') or pooling='cls'"
        )
    if stated["pooling"] not in ("cls", "mean"):
        raise CheckpointError(f"{name!r} pools by {stated['pooling']!r}; this package reads 'cls' and 'mean'")
    try:
        if stated.get("lexical_length") is not None:
            stated = {**stated, "lexical_length": PivotedLengthNormalization(**stated["lexical_length"])}
        return CheckpointConventions(**{"max_length": UNBOUNDED, **stated})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / OWN_FILE} has options that this version cannot use: {error}") from error


def _stated(folder: Path) -> dict[str, Any]:
    if (folder / OWN_FILE).is_file():
        return read_object(folder / OWN_FILE)
    if (folder / "modules.json").is_file():
        return sentence_transformers_conventions(folder)
    if head_file(folder, SPARSE_HEAD) or head_file(folder, MULTI_VECTOR_HEAD):
        return {"pooling": "cls"}  # what FlagEmbedding's fine-tuning writes: BGE-M3's conventions, unstated
    return {}


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
    if heads.token_prior is not None:
        save_file({"weight": heads.token_prior.float().cpu().contiguous()}, folder / f"{TOKEN_PRIOR}.safetensors")
    (folder / OWN_FILE).write_text(json.dumps(asdict(conventions), indent=2) + "\n", encoding="utf-8")


def _remove_stale_heads(folder: Path) -> None:
    """Remove the heads of an earlier checkpoint from the folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} exists and holds no model; save into a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SPARSE_HEAD, MULTI_VECTOR_HEAD, TOKEN_PRIOR):
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
    return tensors


def _bytes(values: Tensor) -> memoryview:
    array: npt.NDArray[np.float32] = values.detach().float().cpu().contiguous().numpy()
    return array.data.cast("B") if array.size else memoryview(b"")
