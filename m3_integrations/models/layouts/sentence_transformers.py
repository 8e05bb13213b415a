"""The layout of sentence-transformers' SentenceTransformer: modules, pooling, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import UNBOUNDED, inside, read_json, read_object
from m3_integrations.models.layouts.settings import read_model_settings, read_settings, read_transformer_settings

_POOLING_OF = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_POOLING_FLAGS = {
    *_POOLING_OF,
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
}
_POOLING = _POOLING_FLAGS | {"pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension"}
_PREFIXES = {"query_prefix": ("query",), "passage_prefix": ("document", "passage", "corpus")}  # in their order there
_ORDER = ("Transformer", "Pooling", "Normalize")
_PACKAGES = ("sentence_transformers.", "pylate.")
_READS = "this package reads Transformer (at the top of the folder), Pooling and Normalize"


def sentence_transformers_conventions(folder: Path) -> dict[str, Any]:
    """Read the conventions that a sentence-transformers folder states.

    Raises:
        CheckpointError: If it states one that is not supported.
    """
    modules = read_modules(folder)
    for kind, path in modules:
        if kind not in _ORDER or (kind == "Transformer" and path):
            raise CheckpointError(f"{folder} has a sentence-transformers module {kind!r} at {path!r}; {_READS}")
    kinds = [kind for kind, _ in modules]
    if kinds != [kind for kind in _ORDER if kind in kinds] or "Transformer" not in kinds:
        raise CheckpointError(f"{folder} has the modules {kinds}; {_READS}, in this order")
    paths = dict(modules)
    stated: dict[str, Any] = {"normalise": "Normalize" in paths}
    if "Pooling" in paths:
        stated["pooling"] = _pooling(folder, inside(folder, paths["Pooling"]))
    normalize = paths.get("Normalize")
    if normalize and (folder / normalize).is_dir():  # hubs keep no empty folders
        check_normalize(inside(folder, normalize), "sentence_embedding")
    return stated | stated_conventions(folder)


def stated_conventions(folder: Path) -> dict[str, Any]:
    """Read what a folder states of its whole model and its Transformer, with or without modules.

    Raises:
        CheckpointError: If it states anything that is not supported.
    """
    config = read_model_settings(folder, "truncate_dim", kinds=("SentenceTransformer",))
    stated: dict[str, Any] = {"max_length": read_max_length(folder, UNBOUNDED), **read_prompts(config)}
    similarity = config.get("similarity_fn_name")
    if similarity == "cosine":
        stated["normalise"] = True
    elif similarity not in (None, "dot"):
        raise CheckpointError(f"{folder} compares vectors by {similarity!r}; supported are 'cosine' and 'dot'")
    if config.get("truncate_dim") is not None:
        stated["truncate_dim"] = config["truncate_dim"]
    return stated


def read_max_length(folder: Path, default: int, task: str = "feature-extraction") -> int:
    """Return the longest text in tokens that a Transformer module states.

    Args:
        folder: Folder of the module.
        default: Value where it states none.
        task: The task that its layout needs.

    Raises:
        CheckpointError: If it states anything that is not supported.
    """
    length = read_transformer_settings(folder, task=task).get("max_seq_length")
    if length is None:
        return default
    if type(length) is not int:
        raise CheckpointError(f"{folder} states max_seq_length={length!r}, which is no whole number")
    return length


def read_prompts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the prefixes of queries and passages that a model's configuration states."""
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, Mapping):
        raise CheckpointError(f"prompts must map names to texts, got {prompts!r}")
    named = config.get("default_prompt_name")
    if named is not None and named not in prompts:
        raise CheckpointError(f"default_prompt_name={named!r} is none of the prompts {sorted(prompts)}")
    default = "" if named is None else prompts[named]
    return {
        prefix: next((prompts[name] for name in names if name in prompts), default) or ""
        for prefix, names in _PREFIXES.items()
    }


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return (kind, folder) of each module, in order.

    Raises:
        CheckpointError: If modules.json lists anything else, or a module of another package.
    """
    path = folder / "modules.json"
    found = []
    for module in read_list(path):
        try:
            name, place = str(module["type"]), str(module["path"])
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{path} must list modules, each with a 'type' and a 'path'") from error
        if not name.startswith(_PACKAGES):
            raise CheckpointError(f"{folder} has the module {name!r}, code of its own, which this package does not run")
        if module.get("kwargs"):
            raise CheckpointError(
                f"{folder} passes {module['kwargs']!r} to its module {name!r}, which is not supported"
            )
        found.append((name.rpartition(".")[2], place))
    return found


def read_list(path: Path) -> list[Any]:
    """Read a JSON list."""
    value = read_json(path)
    if not isinstance(value, list):
        raise CheckpointError(f"{path} must list modules, each with a 'type' and a 'path'")
    return value


def check_normalize(folder: Path, name: str) -> None:
    """Raise if a Normalize module normalizes anything else than the named features."""
    settings = read_settings(folder / "config.json", ("module_input_name", "module_output_name"), {})
    source = settings.get("module_input_name") or "sentence_embedding"
    target = settings.get("module_output_name") or source
    if {source, target} != {name}:
        other = source if source != name else target
        raise CheckpointError(f"{folder} applies Normalize to {other!r}; supported is {name!r} in this layout")


def check_width(folder: Path, stated: Mapping[str, Any], width: int | None) -> None:
    """Raise if a pooling states another width than its model has; None if that is unknown."""
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if width is not None and stated.get(key) not in (None, width):
            raise CheckpointError(f"{folder} states {key}={stated[key]!r}, but its model has {width} dimensions")


def _pooling(root: Path, folder: Path) -> str:
    config = read_settings(folder / "config.json", _POOLING)
    check_width(folder, config, read_object(root / "config.json", default={}).get("hidden_size"))
    if config.get("include_prompt") is False:
        raise CheckpointError(f"{folder} excludes the prefix from pooling, which is not supported")
    named = config.get("pooling_mode")
    if named is not None:
        return named if isinstance(named, str) else "+".join(map(str, named))
    chosen = [key for key in config if key in _POOLING_FLAGS and config[key] is True]
    return "+".join(_POOLING_OF.get(key, key) for key in chosen) or "mean"
