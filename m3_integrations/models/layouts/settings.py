"""Settings files of a checkpoint, of which every stated key is known or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import read_object

_MODEL = frozenset({"__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name"})
_MODEL_FILE = "config_sentence_transformers.json"
# sentence-transformers reads the first of these that exists.
_TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    *(
        f"sentence_{kind}_config.json"
        for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
_ARGUMENTS = ("model_args", "tokenizer_args", "config_args", "processing_kwargs")
_TRANSFORMER = {
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
    *_ARGUMENTS,
}
_IDLE_ARGUMENTS = frozenset({"trust_remote_code", "attn_implementation", "torch_dtype", "dtype", "use_fast"})
_OUTPUTS = {"last_hidden_state", "logits"}


def read_settings(path: Path, known: Collection[str], default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a settings file.

    Args:
        path: The JSON file.
        known: Keys that its layout reads, or that change no vector.
        default: Value of a missing file; None makes that an error.

    Raises:
        CheckpointError: If it cannot be read, or sets another key.
    """
    settings = read_object(path, default)
    unknown = {
        key: value for key, value in settings.items() if key not in known and value not in (None, False, "", [], {})
    }
    if unknown:
        key, value = next(iter(unknown.items()))
        raise CheckpointError(f"{path} states {key}={value!r}, which is not supported; supported are {sorted(known)}")
    return settings


def read_model_settings(folder: Path, *more: str, kinds: Collection[str] = ()) -> dict[str, Any]:
    """Read what a folder states of a whole sentence-transformers model.

    Args:
        folder: Folder of the model; the file may be missing.
        more: Keys that its layout reads besides those of every model.
        kinds: Its possible model types; empty for any.

    Raises:
        CheckpointError: If it states anything else.
    """
    settings = read_settings(folder / _MODEL_FILE, _MODEL | set(more), {})
    kind = settings.get("model_type")
    if kinds and kind is not None and kind not in kinds:
        raise CheckpointError(f"{folder} is a {kind!r} of sentence-transformers; this layout is of {sorted(kinds)}")
    return settings


def read_transformer_settings(folder: Path, *more: str, task: str = "feature-extraction") -> dict[str, Any]:
    """Read what a Transformer module states, by the first of its possible files.

    Args:
        folder: Folder of the module.
        more: Keys that its layout reads besides those of every Transformer.
        task: The task that its layout needs.

    Raises:
        CheckpointError: If it states anything that is not supported.
    """
    path = next((folder / name for name in _TRANSFORMER_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}
    settings = read_settings(path, _TRANSFORMER | set(more))
    if settings.get("do_lower_case"):
        raise CheckpointError(f"{folder} lowercases texts outside its tokenizer, which is not supported")
    stated = settings.get("transformer_task")
    if stated is not None and stated != task:
        raise CheckpointError(f"{folder} has a Transformer for {stated!r}, not for {task!r}")
    _check_outputs(folder, settings)
    for name in _ARGUMENTS:
        if unread := _stated(settings.get(name)) - _IDLE_ARGUMENTS:
            raise CheckpointError(f"{path} states {name} of {sorted(unread)}, which is not supported")
    return settings


def _stated(value: Any) -> set[str]:
    return {str(key) for key, each in value.items() if each not in (None, {})} if isinstance(value, Mapping) else set()


def _check_outputs(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise if a Transformer gives anything else than the states of tokens."""
    name, modalities = settings.get("module_output_name"), settings.get("modality_config") or {"text": {}}
    if not isinstance(modalities, Mapping) or not isinstance(text := modalities.get("text"), Mapping):
        raise CheckpointError(f"{folder} reads {modalities!r}, which is no text")
    method, output = text.get("method", "forward"), text.get("method_output_name", "last_hidden_state")
    if name not in (None, "token_embeddings") or method != "forward" or output not in _OUTPUTS:
        raise CheckpointError(
            f"{folder} takes {output!r} of {method!r} as {name!r}; supported are last hidden states as token_embeddings"
        )
