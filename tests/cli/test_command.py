"""What every command has: options, exit codes, one schema, and an output that stays clean."""

from __future__ import annotations

import builtins
import json
import os
import pty
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from m3_integrations import LocalIndex, M3Encoder, Passage, __version__, cli, errors
from m3_integrations.cli.command import CommandGroup, register
from m3_integrations.cli.output import to_json_line
from tests.cli.conftest import DOCS, documented_fields, write_lines

COMMANDS = [command.name for command in cli.app.registered_commands if not command.hidden]


def test_the_version_is_printed(run):
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"m3 {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_quiet_and_verbose(command, run):
    help = run(command, "-h").stdout
    assert all(option in help for option in ("--json", "-q, --quiet", "-v, --verbose"))


def test_an_unknown_option_is_an_error_of_usage(run, tmp_path):
    assert run("search", tmp_path, "why?", "--colour").exit_code == 2


@pytest.mark.parametrize(
    ("words", "command", "message"),
    [
        (("serch",), None, "Did you mean 'search'"),
        (("search",), "search", "Missing argument"),
        (("info", "--wher", "x"), "info", "No such option"),
        (("search", "none", "x", "-k", "0"), "search", "-k must be at least 1"),
        (("search", "none", "x", "--where", "a = 1"), "search", "write == instead of ="),
    ],
)
def test_an_error_of_usage_is_a_document_too(words, command, message, run):
    result = run(*words, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["command"], document["error"]["type"]) == (2, command, "UsageError")
    assert message in document["error"]["message"]


def test_a_caret_shows_where_a_filter_is_wrong(run):
    result = run("search", "none", "x", "--where", "橋 == 1 and year = 2020")
    assert result.stderr.splitlines()[1:] == ["  橋 == 1 and year = 2020", "                   ^"]


def test_json_has_null_for_what_it_lacks(capsys):
    assert json.loads(to_json_line({"nan": float("nan"), "deep": [{"inf": np.float32("inf")}], "one": 1.0})) == {
        "nan": None,
        "deep": [{"inf": None}],
        "one": 1.0,
    }
    assert json.loads(to_json_line({"é": "橋 😀"}, "latin-1").encode("ascii")) == {"é": "橋 😀"}


def test_an_unexpected_error_is_one_line_and_a_document():
    def fail() -> None:
        """Fail."""
        raise RuntimeError("of a library")

    app = typer.Typer(cls=CommandGroup)
    register(app, fail, panel="Tests")
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, ["fail", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["error"]["type"]) == (1, "RuntimeError")
    assert result.stderr == "error: RuntimeError: of a library (a fault of m3; -v shows where, for a report)\n"


def test_a_file_that_cannot_be_written_is_an_error_before_the_model_is_loaded(run, filled, tmp_path):
    for words in (("explain", filled, "x"), ("nudge", filled, tmp_path / "no.csv")):
        result = run(*words, "--out", tmp_path, "--model", tmp_path / "no-model")
        assert (result.exit_code, "is a folder; name a file in it" in result.stderr) == (1, True)
    file = write_lines(tmp_path / "file.jsonl", {})
    result = run("demo", "--out", file, "--model", tmp_path / "no-model")
    assert (result.exit_code, "is a file; name a folder" in result.stderr) == (1, True)


def test_a_closed_or_full_stdout_is_no_traceback(filled):
    for redirection in (">&-", "> /dev/full", "--json > /dev/full"):
        command = f"{sys.executable} -m m3_integrations.cli info {filled} {redirection}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1)
        assert done.stderr.count("\n") <= 1, done.stderr


def test_an_error_is_a_document_too(run, tmp_path):
    result = run("search", tmp_path / "none", "why?", "--json")
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == (1, "search")
    assert document["error"]["type"] == "FileNotFoundError"
    assert document["error"]["message"] in result.stderr


def test_an_error_is_one_line_and_has_its_traceback_with_verbose(run, tmp_path):
    plain = run("search", tmp_path / "none", "why?")
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in run("search", tmp_path / "none", "why?", "--verbose").stderr


HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J",
    "clipboard": "\x1b]52;c;cm0=\x07",
    "c1": "\x9b31m",
    "bidi": "\u202e",
}


@pytest.fixture
def hostile(bge_m3, tmp_path):
    """An index of one passage with terminal commands in id, text and metadata, and an id with markup and line ends."""
    encoder = M3Encoder.from_pretrained(str(bge_m3()))
    commands = "".join(HOSTILE.values())
    passages = [
        Passage(f"id{commands}", f"the bridge {commands} text", {"title": commands}),
        Passage("[bold]x\ny[/bold] :smile: " + "z" * 300, "the bridge"),
    ]
    with LocalIndex.open(tmp_path / "hostile", encoder) as index:
        index.add(passages, encoder.encode_passages([each.text for each in passages]))
    return tmp_path / "hostile"


