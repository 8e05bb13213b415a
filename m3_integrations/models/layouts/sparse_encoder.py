"""The layout of sentence-transformers' SparseEncoder: SPLADE, and static weights on the query side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint_files import UNBOUNDED, inside, read_named_tensors, read_object, read_tensors
from m3_integrations.models.heads.term_expansion import ExpansionOptions, TermExpansion
from m3_integrations.models.layouts.base import FolderLayout
from m3_integrations.models.layouts.bge_m3 import linear_of
from m3_integrations.models.layouts.sentence_transformers import (
    check_width,
    read_max_length,
    read_modules,
    read_prompts,
)
from m3_integrations.models.layouts.settings import read_model_settings, read_settings, read_transformer_settings
from m3_integrations.models.layouts.transformers_folder import Backbone, read_tokenizer
from m3_integrations.models.transformer import Heads

_ROUTER = {"default_route", "allow_empty_key", "route_mappings"}
_POOLING = {"pooling_strategy", "activation_function", "chunk_size", "embedding_dimension", "word_embedding_dimension"}
TERM_EXPANSION, QUERY_WEIGHTS = "term_expansion", "query_weights"
_READS = "this package reads a fill-mask Transformer with SpladePooling, and a Router of it with SparseStaticEmbedding"


class _Names(NamedTuple):
    """Names of a masked-language-model head's tensors, and its activation."""

    dense: str
    norms: tuple[str, ...]
    decoder: str
    biases: tuple[str, ...]
    activation: str = "gelu"
    activation_key: str = ""  # of the configuration
    eps_key: str = "layer_norm_eps"


_ROBERTA = _Names("lm_head.dense", ("lm_head.layer_norm",), "lm_head.decoder", ("lm_head.decoder.bias", "lm_head.bias"))
_HEADS: Mapping[str, _Names] = {
    "bert": _Names(
        "cls.predictions.transform.dense",
        ("cls.predictions.transform.LayerNorm",),
        "cls.predictions.decoder",
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        activation_key="hidden_act",
    ),
    "distilbert": _Names(
        "vocab_transform", ("vocab_layer_norm",), "vocab_projector", ("vocab_projector.bias",), "gelu", "activation", ""
    ),
    "modernbert": _Names(
        "head.dense", ("head.norm",), "decoder", ("decoder.bias",), "gelu", "classifier_activation", "norm_eps"
    ),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), _ROBERTA),
    "gte": _ROBERTA._replace(norms=("lm_head.norm", "lm_head.layer_norm")),  # as in files, and as in its class
}


def is_sparse_encoder(folder: Path) -> bool:
    """Return whether modules.json names a SparseEncoder."""
    if read_object(folder / "config_sentence_transformers.json", default={}).get("model_type") == "SparseEncoder":
        return True
    kinds = {kind for kind, _ in read_modules(folder)}
    return bool(kinds & {"SpladePooling", "MLMTransformer", "SparseAutoEncoder", "SparseStaticEmbedding"})


def read_layout(folder: Path) -> FolderLayout:
    """Read the layout of a SparseEncoder.

    Raises:
        CheckpointError: If its modules are not those of SPLADE, or it states something that is not supported.
    """
    config = read_model_settings(folder, "max_active_dims")
    if config.get("similarity_fn_name") not in (None, "dot"):
        named = config["similarity_fn_name"]
        raise CheckpointError(f"{folder} compares sparse vectors by {named!r}; supported is 'dot', the inner product")
    modules = read_modules(folder)
    if [kind for kind, _ in modules] == ["Router"]:
        root, pooling, query = _read_routes(folder, modules[0][1])
    else:
        root, pooling, query = *_splade(folder, modules), None
    stated = {
        "pooling": None,
        "normalise": False,
        "max_length": read_max_length(root, UNBOUNDED, "fill-mask"),
        "weights": {"sparse": 1.0},
        "max_terms": config.get("max_active_dims"),
        **read_prompts(config),
    }

    def read_heads(backbone: Backbone, tokenizer: PreTrainedTokenizerFast) -> Heads:
        weights = None if query is None else _read_static_weights(query, root, tokenizer)
        expansion = _read_expansion(root, backbone.model, pooling)
        check_width(root, pooling, expansion.terms)
        return Heads(dense=False, expansion=expansion, query_weights=weights)

    return FolderLayout(root, stated, read_heads)


