"""M3FinetuneEngine: training as a LlamaIndex fine-tuning engine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from m3_integrations.llama_index import M3Embedding, M3FinetuneEngine
from tests.training.loops import PLACES

# In the shape of LlamaIndex's EmbeddingQAFinetuneDataset.
DATASET = SimpleNamespace(
    queries={f"q{i}": f"where is the {place}" for i, place in enumerate(PLACES)},
    corpus={f"d{i}": f"the {place} is near the sea" for i, place in enumerate(PLACES)},
    relevant_docs={f"q{i}": [f"d{i}"] for i in range(len(PLACES))},
)


def engine(model, folder, **options):
    return M3FinetuneEngine(DATASET, str(model), folder / "model", steps=2, device="cpu", **options)


def test_finetune_returns_an_embedding_for_an_index(bge_m3, tmp_path):
    made = engine(bge_m3(), tmp_path, negatives=2)
    made.finetune()
    model = made.get_finetuned_model()
    assert isinstance(model, M3Embedding)
    assert model.get_query_embedding("where is the river") != M3Embedding(str(bge_m3())).get_query_embedding(
        "where is the river"
    )
    nodes = [TextNode(id_=id, text=text) for id, text in DATASET.corpus.items()]
    found = VectorStoreIndex(nodes, embed_model=model).as_retriever(similarity_top_k=2).retrieve("where is the river")
    assert len(found) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # what was mined and kept for a resume is gone


def test_datasets_can_be_files_with_a_validation_set(bge_m3, tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(vars(DATASET)), encoding="utf-8")
    made = M3FinetuneEngine(
        path, str(bge_m3()), tmp_path / "model", path, steps=1, negatives=0, device="cpu", parts=("sparse",)
    )
    made.finetune()
    assert made.result.stages[0].before.keys() == {"dense", "sparse", "multi_vector", "dense + sparse", "all"}


def test_the_finetuned_model_before_finetune_is_rejected(bge_m3, tmp_path):
    with pytest.raises(FileNotFoundError, match="call finetune"):
        engine(bge_m3(), tmp_path).get_finetuned_model()


def test_finetune_takes_no_arguments(bge_m3, tmp_path):
    with pytest.raises(ValueError, match=r"\['epochs'\]"):
        engine(bge_m3(), tmp_path).finetune(epochs=3)


def test_an_invalid_dataset_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="queries"):
        M3FinetuneEngine(object(), model_output_path=tmp_path / "model")
