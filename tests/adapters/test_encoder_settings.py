"""Every option of an encoder is an option of every component that loads one, and survives its serialization."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import fields

import pytest

from m3_integrations import M3Encoder, langchain, llama_index
from m3_integrations.adapters.encoder_registry import get_encoder
from m3_integrations.encoders.base import EncoderConfig
from m3_integrations.testing import HashEncoder

VALUES = {
    "model": "a folder",
    "device": "cuda:1",
    "dtype": "bfloat16",
    "max_length": 64,
    "batch_tokens": 4096,
    "query_prefix": "query: ",
    "passage_prefix": "passage: ",
    "revision": "main",
    "pooling": "mean",
    "window_overlap": 8,
    "mcls_interval": 16,
    "backend": "onnx",
    "export_dir": "another folder",
    "token_pooling": 2,
    "truncate_dim": 16,
    "server_url": "http://127.0.0.1:8760",
}
OPTIONS = [field.name for field in fields(EncoderConfig)]
STORE = llama_index.M3VectorStore
LLAMA_INDEX = [llama_index.M3Embedding, llama_index.M3SparseEmbedding, llama_index.M3Rerank]
LANGCHAIN = [langchain.M3Embeddings, langchain.M3SparseEmbeddings, langchain.M3Reranker]
COMPONENTS = [STORE, *LLAMA_INDEX, *LANGCHAIN]
COPIES = {
    "pickle": lambda component: pickle.loads(pickle.dumps(component)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "model_copy": lambda component: component.model_copy(),
}
LLAMA_INDEX_COPIES = {
    **COPIES,
    "dump": lambda component: type(component).from_dict(component.model_dump()),
    "dict": lambda component: type(component).from_dict(component.to_dict()),
    "json": lambda component: type(component).from_json(component.to_json()),
}
LANGCHAIN_COPIES = {
    **COPIES,
    "dump": lambda component: type(component)(**component.model_dump()),
    "json": lambda component: type(component).model_validate_json(component.model_dump_json()),
}
every_component = pytest.mark.parametrize("component", COMPONENTS)
every_option = pytest.mark.parametrize("option", OPTIONS)


def with_option(component, option):
    """A component with this option alone; a store, which loads its model at once, is given an encoder."""
    given = {"encoder": HashEncoder()} if component is STORE else {}
    options = {"model": "m3-mini", option: VALUES[option]}
    return component(**given, **{component.model_field: options.pop("model"), **options})


def test_every_option_has_a_value_here_other_than_its_default():
    assert list(VALUES) == OPTIONS
    assert all(field.default != VALUES[field.name] for field in fields(EncoderConfig))


def test_from_pretrained_takes_the_options_of_the_config_with_their_defaults_and_types():
    parameters = inspect.signature(M3Encoder.from_pretrained).parameters.values()
    assert {each.name: (each.default, each.annotation) for each in parameters} == {
        field.name: (field.default, field.type) for field in fields(EncoderConfig) if field.name != "server_url"
    }


@every_component
@every_option
def test_every_component_takes_every_option(component, option):
    assert with_option(component, option).encoder_config() == EncoderConfig(**{option: VALUES[option]})


@pytest.mark.parametrize(
    ("component", "duplicate"),
    [
        *((each, how) for each in LLAMA_INDEX for how in LLAMA_INDEX_COPIES.items()),
        *((each, how) for each in LANGCHAIN for how in LANGCHAIN_COPIES.items()),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value[0],
)
@every_option
def test_every_option_survives_every_serialization(component, option, duplicate):
    _, duplicated = duplicate
    assert duplicated(with_option(component, option)).encoder_config() == EncoderConfig(**{option: VALUES[option]})


@every_option
def test_every_option_survives_persisting_a_store(option, tmp_path):
    store, path = with_option(STORE, option), str(tmp_path / "store.json")
    store.persist(path)
    again = STORE.from_persist_path(path, encoder=store.encoder)
    assert again.encoder_config() == store.encoder_config() == EncoderConfig(**{option: VALUES[option]})


@every_component
def test_settings_that_were_dumped_as_exported_are_read_as_export_dir(component):
    encoder = {"encoder": HashEncoder()} if component is STORE else {}
    assert component(**encoder, exported="old").export_dir == "old"
    assert component(**encoder, exported="old", export_dir="new").export_dir == "new"
    assert component(**encoder, exported=None).export_dir is None
    assert "exported" not in component(**encoder, exported="old").model_dump()


@every_component
def test_an_option_reaches_the_encoder(bge_m3, component):
    named = {component.model_field: str(bge_m3()), "max_length": 32, "window_overlap": 4, "token_pooling": 2}
    encoder = component(**named).encoder
    config = EncoderConfig(str(bge_m3()), max_length=32, window_overlap=4, token_pooling=2)
    assert encoder is get_encoder(config)
    assert encoder.fingerprint == M3Encoder.from_config(config).fingerprint


@pytest.mark.parametrize("component", [*LLAMA_INDEX, *LANGCHAIN])
def test_a_component_in_use_is_pickled_without_weights_and_its_deep_copy_shares_them(bge_m3, component):
    used = component(**{component.model_field: str(bge_m3())})
    encoder = used.encoder
    assert len(pickle.dumps(used)) < 4096
    assert copy.deepcopy(used).encoder is encoder
    assert used.encoder is encoder
