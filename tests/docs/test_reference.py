"""Every public name, command and route has a complete entry in the reference."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import griffe
import pytest

from docs.generators import api, command_line, http_api
from docs.generators.docstrings import InheritedDocstrings, split_sections

ROOT = Path(__file__).parents[2]
NAMES = list(api.public_names())
ARGUMENTS_ELSEWHERE = ("self", "cls")


@cache
def package():
    """The package as the reference reads it."""
    extensions = griffe.load_extensions(InheritedDocstrings)
    return griffe.load("m3_integrations", search_paths=[ROOT], extensions=extensions, docstring_parser="google")


def entries(name):
    """A public name and, of a class, its public methods."""
    item = package()[name.path.removeprefix("m3_integrations.")]
    if not item.is_class or name.name == "IndexContract":  # whose methods are tests
        return [item]
    members = [each for key, each in item.members.items() if not key.startswith("_") and not each.is_alias]
    return [item, *(each for each in members if each.is_function and "property" not in each.labels)]


def is_documented(entry):
    return entry.docstring is not None and bool(entry.docstring.value.strip())


def undocumented_arguments(function):
    parsed = griffe.parse_google(function.docstring, warnings=False)
    documented = {each.name.lstrip("*") for part in parsed if part.kind.value == "parameters" for each in part.value}
    return [each.name for each in function.parameters if each.name not in documented | {*ARGUMENTS_ELSEWHERE}]


def states_its_result(function):
    head, sections = split_sections(function.docstring.value)
    first = head.split("`. ", 1)[-1] if head.startswith("Async form of") else head
    returns = str(function.returns or "None")
    return returns == "None" or {"Returns:", "Yields:"} & {*sections} or first.startswith(("Return ", "Yield "))


def raised_unsaid(function):
    """Exceptions that the function raises itself, if it documents none."""
    tree = ast.parse((ROOT / function.relative_filepath).read_text(encoding="utf-8"))
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    node = next(each for each in functions if each.name == function.name and each.end_lineno == function.endlineno)
    raised = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)]
    _, sections = split_sections(function.docstring.value)
    return [] if "Raises:" in sections else [ast.unparse(each.func) for each in raised]


def test_there_are_as_many_names_as_packages_export():
    assert len(NAMES) > 150
    assert len({name.path for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("package_name", api.PACKAGES)
def test_a_package_exports_the_names_of_the_reference(package_name):
    module = __import__(f"m3_integrations.{package_name}".rstrip("."), fromlist=["__all__"])
    names = {name.name for name in api.exports(package_name)}
    optional = {"QdrantIndex"} if package_name == "" else set()  # so that import * needs no extra
    assert {*getattr(module, "__all__", names - optional)} - {"__version__"} == names - optional


def test_every_package_that_exports_names_is_in_the_reference():
    stubs = (ROOT / "m3_integrations").rglob("__init__.pyi")
    found = {".".join(stub.parent.relative_to(ROOT / "m3_integrations").parts) for stub in stubs}
    assert found == {*api.PACKAGES} - {"errors"}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.path)
def test_a_name_has_an_entry_with_arguments_results_and_exceptions(name):
    for entry in entries(name):
        assert is_documented(entry), f"{entry.path} has no docstring"
        if entry.is_function:
            assert undocumented_arguments(entry) == [], entry.path
            assert states_its_result(entry), f"{entry.path} documents no result"
            assert raised_unsaid(entry) == [], entry.path


def test_every_command_has_an_entry_with_its_options():
    page = command_line.page()
    for name, command in command_line.commands().items():
        assert f"## m3 {name}\n" in page
        assert command.help
        assert all(each.help for each in command_line.parameters(command)), name


def test_every_route_has_an_entry_with_its_fields():
    page, description = http_api.page(), http_api.openapi()
    assert len(description["paths"]) > 10
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert f"## {method.upper()} {path}\n" in page
            assert operation["summary"]
            fields = http_api.fields_of(operation, description["components"]["schemas"])
            assert [name for name, field in fields.items() if not field.get("description")] == []
            assert all(f"| `{name}` |" in page for name in fields)


def test_a_function_without_documentation_is_found():
    bare = griffe.visit("bare", filepath=Path("bare.py"), code="def bare(a: int) -> int: return a")["bare"]
    bare.docstring = griffe.Docstring("Do nothing.", parent=bare)
    assert undocumented_arguments(bare) == ["a"]
    assert not states_its_result(bare)
    bare.docstring = None
    assert not is_documented(bare)
