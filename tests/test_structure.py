"""The package keeps its shape: small packages, imports that point downwards, no circles, one class per name."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "m3_integrations"
MODULES = sorted(PACKAGE.rglob("*.py"))
SHARED_NAMES = {"M3Retriever", "M3VectorStore"}  # the two adapters name them as their frameworks would


def test_no_package_has_more_than_ten_modules():
    sizes: dict[Path, int] = defaultdict(int)
    for module in MODULES:
        if module.name not in ("__init__.py", "__main__.py"):
            sizes[module.parent] += 1
    assert {str(package): size for package, size in sizes.items() if size > 10} == {}


def code_lines(source: str) -> set[int]:
    """The numbers of the lines with code: not blank, not a comment, not a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {line for each in tokens if each.type not in layout for line in range(each.start[0], each.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def test_no_function_has_more_than_60_lines_of_code_and_no_file_more_than_450():
    long = []
    for module in MODULES:
        source = module.read_text(encoding="utf-8")
        lines = code_lines(source)
        long += [str(module)] if len(lines) > 450 else []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
                long += [f"{module}: {node.name}"] if len(body) > 60 else []
    assert long == []


def test_the_import_contracts_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_no_modules_import_each_other_in_a_circle():
    graph = grimp.build_graph("m3_integrations", cache_dir=None)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()


def test_no_class_name_occurs_twice():
    homes: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(str(module))
    assert {name for name, places in homes.items() if len(places) > 1} == SHARED_NAMES


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("*.pyi")), ids=lambda stub: stub.parent.name)
def test_every_name_that_a_package_exports_is_there(stub):
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    module = __import__(package, fromlist=["__all__"])
    exported = [
        alias.name
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert exported
    assert all(getattr(module, name) is not None for name in exported)
