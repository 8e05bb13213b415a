"""Pages of the API reference: every public name of every package, documented once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# In this order: a name that several packages export is documented on the page of the first.
PACKAGES = {
    "": "What most programs import.",
    "llama_index": "Components for LlamaIndex.",
    "langchain": "Components for LangChain.",
    "encoders": "Texts to embeddings.",
    "index": "Storing and searching embeddings.",
    "index.local": "Checking and repairing index folders.",
    "index.qdrant": "Indexes on a Qdrant server.",
    "index.quantization": "Precision of stored multi-vectors.",
    "retrieval": "Hybrid search, ingestion, reranking, calibration.",
    "data": "Reading passages, judged queries and click logs.",
    "evaluation": "Metrics, comparisons and reports.",
    "nudging": "NUDGE, tuning of plans, and re-encoding.",
    "training": "Mining, training and fine-tuning.",
    "distributed": "Encoding and nudging with many workers.",
    "server": "HTTP and MCP servers.",
    "core": "Types of values, and scores of single modes.",
    "testing": "Fakes and contracts for your tests.",
    "errors": "Exceptions and warnings.",
}


class PublicName(NamedTuple):
    """A public name: where users import it from, and where it is defined."""

    package: str
    name: str
    module: str

    @property
    def path(self) -> str:
        """Path of the definition."""
        return f"{self.module}.{self.name}"


def _module(package: str) -> str:
    return f"m3_integrations.{package}".rstrip(".")


def exports(package: str) -> list[PublicName]:
    """Return the names that a package exports, in alphabetical order.

    Args:
        package: Path below m3_integrations; "" is the package itself.
    """
    module = _module(package)
    if package == "errors":
        tree = ast.parse((ROOT / "m3_integrations/core/errors.py").read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        return [PublicName(module, name, "m3_integrations.core.errors") for name in sorted(names)]
    stub = ast.parse((ROOT / module.replace(".", "/") / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    found = [(alias.name, node.module) for node in imports for alias in node.names]
    return [_definition(PublicName(module, name, f"{module}.{relative}")) for name, relative in sorted(found)]


def _definition(name: PublicName) -> PublicName:
    """Follow a name that another package re-exports to its definition."""
    stub = ROOT / name.module.replace(".", "/") / "__init__.pyi"
    if not stub.exists():
        return name
    package = name.module.removeprefix("m3_integrations").lstrip(".")
    module = next(each.module for each in exports(package) if each.name == name.name)
    return name._replace(module=module)


def public_names() -> Iterator[PublicName]:
    """Yield every public name once, by the first package that exports it."""
    seen: set[str] = set()
    for package in PACKAGES:
        for name in exports(package):
            if name.path not in seen:
                seen.add(name.path)
                yield name


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of each page of the reference."""
    homes = {name.path: name for name in public_names()}
    yield "reference/index.md", _overview(homes)
    for package, what in PACKAGES.items():
        names = exports(package)
        own = [name for name in names if homes[name.path] == name]
        others = [name for name in names if homes[name.path] != name]
        lines = [f"# {_module(package)}", "", what, ""]
        if others:
            lines += ["It also exports " + ", ".join(f"[`{name.name}`][{name.path}]" for name in others) + ".", ""]
        for name in own:
            lines += [f"::: {name.path}", "    options:", f"      heading: {name.name}", ""]
        yield page_of(package), "\n".join(lines)


def page_of(package: str) -> str:
    """Return the path of a package's page."""
    return f"reference/{_module(package)}.md"


def _overview(homes: dict[str, PublicName]) -> str:
    lines = [
        "# Reference",
        "",
        "Every public name of the package, with its arguments, results and exceptions, generated from the docstrings.",
        "[Versions and formats](../versioning.md) says what may change, and describes the files on disk.",
        "The [command line](command_line.md) and the [HTTP API](http.md) have pages of their own.",
        "",
        "| import from | names |",
        "|---|---|",
    ]
    for package in PACKAGES:
        names = [name for name in homes.values() if name.package == _module(package)]
        if names:
            links = ", ".join(f"[`{name.name}`][{name.path}]" for name in names)
            lines.append(f"| [`{_module(package)}`]({_module(package)}.md) | {links} |")
    return "\n".join(lines) + "\n"
