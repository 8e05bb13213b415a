"""Code blocks of Markdown pages, run in the order of the page, and their outputs.

python -m tests.docs.blocks FILE... writes the outputs of today into pages and notebooks.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from typer.testing import CliRunner

from docs.generators.notebooks import from_markdown, to_markdown
from m3_integrations import M3Encoder, cli

ROOT = Path(__file__).parents[2]
NOT_RUN = "<!-- not run: "
TERMINAL = {"TERM": "dumb", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0", "COLUMNS": "100", "LINES": "25"}
# Loading m3-mini takes seconds, and most blocks do; a model is not changed by its use.
_load_once = cache(M3Encoder.from_config)
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", flags=re.MULTILINE)
_GLOBALS = ("_llm", "_embed_model", "_node_parser", "_transformations")  # of LlamaIndex's Settings


class Block(NamedTuple):
    """A block to run: its language, its code and what it prints, with the positions of the output in the page."""

    language: str
    code: str
    output: str
    begin: int
    end: int


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the Python blocks and the commands of a page, in its order; those marked as not run are left out."""
    fences = list(_FENCE.finditer(page))
    for number, fence in enumerate(fences):
        if page[: fence.start()].rstrip().rpartition("\n")[2].startswith(NOT_RUN):
            continue
        if fence[2] == "python":
            following = fences[number + 1] if number + 1 < len(fences) else None
            shown = (
                following is not None and following[2] == "text" and not page[fence.end() : following.start()].strip()
            )
            begin, end = (following.start(3), following.end(3)) if shown else (fence.end(), fence.end())
            yield Block("python", fence[3], page[begin:end], begin, end)
        elif fence[2] == "console":
            for command in _COMMAND.finditer(page, fence.start(3), fence.end(3)):
                yield Block("console", command[1].replace("\\\n", " "), command[2], command.start(2), command.end(2))


@contextlib.contextmanager
def checkout() -> Iterator[Path]:
    """A temporary working directory with the examples, and the settings of LlamaIndex reset afterwards."""
    before = Path.cwd()
    loading = mock.patch.object(M3Encoder, "from_config", _load_once)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TERMINAL), loading:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            if core := sys.modules.get("llama_index.core"):
                for name in _GLOBALS:
                    setattr(core.Settings, name, None)


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block and return what it prints, without spaces at the ends of lines.

    Args:
        block: The block.
        names: Names of the page's earlier blocks.

    Raises:
        AssertionError: If a command fails.
    """
    if block.language == "console":
        printed = _run_command(block.code)
    else:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(block.code, "<page>", "exec"), names)
        printed = stream.getvalue()
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def _run_command(command: str) -> str:
    command, _, wanted = command.partition("  # exit status ")
    program, _, words = command.partition(" ")
    if program == "m3" and "|" not in words and ">" not in words.split("'")[0]:
        result = CliRunner().invoke(cli.app, shlex.split(re.sub(r"  +# .*$", "", words)))
        assert result.exit_code == int(wanted or 0), (command, result.output, result.exception)
        return result.stdout
    done = subprocess.run(["bash", "-c", command], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == int(wanted or 0), (command, done.stderr)
    return done.stdout


def read_page(page: Path) -> str:
    """Return the Markdown of a page or a notebook."""
    return to_markdown(page) if page.suffix == ".ipynb" else page.read_text(encoding="utf-8")


def write_outputs(page: Path) -> None:
    """Write what the blocks of a page or a notebook print into it."""
    text = read_page(page)
    edits = []
    with checkout():
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks_of(text):
            printed = run(block, names)
            if printed != block.output:
                shown = (
                    printed if block.language == "console" or block.begin != block.end else f"\n\n```text\n{printed}```"
                )
                edits.append((block.begin, block.end, shown))
    for begin, end, printed in reversed(edits):
        text = text[:begin] + printed + text[end:]
    page.write_text(from_markdown(text) if page.suffix == ".ipynb" else text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(Path(name).resolve())
