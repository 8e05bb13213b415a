"""A command imports what it needs: the start of a process is most of the time of a short one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from m3_integrations import LocalIndex, Passage, Retriever

HEAVY = {
    *("torch", "transformers", "huggingface_hub", "faiss", "scipy.optimize", "scipy.cluster"),
    *("llama_index", "langchain_core", "starlette", "m3_integrations.nudging", "m3_integrations.training"),
}
ARRAYS = {"numpy", "scipy", "tokenizers"}
SCRIPT = """
import json, sys
import m3_integrations
steps = {"import": {"modules": sorted(sys.modules)}}
from typer.testing import CliRunner
from m3_integrations import cli
for name, words in json.load(sys.stdin).items():
    result = CliRunner().invoke(cli.app, words)
    steps[name] = {"output": result.output, "modules": sorted(sys.modules)}
json.dump(steps, sys.stdout)
"""


@pytest.fixture(scope="module")
def folder(mini, tmp_path_factory):
    texts = ["the bridge over the river", "a garden in winter", "мост через реку"]
    folder = tmp_path_factory.mktemp("start") / "index"
    with LocalIndex.open(folder, mini) as index:
        index.add([Passage(str(i), text) for i, text in enumerate(texts)], mini.encode_passages(texts))
    return folder


@pytest.fixture(scope="module")
def steps(folder):
    """What each command prints, and the modules imported by then, in one process."""
    question = "who crosses the river?"
    commands = {
        "help": ["--help"],
        "info": ["info", str(folder)],
        "sparse": ["search", str(folder), question, "--mode", "sparse"],
        "search": ["search", str(folder), question, "--json"],
    }
    given = json.dumps(commands)
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("step", "unwanted"),
    [
        ("import", HEAVY | ARRAYS),
        ("help", HEAVY | ARRAYS),
        ("info", HEAVY | {"tokenizers"}),
        ("sparse", HEAVY),
        ("search", HEAVY),
    ],
)
def test_a_command_imports_only_what_it_needs(step, unwanted, steps):
    assert sorted(unwanted & set(steps[step]["modules"])) == []


def test_search_without_torch_finds_what_the_complete_model_finds(steps, folder, mini):
    document = json.loads(steps["search"]["output"])
    with LocalIndex.open(folder, mini) as index:
        expected = Retriever(mini, index).retrieve(document["question"], 5)
    assert [match["id"] for match in document["matches"]] == [match.passage.id for match in expected]
    for found, match in zip(document["matches"], expected, strict=True):
        assert found["score"] == pytest.approx(match.score, abs=1e-6)
        assert found["by_mode"] == pytest.approx(dict(match.by_mode), abs=1e-6)
