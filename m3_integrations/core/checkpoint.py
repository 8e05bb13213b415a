"""Checkpoints: finds and reads BGE-M3 folders, sentence-transformers folders, plain transformers folders and our own.

A checkpoint of ours is a BGE-M3 folder with one more file, `m3_config.json`, which states what that layout leaves to
the caller (pooling, normalisation, prefixes, recommended mode weights), and `token_prior.safetensors` where it has one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from m3_integrations.core import mini
from m3_integrations.core.encoded import Mode
from m3_integrations.core.errors import CheckpointError
from m3_integrations.core.lexical import LexicalLength
from m3_integrations.core.model import Heads, Pooling
from m3_integrations.core.plan import SearchPlan

OWN_FILE = "m3_config.json"
SPARSE_HEAD, MULTI_VECTOR_HEAD, TOKEN_PRIOR = "sparse_linear", "colbert_linear", "token_prior"
# The sum that BGE-M3's training distils (FlagEmbedding, encoder_only/m3/modeling.py); its compute_score has 1, 1, 1.
BGE_M3_WEIGHTS: Mapping[Mode, float] = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
_UNBOUNDED = sys.maxsize
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})  # count from pad + 1
_WITH_POOLER = _OFFSET_POSITIONS | {"bert"}
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.pt", "*.safetensors", "*.bin"]
_NOT_FROM_HUB = ["onnx/*", "openvino/*", "*.onnx", "tf_model*", "flax_model*", "training_args.bin", "optimizer*"]
_POOLING_OF: Mapping[str, Pooling] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True)
class Conventions:
    """How texts become vectors beside the weights: all that a checkpoint says, or leaves to be said.

    lexical_length: how lexical weights are made to fit a text's length; None leaves them, as BGE-M3 does.
    """

    pooling: Pooling
    normalise: bool = True
    max_length: int = 512
    query_prefix: str = ""
    passage_prefix: str = ""
    weights: Mapping[Mode, float] = field(default_factory=lambda: dict(BGE_M3_WEIGHTS))
    lexical_length: LexicalLength | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_length, int) or self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length!r}")
        if not isinstance(self.query_prefix, str) or not isinstance(self.passage_prefix, str):
            raise ValueError(f"prefixes are strings, got {self.query_prefix!r} and {self.passage_prefix!r}")
        SearchPlan(weights=self.weights)  # refuses weights that no plan could have


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that stand for no text; cls begins a sequence, eos ends it."""

    cls: int
    eos: int
    pad: int
    unk: int | None

    @property
    def silent(self) -> list[int]:
        """Those that stand for no text; BGE-M3's code gives these no lexical weight either, and <mask> one."""
        return [id for id in (self.cls, self.eos, self.pad, self.unk) if id is not None]


