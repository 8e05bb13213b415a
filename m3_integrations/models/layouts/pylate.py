"""The layout of PyLate's ColBERT: a Transformer and Dense layers, with its conventions in one file."""

from __future__ import annotations

import string
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import inside, read_json, read_object
from m3_integrations.models.heads.late_interaction import LateInteraction, QueryExpansion
from m3_integrations.models.layouts.base import FolderLayout
from m3_integrations.models.layouts.multi_vector_encoder import expansion_token, late_layout
from m3_integrations.models.layouts.sentence_transformers import read_max_length, read_modules

_QUERY_LENGTH, _PASSAGE_LENGTH = 32, 180  # PyLate's where the folder states none


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
    config = read_object(folder / "config_sentence_transformers.json", default={})
    if config.get("similarity_fn_name") not in (None, "MaxSim"):
        raise CheckpointError(f"{folder} compares token vectors by {config['similarity_fn_name']!r}, not 'MaxSim'")
    modules = read_modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:1] != ["Transformer"] or set(kinds[1:]) != {"Dense"}:
        raise CheckpointError(f"{folder} has the modules {kinds}; this package reads PyLate's Transformer and Dense")
    markers = tuple(str(config.get(key, default) or "") for key, default in _MARKERS.items())
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

    prompts = dict(zip(("query_prefix", "passage_prefix"), markers, strict=True))
    dense = [inside(folder, path) for kind, path in modules if kind == "Dense"]
    return late_layout(root, length, prompts, dense, late, tuple(filter(None, markers)))


_MARKERS = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
