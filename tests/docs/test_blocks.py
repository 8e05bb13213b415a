"""Every code block of the documentation runs as written and prints the output shown below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from docs.generators.notebooks import FOLDER
from tests.docs.blocks import NOT_RUN, ROOT, blocks_of, checkout, read_page, run

DOCS = ROOT / "docs"
FILES = [*sorted(DOCS.rglob("*.md")), *sorted(FOLDER.glob("*.ipynb"))]
PAGES = {path.relative_to(ROOT).as_posix().removeprefix("docs/"): read_page(path) for path in FILES}
RUN = [name for name, text in PAGES.items() if [*blocks_of(text)]]


@pytest.mark.parametrize("name", RUN)
def test_the_blocks_of_a_page_print_the_outputs_shown(name):
    with checkout():
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks_of(PAGES[name]):
            assert run(block, names) == block.output, block.code


@pytest.mark.parametrize("name", PAGES)
def test_a_page_gives_a_reason_for_each_block_that_is_not_run(name):
    before = re.compile(rf"^{NOT_RUN}.+ -->\n+\Z", flags=re.MULTILINE)
    shells = list(re.finditer(r"^ *```(?:sh|bash)$", PAGES[name], flags=re.MULTILINE))
    assert [fence for fence in shells if not before.search(PAGES[name][: fence.start()])] == []


def test_a_block_whose_output_differs_is_found():
    (block,) = blocks_of("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    assert run(block, {}) == "2\n"
    assert block.output == "3\n"
    assert [*blocks_of(f"{NOT_RUN}it needs a server -->\n```python\nprint(1)\n```\n")] == []
    assert Path.cwd() != ROOT / "docs"