@dataclass(frozen=True)
class Checkpoint:
    """A model that was read: its weights, its tokenizer, and how to use them. `name` is what the user wrote."""

    name: str
    backbone: PreTrainedModel
    heads: Heads
    tokenizer: Tokenizer
    special: SpecialTokens
    token_names: Mapping[str, str]
    conventions: Conventions
    folder: Path | None  # None for m3-mini
    narrow_head: nn.Linear | None = None  # in float32: the multi-vector head where it is not that of the folder

    def hash_weights(self) -> str:
        """64 hex digits over the weights as stored and the tokenizer, whatever file or precision they are loaded in."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for name, values in sorted(self._stored_tensors(), key=lambda pair: pair[0]):
            digest.update(f"{name}{tuple(values.shape)}".encode())
            digest.update(_bytes(values))
        return digest.hexdigest()

    def stored(self) -> tuple[PreTrainedModel, Heads]:
        """Backbone and heads in float32: read again where they were loaded in another precision."""
        if self.backbone.dtype == torch.float32:
            return self.backbone, self.heads
        again = read_mini() if self.folder is None else _read_folder(self.name, self.folder, self.conventions.pooling)
        if self.narrow_head is None:
            return again.backbone, again.heads
        return again.backbone, replace(again.heads, multi_vector=self.narrow_head)

    def narrowed(self, directions: npt.NDArray[np.float64]) -> Checkpoint:
        """The same weights, shared, with a multi-vector head that ends in a projection.

        directions: (narrower, width). One linear head: directions @ weight and directions @ bias, in float32.
        """
        backbone, heads = self.stored()
        assert heads.multi_vector is not None  # the encoder asks for modes that the checkpoint has
        projection = torch.from_numpy(directions)
        head = _state(_as_linear(heads.multi_vector, int(backbone.config.hidden_size)))
        projected = {name: (projection @ value.double()).float() for name, value in head.items()}
        # Two of them: the one among the heads goes to the encoder's precision, the other stays as it is stored.
        return replace(self, heads=replace(self.heads, multi_vector=_linear(projected)), narrow_head=_linear(projected))

    def _stored_tensors(self) -> Iterator[tuple[str, Tensor]]:
        backbone, heads = self.stored()
        yield from backbone.state_dict().items()
        yield from _head_tensors(heads).items()


def read(model: str, *, revision: str | None = None, pooling: Pooling | None = None) -> Checkpoint:
    """Read a checkpoint in float32.

    model: "m3-mini", a local folder, or a hub id. pooling: for a plain transformers folder, which does not say.
    Raises CheckpointError with what to type.
    """
    if model == mini.NAME:
        return read_mini()
    return _read_folder(model, _find(model, revision), pooling)


def read_mini(*, trained: bool = True) -> Checkpoint:
    """The embedded model. trained: with the heads that this package ships, or with the idf and the identity."""
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
        conventions=Conventions(
            pooling="mean",
            query_prefix="query: ",
            passage_prefix="passage: ",
            weights=mini.WEIGHTS,
            lexical_length=mini.LEXICAL_LENGTH if trained else None,
        ),
        folder=None,
    )


def _trained_heads(prior: Tensor) -> Heads:
    tensors = _read_tensors(mini.HEADS)
    scaled = prior * tensors.pop("lexical_scale")
    return Heads(_linear_of(tensors, "sparse"), scaled, _linear_of(tensors, "multi_vector"))


def _linear_of(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    return _linear({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})


def _find(model: str, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model!r} is a file; name the folder that holds config.json")
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FROM_HUB)
        )
    except HFValidationError as error:
        raise CheckpointError(f"there is no folder {model!r}, and it is no hub id either; {_NAMES}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"there is no folder {model!r}, and the hub gave no model of that name ({type(error).__name__}); {_NAMES}"
        ) from error


_NAMES = "name a folder, a hub id such as 'BAAI/bge-m3', or 'm3-mini', which needs no download"


def _read_folder(name: str, folder: Path, pooling: Pooling | None) -> Checkpoint:
    conventions = _conventions(name, folder, pooling)
    tokenizer = _read_tokenizer(folder)
    backbone = read_backbone(folder)
    limit = _positions(backbone)
    longest = min(conventions.max_length, limit, int(tokenizer.model_max_length))
    token_names = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return Checkpoint(
        name=name,
        backbone=backbone,
        heads=_read_heads(folder, backbone.config.hidden_size, tokenizer.backend_tokenizer.get_vocab_size()),
        tokenizer=_bare(tokenizer),
        special=_special_ids(tokenizer.backend_tokenizer, token_names),
        token_names=token_names,
        conventions=replace(conventions, max_length=longest),
        folder=folder,
    )


def _conventions(name: str, folder: Path, pooling: Pooling | None) -> Conventions:
    stated = _stated(folder)
    if pooling is not None:
        stated = {**stated, "pooling": pooling}
    if "pooling" not in stated:
        raise CheckpointError(
            f"{name!r} is a plain transformers folder and does not say how it pools; "
            "write from_pretrained(..., pooling='mean') or pooling='cls'"
        )
    if stated["pooling"] not in ("cls", "mean"):
        raise CheckpointError(f"{name!r} pools by {stated['pooling']!r}; this package reads 'cls' and 'mean'")
    try:
        if stated.get("lexical_length") is not None:
            stated = {**stated, "lexical_length": LexicalLength(**stated["lexical_length"])}
        return Conventions(**{"max_length": _UNBOUNDED, **stated})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / OWN_FILE} has settings that this version cannot use: {error}") from error


def _stated(folder: Path) -> dict[str, Any]:
    if (folder / OWN_FILE).is_file():
        return dict(_read_json(folder / OWN_FILE))
    if (folder / "modules.json").is_file():
        return _sentence_transformers(folder)
    if _head_file(folder, SPARSE_HEAD) or _head_file(folder, MULTI_VECTOR_HEAD):
        return {"pooling": "cls"}  # what FlagEmbedding's fine-tuning writes: BGE-M3's conventions, unstated
    return {}


def _sentence_transformers(folder: Path) -> dict[str, Any]:
    stated: dict[str, Any] = {"normalise": False, "max_length": _UNBOUNDED}
    for kind, path in _modules(folder / "modules.json"):
        if kind == "Pooling":
            stated["pooling"] = _pooling(folder / path)
        elif kind == "Normalize":
            stated["normalise"] = True
        elif kind != "Transformer" or path:
            raise CheckpointError(
                f"{folder} has a sentence-transformers module {kind!r} at {path!r}; this package reads "
                "Transformer (at the top of the folder), Pooling and Normalize"
            )
    settings = _read_json(folder / "sentence_bert_config.json", default={})
    if settings.get("do_lower_case"):
        raise CheckpointError(f"{folder} lower-cases texts outside its tokenizer, which this package does not")
    if settings.get("max_seq_length"):
        stated["max_length"] = int(settings["max_seq_length"])
    prompts = _read_json(folder / "config_sentence_transformers.json", default={}).get("prompts") or {}
    stated["query_prefix"] = prompts.get("query") or ""
    stated["passage_prefix"] = prompts.get("passage") or prompts.get("document") or ""
    return stated


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module, in order."""
    try:
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in _read_json(path)]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path} should list modules, each with a 'type' and a 'path'") from error