@pytest.mark.parametrize("options", [(), ("--json",), ("--verbose",)])
def test_no_terminal_command_of_a_passage_is_printed(options, run, bge_m3, hostile):
    result = run("search", hostile, "the bridge", "--model", bge_m3(), *options)
    assert result.exit_code == 0, result.output
    assert not any(command in result.output for command in HOSTILE.values())
    assert "\\u001b]0;owned\\u0007" in result.stdout


def test_json_holds_every_character_of_a_passage(run_json, bge_m3, hostile):
    found = run_json("search", hostile, "the bridge", "--model", bge_m3())
    assert {match["id"] for match in found["matches"]} >= {f"id{''.join(HOSTILE.values())}"}


def test_an_id_stays_on_one_line_of_a_pipe(run, bge_m3, hostile):
    found = run("search", hostile, "the bridge", "--model", bge_m3()).stdout.splitlines()
    assert len(found) == 2
    assert any(line.split("\t")[1] == "[bold]x\\ny[/bold] :smile: " + "z" * 300 for line in found)


def test_an_id_stays_whole_on_a_terminal_and_no_command_reaches_it(bge_m3, hostile):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "m3_integrations.cli", "search", str(hostile), "the bridge", "--model", bge_m3()]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "40", "LINES": "20"}
    process = subprocess.Popen(list(map(str, command)), stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    text = shown.decode()
    assert not any(command in text for command in HOSTILE.values())
    assert "[bold]x\\ny[/bold] :smile: " + "z" * 300 in text


def test_the_documents_of_every_command_are_documented():
    assert sorted(documented_fields()) == sorted(COMMANDS)


def test_a_document_has_the_documented_fields(run_json, bge_m3, filled, tmp_path):
    def check(command, *words):  # run_json compares every document with the documentation
        assert run_json(command, *words)["command"] == command

    check("search", filled, "the bridge", "--model", bge_m3())
    check("explain", filled, "the bridge", "a")
    check("add", filled, "--id", "c", "--text", "the bridge")
    check("delete", filled, "c")
    check("export", filled)
    check("export", filled, tmp_path / "all.jsonl")
    check("info", filled)
    check("check", filled)
    check("index", filled, tmp_path / "all.jsonl")
    check("copy", filled, tmp_path / "copy")
    queries = tmp_path / "clicks.csv"
    queries.write_text("query,passage\nthe bridge,a\n", encoding="utf-8")
    check("eval", queries, "--index", filled)
    check("tune", filled, queries)
    check("calibrate", filled, queries)
    check("calibrate", filled, "--remove")
    check("reencode", filled, "--model", bge_m3())
    check("nudge", filled, "--versions", "--model", bge_m3())


def console_lines():
    """The `m3` commands in the console blocks of README and documentation."""
    root, lines = DOCS.parents[1], []
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines += [(page.name, line) for line in re.findall(r"(?:^\$ |\| )(m3 .*)$", block, flags=re.MULTILINE)]
    return lines


def test_every_documented_command_line_is_understood(run):
    known = {command: run(command, "--help").stdout for command in COMMANDS}
    assert len(console_lines()) > 20
    for page, line in console_lines():
        words = shlex.split(line.partition("  #")[0], comments=True)
        command = words[1]
        if command.startswith("--"):
            continue
        options = [word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)]
        assert command in known, (page, line)
        assert [option for option in options if option not in known[command]] == [], (page, line)


def test_every_option_that_the_documentation_names_exists(run):
    documented = set(re.findall(r"`?(--[a-z][a-z-]+)", DOCS.read_text(encoding="utf-8")))
    known = " ".join(run(*words, "--help").stdout for words in [(), *((command,) for command in COMMANDS)])
    assert documented
    assert {option for option in documented if option not in known} == set()


def test_every_error_that_the_documentation_names_exists():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS.parents[1]).glob("docs/**/*.md"))
    text += (DOCS.parents[1] / "README.md").read_text(encoding="utf-8")
    named = {*re.findall(r"(?:raises?|gets|\"type\":) (?:an? )?[`\"]([A-Z]\w+)[`\"]", text)}
    named |= {*re.findall(r"`([A-Z]\w+(?:Error|Warning|Busy))`", text)}
    assert {"WrongEncoder", "FileNotFoundError", "WriterBusy"} <= named
    known = {*vars(errors), *vars(builtins)}
    assert named - known == set()


def test_the_help_names_every_command_with_what_it_does(run):
    help = run("--help").stdout
    for command in COMMANDS:
        first = run(command, "--help").stdout
        assert re.search(rf"^\s+{command}\s+\S+", help, flags=re.MULTILINE), command
        assert first.startswith(f"Usage: m3 {command}") or f"Usage: m3 {command}" in first


def test_the_readme_names_every_command():
    readme = (DOCS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"`m3 {command}`" not in readme and f"`{command}`" not in readme] == []
