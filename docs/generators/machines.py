"""Pages for machines: a Markdown twin of each page, and llms.txt, which lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import griffe

from docs.generators.docstrings import InheritedDocstrings

_ENTRY = re.compile(r"^::: (\S+)\n(?:    .*\n)*", flags=re.MULTILINE)
_REFERENCE = re.compile(r"\[([^\]]+)\]\[[^\]]+\]")


def write(site: Path, pages: Mapping[str, str], nav: Sequence[Any], title: str, summary: str) -> None:
    """Write the Markdown twin of each page into the site, and llms.txt.

    Args:
        site: Folder of the site.
        pages: Markdown of each page by its path.
        nav: The sections of the site, as mkdocs.yml states them.
        title: Title of the site.
        summary: One sentence about it.
    """
    package = griffe.load("m3_integrations", search_paths=[Path(__file__).parents[2]], extensions=_extensions())
    for path, text in pages.items():
        twin = site / path
        twin.parent.mkdir(parents=True, exist_ok=True)
        plain = _REFERENCE.sub(r"\1", _ENTRY.sub(lambda entry: _entry(package, entry[1]), text))
        twin.write_text(plain, encoding="utf-8")
    (site / "llms.txt").write_text("\n".join(_index(pages, nav, title, summary)), encoding="utf-8")


def _extensions() -> griffe.Extensions:
    return griffe.load_extensions(InheritedDocstrings)


def _entry(package: Any, path: str) -> str:
    item = package[path.removeprefix("m3_integrations.")]
    members = [
        each
        for name, each in item.members.items()
        if item.is_class and not name.startswith("_") and not each.is_alias and each.has_docstring
    ]
    return "\n".join([_text(item, "##"), *(_text(each, "###") for each in members)])


def _text(item: Any, heading: str) -> str:
    signature = ""
    if item.is_function or (item.is_class and "__init__" in item.members):
        parameters = (item if item.is_function else item.members["__init__"]).parameters
        shown = [_parameter(each) for each in parameters if each.name not in ("self", "cls")]
        returns = f" -> {item.returns}" if item.is_function and item.returns is not None else ""
        signature = f"```python\n{item.name}({', '.join(shown)}){returns}\n```\n\n"
    return f"{heading} {item.name}\n\n{signature}{item.docstring.value if item.docstring else ''}\n"


def _parameter(parameter: griffe.Parameter) -> str:
    annotation = f": {parameter.annotation}" if parameter.annotation is not None else ""
    default = f" = {parameter.default}" if parameter.default is not None else ""
    return f"{parameter.name}{annotation}{default}"


def _index(pages: Mapping[str, str], nav: Sequence[Any], title: str, summary: str) -> list[str]:
    lines = [f"# {title}", "", f"> {summary}", ""]
    lines += ["Each page is also there as Markdown, at the same address with .md instead of .html.", ""]
    for section in nav:
        ((name, content),) = section.items() if isinstance(section, dict) else [("", section)]
        entries = content if isinstance(content, list) else [section]
        lines += [f"## {name}", ""] if isinstance(content, list) else []
        for entry in entries:
            label, path = next(iter(entry.items())) if isinstance(entry, dict) else (_title(pages[entry]), entry)
            lines.append(f"- [{label}]({path}): {_first_sentence(pages[path])}")
        lines.append("")
    return lines


def _title(text: str) -> str:
    return re.search(r"^# (.*)$", text, flags=re.MULTILINE)[1]  # type: ignore[index]  # each page has a title


def _first_sentence(text: str) -> str:
    """The first sentence of the first paragraph of a page, without links."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    paragraphs = [each for each in body.split("\n\n") if re.match(r"[A-Z`\[*]", each.strip())]
    first = (
        re.sub(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    )
    return re.split(r"(?<=[.:])\s", first)[0]