def _pooling(folder: Path) -> str:
    config = _read_json(folder / "config.json")
    if config.get("include_prompt") is False:
        raise CheckpointError(f"{folder} leaves the prefix out of pooling, which this package does not")
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named
    chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    return _POOLING_OF.get(chosen[0], chosen[0]) if len(chosen) == 1 else "+".join(chosen)


def read_backbone(folder: Path) -> PreTrainedModel:
    """The transformer of a folder, in float32, without a pooler where its class has one."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        options = {"add_pooling_layer": False} if config.model_type in _WITH_POOLER else {}
        with _quiet_transformers():
            model, loaded = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,  # else transformers asks on the terminal whether to run a stranger's code
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be read as a transformers encoder: {error}; it needs config.json, model.safetensors (or "
            "pytorch_model.bin) and tokenizer.json"
        ) from error
    if loaded["missing_keys"]:
        lacking = sorted(loaded["missing_keys"])[:3]
        raise CheckpointError(f"{folder} lacks weights, {lacking} among them; it is not a whole checkpoint")
    backbone: PreTrainedModel = model
    backbone.train(False)
    return backbone


def _positions(backbone: PreTrainedModel) -> int:
    config = backbone.config
    offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(getattr(config, "max_position_embeddings", _UNBOUNDED)) - offset


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that transformers can read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{folder} has no fast tokenizer; save one with tokenizer.save_pretrained into it")
    return tokenizer


def _bare(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The Rust tokenizer alone, which many threads may call at once: nothing sets its padding or truncation between."""
    bare = tokenizer.backend_tokenizer
    bare.no_padding()
    bare.no_truncation()
    return bare


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


def _read_heads(folder: Path, hidden: int, vocabulary: int) -> Heads:
    prior = _head_file(folder, TOKEN_PRIOR)
    sparse = _read_linear(folder, SPARSE_HEAD, hidden)
    vectors = _read_linear(folder, MULTI_VECTOR_HEAD, hidden)
    return Heads(
        sparse=None if prior and sparse and _is_silent(sparse) else sparse,
        token_prior=_read_prior(prior, vocabulary) if prior else None,
        multi_vector=nn.Identity() if vectors and _is_identity(vectors) else vectors,
    )


def _read_prior(path: Path, vocabulary: int) -> Tensor:
    weight = _read_tensors(path).get("weight")
    if weight is None or weight.ndim != 1 or len(weight) < vocabulary:
        raise CheckpointError(f"{path} should hold a 'weight' for each of {vocabulary} tokens")
    return weight.float()


