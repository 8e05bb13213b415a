"""The layout of transformers: a backbone and its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from m3_integrations.core.errors import CheckpointError, PartNotRead
from m3_integrations.models.checkpoint_files import UNBOUNDED, check_weights, read_error, read_object, require_content

# Settings that change vectors and that the classes of transformers ignore or refuse in other words: allowed values.
_REFUSED: Mapping[str, tuple[Collection[str], str]] = {
    "quantization_config": ((), "a quantized model"),
    "is_decoder": ((), "attention to preceding tokens only"),
    "is_encoder_decoder": ((), "an encoder with a decoder"),
    "position_embedding_type": (("absolute", "rope", "rotary"), "this kind of positions"),
    "logn_attention_scale": ((), "attention scaled by length"),
    "layer_norm_type": (("layer_norm",), "another norm than layer norm"),
}
# Any of these is a tokenizer; without one, transformers makes an empty one.
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})  # count from pad + 1
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError, UnpicklingError)
_WITH_POOLER = _OFFSET_POSITIONS | {"bert"}


class Backbone(NamedTuple):
    """A transformer, and the names of tensors in its files that it does not have."""

    model: PreTrainedModel
    others: frozenset[str]


def read_backbone(folder: Path) -> Backbone:
    """Read the transformer of a folder in float32, without its pooler.

    Args:
        folder: Folder in the transformers layout.

    Returns:
        The transformer in evaluation mode, and what else its files hold.

    Raises:
        CheckpointError: If files or weights are missing or unreadable.
    """
    try:
        _refuse_unsupported(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        options = {"add_pooling_layer": False} if config.model_type in _WITH_POOLER else {}
        check_weights(folder, config, **options)
        with quiet_transformers():
            model, loaded = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,  # else transformers asks on the terminal whether to run remote code
                output_loading_info=True,
                **options,
            )
    except _READ_ERRORS as error:
        if "ignore_mismatched_sizes" in str(error):
            raise CheckpointError(f"{folder} holds weights of other shapes than its config.json describes") from None
        message = (
            f"{folder} cannot be read as a transformers encoder: {{reason}}; it needs config.json, model.safetensors "
            "(or pytorch_model.bin) and tokenizer.json"
        )
        raise read_error(message, error) from None
    if loaded["missing_keys"]:
        lacking = sorted(loaded["missing_keys"])[:3]
        raise CheckpointError(f"{folder} is incomplete: it lacks weights such as {lacking}")
    backbone: PreTrainedModel = model
    backbone.train(False)
    return Backbone(backbone, frozenset(loaded["unexpected_keys"]))


def _refuse_unsupported(folder: Path) -> None:
    """Raise if a folder states what transformers' own classes ignore, or what is no encoder in floating point."""
    config = read_object(folder / "config.json", default={})
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder} is a {kind!r} model with code of its own, which this package does not run; "
            "use a checkpoint of an architecture that transformers includes, such as BERT, RoBERTa or XLM-RoBERTa"
        )
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter, such as LoRA; merge it by peft's merge_and_unload() and save the whole model"
        )
    for key, (allowed, meaning) in _REFUSED.items():
        if config.get(key) and config[key] not in allowed:
            raise CheckpointError(f"{folder / 'config.json'} states {key}={config[key]!r}: {meaning} is not supported")
    if config.get("auto_map"):
        warnings.warn(
            f"{folder} has code of its own, which this package does not run; it is read by transformers' own {kind!r}",
            PartNotRead,
            stacklevel=7,
        )


def count_positions(backbone: PreTrainedModel) -> int:
    """Return the most tokens that a transformer has positions for."""
    config = backbone.config
    offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(getattr(config, "max_position_embeddings", UNBOUNDED)) - offset


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the fast tokenizer of a folder.

    Raises:
        CheckpointError: If there is none.
    """
    read_object(folder / "config.json", default={})  # AutoTokenizer reads it too, and would blame the tokenizer
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(f"{folder} has no tokenizer; save one with tokenizer.save_pretrained into it")
    try:
        if (folder / "tokenizer.json").is_file():
            require_content(folder / "tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:  # the Rust tokenizer raises plain Exception
        raise read_error(f"{folder} has no tokenizer that transformers can read: {{reason}}", error) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{folder} has no fast tokenizer; save one with tokenizer.save_pretrained into it")
    if tokenizer.truncation_side != "right":
        raise CheckpointError(f"{folder} truncates texts at the left; supported is truncation_side='right'")
    return tokenizer


def register_markers(tokenizer: PreTrainedTokenizerFast, markers: Sequence[str]) -> None:
    """Let a tokenizer read markers such as "[Q] ", which are tokens of its vocabulary, as one token each.

    Raises:
        CheckpointError: If a marker is no token.
    """
    for marker in markers:
        known = next((each for each in (marker, marker.strip()) if each in tokenizer.get_vocab()), None)
        if known is None:
            raise CheckpointError(f"the tokenizer has no token {marker!r}, which marks queries or passages")
        if tokenizer.tokenize(known) != [known]:
            tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(known, normalized=False)]})


def bare(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return the Rust tokenizer without padding or truncation, so that threads can share it."""
    bare = tokenizer.backend_tokenizer
    bare.no_padding()
    bare.no_truncation()
    return bare


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and reports of unused poolers; missing weights are checked here."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # likewise
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # likewise
