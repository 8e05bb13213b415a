"""The layout of sentence-transformers' SentenceTransformer: modules, pooling, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import UNBOUNDED, inside, read_json, read_object

_POOLING_OF = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_PREFIXES = {"query_prefix": ("query",), "passage_prefix": ("document", "passage", "corpus")}  # in their order there


def sentence_transformers_conventions(folder: Path) -> dict[str, Any]:
    """Read the conventions that a sentence-transformers folder states.

    Raises:
        CheckpointError: If it states one that is not supported.
    """
    stated: dict[str, Any] = {"normalise": False}
    for kind, path in read_modules(folder):
        if kind == "Pooling":
            stated["pooling"] = _pooling(inside(folder, path))
        elif kind == "Normalize":
            stated["normalise"] = True
        elif kind != "Transformer" or path:
            raise CheckpointError(
                f"{folder} has a sentence-transformers module {kind!r} at {path!r}; this package reads "
                "Transformer (at the top of the folder), Pooling and Normalize"
            )
    stated["max_length"] = read_max_length(folder, UNBOUNDED)
    return stated | _stated_by_model(folder, read_object(folder / "config_sentence_transformers.json", default={}))


def read_max_length(folder: Path, default: int) -> int:
    """Return the longest text in tokens that a Transformer module states.

    Args:
        folder: Folder of the module.
        default: Value where it states none.

    Raises:
        CheckpointError: If it changes texts in a way that is not supported.
    """
    settings = read_object(folder / "sentence_bert_config.json", default={})
    if settings.get("do_lower_case"):
        raise CheckpointError(f"{folder} lowercases texts outside its tokenizer, which is not supported")
    length = settings.get("max_seq_length") or default
    if type(length) is not int:
        raise CheckpointError(f"{folder} states max_seq_length={length!r}, which is no whole number")
    return length


def read_prompts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the prefixes of queries and passages that a model's configuration states."""
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, Mapping):
        raise CheckpointError(f"prompts must map names to texts, got {prompts!r}")
    default = prompts.get(config.get("default_prompt_name") or "", "")
    return {
        prefix: next((prompts[name] for name in names if name in prompts), default) or ""
        for prefix, names in _PREFIXES.items()
    }


def _stated_by_model(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    stated: dict[str, Any] = dict(read_prompts(config))
    similarity = config.get("similarity_fn_name")
    if similarity == "cosine":
        stated["normalise"] = True
    elif similarity not in (None, "dot"):
        raise CheckpointError(f"{folder} compares vectors by {similarity!r}; supported are 'cosine' and 'dot'")
    if config.get("truncate_dim") is not None:
        stated["truncate_dim"] = config["truncate_dim"]
    return stated


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return (kind, folder) of each module, in order.

    Raises:
        CheckpointError: If modules.json lists anything else.
    """
    path = folder / "modules.json"
    try:
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in read_json(path)]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path} must list modules, each with a 'type' and a 'path'") from error


def _pooling(folder: Path) -> str:
    config = read_object(folder / "config.json")
    if config.get("include_prompt") is False:
        raise CheckpointError(f"{folder} excludes the prefix from pooling, which is not supported")
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named
    chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    return _POOLING_OF.get(chosen[0], chosen[0]) if len(chosen) == 1 else "+".join(chosen)
