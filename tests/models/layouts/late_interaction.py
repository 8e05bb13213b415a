"""ColBERT-like folders for tests, and a plain recomputation of what they give."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from tests.checkpoints import TinyCheckpoint, backbone_config, tokenizer, write_modules

Q, D = "[Q] ", "[D] "


def write_dense(folder: Path, inputs: int, outputs: int, *, bias: bool = False, residual: bool = False) -> None:
    """Write a Dense module of random weights."""
    folder.mkdir(exist_ok=True)
    config = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": "torch.nn.modules.linear.Identity",
        "use_residual": residual,
    }
    tensors = {"linear.weight": torch.randn(outputs, inputs)}
    if bias:
        tensors["linear.bias"] = torch.randn(outputs)
    if residual and inputs != outputs:
        tensors["residual.weight"] = torch.randn(outputs, inputs)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def write_transformer(folder: Path, kind: str, shape: TinyCheckpoint, markers: bool = True) -> None:
    """Write a transformer whose tokenizer knows the markers of queries and passages."""
    words = tokenizer()
    if markers:
        words.add_tokens([AddedToken(each, normalized=False) for each in (Q, D)])
    torch.manual_seed(shape.seed)
    model = AutoModel.from_config(backbone_config(kind, shape))
    model.resize_token_embeddings(len(words))
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def write_pylate(folder: Path, kind: str, shape: TinyCheckpoint, **settings: object) -> Path:
    """Write PyLate's layout: a Transformer and one Dense layer."""
    write_transformer(folder, kind, shape)
    package = "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"
    write_modules(folder, [(package[0], ""), (package[1], "1_Dense")])
    write_dense(folder / "1_Dense", shape.hidden, 16)
    stated = {
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        "prompts": {},
        "query_prefix": Q,
        "document_prefix": D,
        "query_length": 32,
        "document_length": 180,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        **settings,
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 31, "do_lower_case": False}))
    return folder


def write_multi_vector(
    folder: Path,
    kind: str,
    shape: TinyCheckpoint,
    transformer: dict[str, object] | None = None,
    mask: dict[str, object] | None = None,
    **settings: object,
) -> Path:
    """Write MultiVectorEncoder's layout: a Transformer, two Dense layers, a mask and a norm."""
    write_transformer(folder, kind, shape)
    base, own = "sentence_transformers.base.modules", "sentence_transformers.multi_vector_encoder.modules"
    kinds = [
        (f"{base}.transformer.Transformer", ""),
        (f"{base}.dense.Dense", "1_Dense"),
        (f"{base}.dense.Dense", "2_Dense"),
        (f"{own}.multi_vector_mask.MultiVectorMask", "3_MultiVectorMask"),
        (f"{base}.normalize.Normalize", "4_Normalize"),
    ]
    write_modules(folder, kinds)
    write_dense(folder / "1_Dense", shape.hidden, 24, bias=True, residual=True)
    write_dense(folder / "2_Dense", 24, 24, residual=True)
    for number in (1, 2):
        path = folder / f"{number}_Dense" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "module_input_name": "token_embeddings"}))
    (folder / "3_MultiVectorMask" / "config.json").write_text(json.dumps({"skiplist_words": [], **(mask or {})}))
    (folder / "4_Normalize" / "config.json").write_text(json.dumps({"module_input_name": "token_embeddings"}))
    stated = {
        "model_type": "MultiVectorEncoder",
        "similarity_fn_name": "maxsim",
        "prompts": {"query": Q, "document": D},
        **settings,
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, **(transformer or {})}))
    return folder


def recompute(
    folder: Path, text: str, *, marker: str, length: int, expand: bool = False, attend: bool = False, skip: str = ""
) -> torch.Tensor:
    """Compute the vectors of one text as PyLate describes them."""
    words, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = words(text, truncation=True, max_length=length - 1 if marker else length)["input_ids"]
    if marker:
        ids = [ids[0], words.convert_tokens_to_ids(marker), *ids[1:]]
    count = len(ids)
    if expand:
        ids += [words.mask_token_id] * (length - count)
    mask = torch.ones(1, len(ids), dtype=torch.long)
    if not attend:
        mask[0, count:] = 0
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    for layer in sorted(folder.glob("*_Dense")):
        hidden = _apply(layer, hidden)
    skipped = words.convert_tokens_to_ids(list(skip)) if skip else []
    kept = [i for i, id in enumerate(ids) if id not in skipped or id == words.unk_token_id]
    return functional.normalize(hidden[kept], dim=-1)


def _apply(layer: Path, hidden: torch.Tensor) -> torch.Tensor:
    tensors, config = load_file(layer / "model.safetensors"), json.loads((layer / "config.json").read_text())
    output = hidden @ tensors["linear.weight"].T + tensors.get("linear.bias", 0)
    if config.get("use_residual"):
        output = output + (hidden @ tensors["residual.weight"].T if "residual.weight" in tensors else hidden)
    return output