def _read_routes(folder: Path, path: str) -> tuple[Path, Mapping[str, Any], Path]:
    """Return the documents' transformer and pooling, and the folder of the queries' static weights."""
    base = inside(folder, path)
    routes = read_settings(base / "router_config.json", ("types", "structure", "parameters"))
    try:
        types = {str(name): str(kind).rpartition(".")[2] for name, kind in routes["types"].items()}
        structure = {
            str(route): [(types[name], f"{path}/{name}".strip("/")) for name in names]
            for route, names in routes["structure"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{base / 'router_config.json'} must hold 'types' and a 'structure' of them") from error
    if structure.keys() != {"query", "document"}:
        raise CheckpointError(f"{folder} routes {sorted(structure)}, not query and document; {_READS}")
    parameters = routes.get("parameters") or {}
    if parameters.get("route_mappings") or parameters.keys() - _ROUTER:
        raise CheckpointError(f"{folder} routes by {parameters}; {_READS}, for queries and documents")
    kinds = [kind for kind, _ in structure["query"]]
    if kinds != ["SparseStaticEmbedding"]:
        raise CheckpointError(f"{folder} encodes queries by {kinds}; {_READS}")
    return *_splade(folder, structure["document"]), inside(folder, structure["query"][0][1])


def _splade(folder: Path, modules: list[tuple[str, str]]) -> tuple[Path, Mapping[str, Any]]:
    """Return the folder of the transformer and the configuration of the pooling."""
    kinds = [kind for kind, _ in modules]
    if len(kinds) != 2 or kinds[0] not in ("Transformer", "MLMTransformer") or kinds[1] != "SpladePooling":
        raise CheckpointError(f"{folder} has the sparse modules {kinds}; {_READS}")
    root = inside(folder, modules[0][1])
    task = read_transformer_settings(root, task="fill-mask").get("transformer_task")
    if task is None and kinds[0] == "Transformer":
        raise CheckpointError(f"{folder} has a Transformer for no task, not for 'fill-mask'; {_READS}")
    return root, read_settings(inside(folder, modules[1][1]) / "config.json", _POOLING)


def _read_expansion(root: Path, backbone: PreTrainedModel, pooling: Mapping[str, Any]) -> TermExpansion:
    config = backbone.config
    names = _HEADS.get(config.model_type)
    if names is None:
        raise CheckpointError(
            f"{root} has a masked-language-model head of {config.model_type!r}; supported are those of {sorted(_HEADS)}"
        )
    unknown = pooling.get("activation_function", "relu") not in ("relu", "log1p_relu")
    if unknown or pooling.get("pooling_strategy", "max") not in ("max", "sum"):
        raise CheckpointError(f"{root} pools terms by {dict(pooling)}; supported are relu and log1p_relu, max and sum")
    options = ExpansionOptions(
        activation=str(getattr(config, names.activation_key, None) or names.activation),
        eps=float(getattr(config, names.eps_key)) if names.eps_key else 1e-12,
        pooling=pooling.get("pooling_strategy", "max"),
        log_twice=pooling.get("activation_function") == "log1p_relu",
    )
    wanted = {
        **{f"dense.{part}": (f"{names.dense}.{part}",) for part in ("weight", "bias")},
        **{f"norm.{part}": tuple(f"{norm}.{part}" for norm in names.norms) for part in ("weight", "bias")},
        "decoder": (f"{names.decoder}.weight",),
        "bias": names.biases,
    }
    stored = read_named_tensors(root, {name for several in wanted.values() for name in several})
    tensors = {key: stored[name] for key, several in wanted.items() for name in several[::-1] if name in stored}
    return _expansion(root, backbone, options, tensors)


def _expansion(
    where: Path, backbone: PreTrainedModel, options: ExpansionOptions, tensors: Mapping[str, Tensor]
) -> TermExpansion:
    hidden = int(backbone.config.hidden_size)
    embeddings: Any = backbone.get_input_embeddings()
    decoder = tensors.get("decoder")
    tied = decoder is None or (decoder.shape == embeddings.weight.shape and torch.equal(decoder, embeddings.weight))
    weight: nn.Parameter = embeddings.weight
    if decoder is not None and not tied:
        weight = nn.Parameter(decoder, requires_grad=False)
    shapes = {
        "dense.weight": (hidden, hidden),
        "dense.bias": (hidden,),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "bias": (len(weight),),
    }
    optional = {"dense.bias", "norm.bias", "bias"} if backbone.config.model_type == "modernbert" else set()
    for name, shape in shapes.items():
        if name not in tensors and name not in optional:
            raise CheckpointError(f"{where} lacks {name} of its masked-language-model head; download it again")
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{where} has {name} of {tuple(tensors[name].shape)}, not {shape}, in its head")
    if weight.ndim != 2 or weight.shape[1] != hidden:
        raise CheckpointError(
            f"{where} has a decoder of {tuple(weight.shape)}, not (vocabulary, {hidden}), in its head"
        )
    norm = nn.LayerNorm(hidden, options.eps, bias="norm.bias" in tensors)
    norm.load_state_dict({part: tensors[f"norm.{part}"] for part in ("weight", "bias") if f"norm.{part}" in tensors})
    dense = linear_of({part: tensors[f"dense.{part}"] for part in ("weight", "bias") if f"dense.{part}" in tensors})
    bias = tensors.get("bias", torch.zeros(len(weight)))
    return TermExpansion(options, dense, norm.requires_grad_(False), weight, bias)


def _read_static_weights(folder: Path, root: Path, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    if (folder / "tokenizer.json").is_file() and folder != root:
        own, other = (json.loads(each.backend_tokenizer.to_str()) for each in (read_tokenizer(folder), tokenizer))
        if any(own[part] != other[part] for part in ("normalizer", "pre_tokenizer", "model")):
            raise CheckpointError(f"{folder} has another vocabulary than {root}; supported is one for both sides")
    config = read_settings(folder / "config.json", ("frozen", "path"), {})
    if str(config.get("path") or "").endswith(".json"):
        table = read_object(inside(folder, str(config["path"])))
        weights = torch.zeros(len(tokenizer.get_vocab()))
        for token, weight in table.items():
            weights[tokenizer.convert_tokens_to_ids(token)] = float(weight)
        return check_query_weights(folder, weights, len(tokenizer.get_vocab()))
    file = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), None
    )
    tensors = {} if file is None else read_tensors(file)
    if tensors.keys() != {"weight"}:
        raise CheckpointError(f"{folder} must hold a 'weight' of each token, in model.safetensors or pytorch_model.bin")
    return check_query_weights(folder, tensors["weight"].float(), len(tokenizer.get_vocab()))


def check_query_weights(where: Path, weights: Tensor, tokens: int) -> Tensor:
    """Return static weights of queries, checked to be one for each token, finite and at least 0."""
    if len(weights) < tokens:
        raise CheckpointError(f"{where} has weights for {len(weights)} tokens, but the tokenizer has {tokens}")
    if weights.ndim != 1 or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise CheckpointError(f"{where} must hold one finite weight of at least 0 per token")
    return weights


def save_sparse_heads(folder: Path, heads: Heads, backbone: PreTrainedModel) -> None:
    """Write the heads of a SparseEncoder in our own layout."""
    if heads.expansion is not None:
        metadata = {"options": json.dumps(asdict(heads.expansion.options))}
        save_file(expansion_tensors(heads.expansion, backbone), folder / f"{TERM_EXPANSION}.safetensors", metadata)
    if heads.query_weights is not None:
        save_file({"weight": heads.query_weights.float().cpu()}, folder / f"{QUERY_WEIGHTS}.safetensors")


def read_sparse_heads(folder: Path, backbone: PreTrainedModel, tokens: int) -> dict[str, Any]:
    """Read the heads that `save_sparse_heads` wrote, by the names of `Heads`."""
    found: dict[str, Any] = {}
    path = folder / f"{TERM_EXPANSION}.safetensors"
    if path.is_file():
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            stated = (file.metadata() or {}).get("options", "")
        try:
            options = ExpansionOptions(**json.loads(stated))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has options that this version cannot use: {error}") from error
        found["expansion"] = _expansion(path, backbone, options, tensors)
    path = folder / f"{QUERY_WEIGHTS}.safetensors"
    if path.is_file():
        found["query_weights"] = check_query_weights(path, read_tensors(path).get("weight", torch.zeros(0, 0)), tokens)
    return found


def expansion_tensors(expansion: TermExpansion, backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of a head in float32, without a decoder that is the backbone's embeddings."""
    embeddings: Any = backbone.get_input_embeddings()
    tied = expansion.decoder is embeddings.weight
    state = {name: value for name, value in expansion.state_dict().items() if name != "decoder" or not tied}
    return {name: value.detach().float().cpu().contiguous() for name, value in state.items()}
