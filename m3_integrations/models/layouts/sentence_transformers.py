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
    stated: dict[str, Any] = {"normalise": False, "max_length": UNBOUNDED}
    for kind, path in _modules(folder):
        if kind == "Pooling":
            stated["pooling"] = _pooling(inside(folder, path))
        elif kind == "Normalize":
            stated["normalise"] = True
        elif kind != "Transformer" or path:
            raise CheckpointError(
                f"{folder} has a sentence-transformers module {kind!r} at {path!r}; this package reads "
                "Transformer (at the top of the folder), Pooling and Normalize"
            )
    settings = read_object(folder / "sentence_bert_config.json", default={})
    if settings.get("do_lower_case"):
        raise CheckpointError(f"{folder} lowercases texts outside its tokenizer, which is not supported")
    if settings.get("max_seq_length"):
        stated["max_length"] = int(settings["max_seq_length"])
    return stated | _stated_by_model(folder, read_object(folder / "config_sentence_transformers.json", default={}))


def _stated_by_model(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    prompts = config.get("prompts") or {}
    default = prompts.get(config.get("default_prompt_name") or "", "")
    stated: dict[str, Any] = {
        prefix: next((prompts[name] for name in names if name in prompts), default) or ""
        for prefix, names in _PREFIXES.items()
    }
    similarity = config.get("similarity_fn_name")
    if similarity == "cosine":
        stated["normalise"] = True
    elif similarity not in (None, "dot"):
        raise CheckpointError(f"{folder} compares vectors by {similarity!r}; supported are 'cosine' and 'dot'")
    if config.get("truncate_dim") is not None:
        stated["truncate_dim"] = config["truncate_dim"]
    return stated


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return (kind, folder) of each module, in order."""
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