def _read_linear(folder: Path, name: str, hidden: int) -> nn.Linear | None:
    path = _head_file(folder, name)
    if path is None:
        return None
    tensors = _read_tensors(path)
    weight = tensors.get("weight")
    outputs = 1 if name == SPARSE_HEAD else "width"
    fits = weight is not None and weight.ndim == 2 and weight.shape[1] == hidden and outputs in ("width", len(weight))
    if weight is None or not fits or tensors.keys() - {"weight", "bias"}:
        held = {key: tuple(value.shape) for key, value in tensors.items()}
        raise CheckpointError(f"{path} should hold a 'weight' of ({outputs}, {hidden}) and a 'bias', and holds {held}")
    return _linear(tensors)


def _linear(tensors: Mapping[str, Tensor]) -> nn.Linear:
    """The layer of a weight, and a bias where there is one, which learns nothing until it is asked to."""
    outputs, inputs = tensors["weight"].shape
    linear = nn.Linear(inputs, outputs, bias="bias" in tensors, device="meta")
    linear.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return linear.requires_grad_(False)


def _head_file(folder: Path, name: str) -> Path | None:
    files = (folder / f"{name}.safetensors", folder / f"{name}.pt")
    return next((path for path in files if path.is_file()), None)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it likes on a hostile file, from KeyError to UnpicklingError
        raise CheckpointError(f"{path} cannot be read as tensors alone: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} should hold a dict of tensors, and holds something else")
    return tensors


def save(checkpoint: Checkpoint, folder: Path, conventions: Conventions) -> None:
    """Write a folder in BGE-M3's layout with our own file beside it; FlagEmbedding and we can both load it.

    A token prior does not fit that layout: it goes into a file of its own, which only we read.
    """
    backbone, heads = checkpoint.stored()  # before anything is written: it may be this folder that holds them
    _make_room(folder)
    with _quiet_transformers():
        backbone.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        tokenizer_object=checkpoint.tokenizer, model_max_length=conventions.max_length, **checkpoint.token_names
    )
    tokenizer.save_pretrained(folder)
    hidden = int(backbone.config.hidden_size)
    if heads.sparse is not None or heads.token_prior is not None:
        torch.save(_state(heads.sparse or _silent(hidden)), folder / f"{SPARSE_HEAD}.pt")
    if heads.multi_vector is not None:
        torch.save(_state(_as_linear(heads.multi_vector, hidden)), folder / f"{MULTI_VECTOR_HEAD}.pt")
    if heads.token_prior is not None:
        save_file({"weight": heads.token_prior.float().cpu().contiguous()}, folder / f"{TOKEN_PRIOR}.safetensors")
    (folder / OWN_FILE).write_text(json.dumps(asdict(conventions), indent=2) + "\n", encoding="utf-8")


def _make_room(folder: Path) -> None:
    """A folder without heads of an earlier checkpoint, which would be read with these weights."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is there and holds something else than a model; save into a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SPARSE_HEAD, MULTI_VECTOR_HEAD, TOKEN_PRIOR):
        while stale := _head_file(folder, name):
            stale.unlink()


def _state(linear: nn.Linear) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu() for name, value in linear.state_dict().items()}


def _silent(hidden: int) -> nn.Linear:
    """The linear part of a checkpoint whose lexical weights are its token prior alone: it adds nothing."""
    linear = nn.Linear(hidden, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _is_silent(linear: nn.Linear) -> bool:
    return not any(bool(value.any()) for value in linear.state_dict().values())


def _as_linear(head: nn.Linear | nn.Identity, hidden: int) -> nn.Linear:
    if isinstance(head, nn.Linear):
        return head
    linear = nn.Linear(hidden, hidden)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _is_identity(linear: nn.Linear) -> bool:
    size, width = linear.weight.shape
    unbiased = linear.bias is None or not bool(linear.bias.any())
    return size == width and unbiased and torch.equal(linear.weight, torch.eye(size))


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


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bar for weights that load in a second, and no report of a pooler that nobody reads; gaps we look for."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # likewise
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # likewise


def _bytes(values: Tensor) -> memoryview:
    array: npt.NDArray[np.float32] = values.detach().float().cpu().contiguous().numpy()
    return array.data.cast("B") if array.size else memoryview(b"")


def _read_json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
