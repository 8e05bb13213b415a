"""Notebooks as Markdown, and back: a code cell is a Python block, its output a text block after it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
_CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)


def to_markdown(notebook: Path) -> str:
    """Return a notebook as Markdown, with its outputs.

    Args:
        notebook: The file.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join(_cell_to_markdown(cell) for cell in cells)


def _cell_to_markdown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"{source}\n"
    printed = "".join("".join(output["text"]) for output in cell["outputs"])
    return f"```python\n{source}\n```\n" + (f"\n```text\n{printed}```\n" if printed else "")


def from_markdown(text: str) -> str:
    """Return Markdown as a notebook, in the JSON of .ipynb files.

    Args:
        text: Markdown, as `to_markdown` returns it.
    """
    cells: list[dict[str, Any]] = []
    position = 0
    for code in _CODE.finditer(text):
        _add(cells, "markdown", text[position : code.start()])
        _add(cells, "code", code[1], code[2] or "")
        position = code.end()
    _add(cells, "markdown", text[position:])
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def _add(cells: list[dict[str, Any]], kind: str, source: str, printed: str = "") -> None:
    if not source.strip():
        return
    number = len(cells) + 1
    cell = {
        "cell_type": kind,
        "id": f"cell-{number}",
        "metadata": {},
        "source": source.strip().splitlines(keepends=True),
    }
    if kind == "code":
        lines = printed.splitlines(keepends=True)
        outputs = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
        cell |= {"execution_count": None, "outputs": outputs}
    cells.append(cell)
