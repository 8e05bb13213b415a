"""Every code block of the README runs as written and prints the output shown below it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, flags=re.DOTALL)
SESSIONS = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the examples, so that nothing is written to the repository."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


def test_every_block_is_run_by_a_test_of_this_file():
    assert len(SCRIPTS) == 4
    assert README.count("```") == 2 * (2 * len(SCRIPTS) + len(SESSIONS))


@pytest.mark.parametrize(("script", "output"), SCRIPTS, ids=["quickstart", "llama_index", "langchain", "nudge"])
def test_a_script_prints_the_output_shown(script, output, mini, checkout, capsys):
    exec(compile(script, "README.md", "exec"), {})
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("session", SESSIONS)
def test_a_console_session_prints_the_output_shown(session, mini, checkout, monkeypatch):
    terminal = {"TERM": "dumb", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0", "COLUMNS": "100", "LINES": "25"}
    for name, value in terminal.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command, output in re.findall(r"\$ m3 (.*)\n((?:[^$].*\n)*)", session):
        process = [sys.executable, "-m", "m3_integrations.cli", *shlex.split(command)]
        result = subprocess.run(process, capture_output=True, encoding="utf-8", check=False)
        assert result.returncode == 0, result.stderr
        assert [line.rstrip() for line in result.stdout.splitlines()] == output.splitlines()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200
