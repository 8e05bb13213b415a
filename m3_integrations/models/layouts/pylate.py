"""The layout of PyLate's ColBERT: a Transformer and Dense layers, with its conventions in one file."""

from __future__ import annotations

import string
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from m3_integrations.core.errors import CheckpointError, PartNotRead
from m3_integrations.models.checkpoint_files import inside, read_json, read_object
from m3_integrations.models.heads.late_interaction import LateInteraction, QueryExpansion
from m3_integrations.models.layouts.base import FolderLayout
from m3_integrations.models.layouts.multi_vector_encoder import expansion_token, late_layout
from m3_integrations.models.layouts.sentence_transformers import read_max_length, read_modules, read_prompts
from m3_integrations.models.layouts.settings import read_model_settings

_QUERY_LENGTH, _PASSAGE_LENGTH = 32, 180  # PyLate's where the folder states none
_MARKERS = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
_SETTINGS = (
    *_MARKERS,
    "query_length",
    "document_length",
    "attend_to_expansion_tokens",
    "skiplist_words",
    "do_query_expansion",
)


def is_pylate(folder: Path) -> bool:
    """Return whether a folder was saved by PyLate."""
    config = read_object(folder / "config_sentence_transformers.json", default={})
    if config.get("model_type") == "ColBERT":
        return True
    modules = read_json(folder / "modules.json")
    types = [str(each.get("type")) for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    return any(each.startswith("pylate.") for each in types)


def read_layout(folder: Path) -> FolderLayout:
    """Read the layout of PyLate.

    Raises:
        CheckpointError: If it has other modules, or states something that is not supported.
    """
    config = read_model_settings(folder, *_SETTINGS)
    if config.get("similarity_fn_name") not in (None, "MaxSim"):
        raise CheckpointError(f"{folder} compares token vectors by {config['similarity_fn_name']!r}, not 'MaxSim'")
    modules = read_modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:1] != ["Transformer"] or set(kinds[1:]) != {"Dense"}:
        raise CheckpointError(f"{folder} has the modules {kinds}; this package reads PyLate's Transformer and Dense")
    markers = [default if config.get(key) is None else str(config[key]) for key, default in _MARKERS.items()]
    root = inside(folder, modules[0][1])
    read_max_length(root, 0)  # refuses what changes texts
    length = _PASSAGE_LENGTH if config.get("document_length") is None else config["document_length"]

    def late(tokenizer: PreTrainedTokenizerFast) -> LateInteraction:
        query_length = _QUERY_LENGTH if config.get("query_length") is None else config["query_length"]
        expansion = QueryExpansion(
            query_length, expansion_token(tokenizer), config.get("attend_to_expansion_tokens") or False
        )
        words = config.get("skiplist_words")
        return LateInteraction(
            query_length=query_length,
            passage_length=length,
            expansion=None if config.get("do_query_expansion") is False else expansion,
            skiplist=tuple(string.punctuation) if words is None else words,
        )

    prompt = _default_prompt(folder, config)
    prompts = {key: marker + prompt for key, marker in zip(("query_prefix", "passage_prefix"), markers, strict=True)}
    dense = [inside(folder, path) for kind, path in modules if kind == "Dense"]
    return late_layout(root, length, prompts, dense, late, tuple(filter(None, markers)))


def _default_prompt(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the prompt that PyLate puts before queries and passages alike; warn of those that it adds on request."""
    read_prompts(config)  # refuses invalid ones
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    others = {name: text for name, text in prompts.items() if text and name != default}
    if others:
        example = _MARKERS["query_prefix"] + str(next(iter(others.values())))
        warnings.warn(
            f"{folder} states the prompts {others}, which PyLate adds on request only; pass such a prompt after the "
            f"marker, as in query_prefix={example!r}",
            PartNotRead,
            stacklevel=7,
        )
    return str(prompts[default] or "") if default is not None else ""
