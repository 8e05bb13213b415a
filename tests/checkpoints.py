"""Tiny checkpoints for tests: random weights and a real tokenizer over characters of many scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789.,;:!?'\"()-/",
    "äöüßéèçñãõ",
    "абвгдежзиклмнопрстуфхцчшыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "अआइईउऊकखगघचछजझटठडढतथदधनपफबभमयरलवशसहािीुूेैोौ्",
    "ののにをはがでとしてあいうえおかきくけこ",
    "中国的一是不了人我在有他这大来上",
    "한국어는안녕하세요",
)
WORDS = ("the", "passage", "query", "where", "bridge", "what", "волга", "мост", "Brücke", "橋")


@dataclass(frozen=True)
class TinyCheckpoint:
    """Shape of a tiny checkpoint, and which heads it has."""

    seed: int = 0
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    positions: int = 512
    colbert_width: int = 32
    sparse: bool = True
    colbert: bool = True


def tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer of words and characters, with XLM-RoBERTa's special tokens."""
    characters = sorted({character for script in SCRIPTS for character in script})
    pieces = [
        *SPECIAL,
        "▁",
        *(f"▁{word}" for word in WORDS),
        *characters,
        *(f"▁{each}" for each in characters),
        "<mask>",
    ]
    scores = [0.0] * len(SPECIAL) + [-2.0 - 0.01 * i for i in range(len(pieces) - len(SPECIAL))]
    core = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3, byte_fallback=False))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{f"{name}_token": token for name, token in names.items()})


def write_backbone(folder: Path, shape: TinyCheckpoint) -> Path:
    """Write a plain transformers folder, which does not state its pooling."""
    words = tokenizer()
    torch.manual_seed(shape.seed)
    config = XLMRobertaConfig(
        vocab_size=len(words),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=2 * shape.hidden,
        max_position_embeddings=shape.positions + 2,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.2,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def backbone_config(kind: str, shape: TinyCheckpoint, **options: object) -> PreTrainedConfig:
    """Return the configuration of a tiny transformer of an architecture such as "gte" or "modernbert"."""
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "modernbert":
        ids |= {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 32, "initializer_cutoff_factor": 4.0}
    config = CONFIG_MAPPING[kind](
        vocab_size=len(tokenizer()),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=2 * shape.hidden,
        max_position_embeddings=shape.positions + (2 if kind in ("xlm-roberta", "roberta") else 0),
        initializer_range=0.2,
        **ids,
        **options,
    )
    config.dtype = "float32"
    return config


def write_model(folder: Path, kind: str, auto: type, shape: TinyCheckpoint, **options: object) -> Path:
    """Write a plain transformers folder of an architecture, with the head of a class such as AutoModelForMaskedLM."""
    torch.manual_seed(shape.seed)
    auto.from_config(backbone_config(kind, shape, **options)).save_pretrained(folder)
    words = tokenizer()
    words.model_max_length = shape.positions
    words.save_pretrained(folder)
    return folder


def write_pooling(folder: Path, pooling: str, normalise: bool = True, **settings: object) -> Path:
    """Add sentence-transformers' files to a plain transformers folder; settings are of the whole model."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if normalise else [])]
    write_modules(folder, [(f"sentence_transformers.models.{kind}", path) for kind, path in modules])
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    config = {"word_embedding_dimension": hidden, "pooling_mode": pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    """Write modules.json of (type, path), and the folders that it names."""
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))
    for _, path in modules:
        (folder / path).mkdir(exist_ok=True)


def write_bge_m3(folder: Path, shape: TinyCheckpoint) -> Path:
    """Write BGE-M3's layout: a transformers folder, `sparse_linear.pt` and `colbert_linear.pt`."""
    write_backbone(folder, shape)
    if shape.sparse:
        torch.save(nn.Linear(shape.hidden, 1).state_dict(), folder / "sparse_linear.pt")
    if shape.colbert:
        torch.save(nn.Linear(shape.hidden, shape.colbert_width).state_dict(), folder / "colbert_linear.pt")
    return folder


def write_sentence_transformers(
    folder: Path, shape: TinyCheckpoint, pooling: str = "mean", normalise: bool = True
) -> Path:
    """Write a sentence-transformers folder of Transformer, Pooling and optionally Normalize."""
    write_backbone(folder, shape)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if normalise else [])]
    entries = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    chosen = {
        f"pooling_mode_{name}": name == f"{pooling}_token{'s' if pooling == 'mean' else ''}" for name in _POOLINGS
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": shape.hidden, **chosen}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    return folder


_POOLINGS = ("cls_token", "mean_tokens", "max_tokens")


def write_sparse_encoder(
    folder: Path, kind: str, shape: TinyCheckpoint, pooling: dict[str, object] | None = None, **settings: object
) -> Path:
    """Write sentence-transformers' SparseEncoder: a masked language model and SpladePooling."""
    write_model(folder, kind, AutoModelForMaskedLM, shape)
    _spread_head(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": shape.positions}))
    kinds = ("sparse_encoder.models.MLMTransformer", "sparse_encoder.models.SpladePooling")
    write_modules(folder, [(f"sentence_transformers.{kinds[0]}", ""), (f"sentence_transformers.{kinds[1]}", "1_Pool")])
    (folder / "1_Pool" / "config.json").write_text(json.dumps({"pooling_strategy": "max", **(pooling or {})}))
    stated = {"model_type": "SparseEncoder", "similarity_fn_name": "dot", "prompts": {}, **settings}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    return folder


def write_inference_free(folder: Path, kind: str, shape: TinyCheckpoint) -> Path:
    """Write a SparseEncoder whose queries have a static weight per token, and whose passages are expanded."""
    document, query = folder / "document_0_MLMTransformer", folder / "query_0_SparseStaticEmbedding"
    write_sparse_encoder(document, kind, shape)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (document / name).rename(folder / name)
    (document / "1_Pool").rename(folder / "document_1_SpladePooling")
    write_modules(folder, [("sentence_transformers.sparse_encoder.models.Router", "")])
    tokenizer().save_pretrained(query)
    torch.manual_seed(shape.seed)
    save_file({"weight": torch.rand(len(tokenizer()))}, query / "model.safetensors")
    (query / "config.json").write_text(json.dumps({"frozen": False}))
    package = "sentence_transformers.sparse_encoder.models"
    routes = {
        "types": {
            query.name: f"{package}.SparseStaticEmbedding",
            document.name: f"{package}.MLMTransformer",
            "document_1_SpladePooling": f"{package}.SpladePooling",
        },
        "structure": {"query": [query.name], "document": [document.name, "document_1_SpladePooling"]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    (folder / "router_config.json").write_text(json.dumps(routes))
    return folder


def _spread_head(folder: Path) -> None:
    """Give every term a bias of its own, mostly negative, so that texts have some terms and not all."""
    tensors = load_file(folder / "model.safetensors")
    biases = [name for name in tensors if name.endswith(("predictions.bias", "lm_head.bias", "decoder.bias"))]
    biases += [name for name in tensors if name == "vocab_projector.bias"]
    for name in biases:
        tensors[name] = torch.linspace(-4, 1, len(tensors[name]))[torch.randperm(len(tensors[name]))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
