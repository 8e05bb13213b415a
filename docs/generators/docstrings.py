"""griffe extension: a method is documented as its protocol, its synchronous form or its twin documents it.

A method without a docstring gets the whole one; of one with a docstring, the sections that it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_INDEX = ("m3_integrations.index.base.Index", "m3_integrations.index.base.LexicalIndex")
_HYBRID = ("m3_integrations.index.base.HybridIndex", *_INDEX)
_ENCODER = ("m3_integrations.encoders.m3.M3Encoder", "m3_integrations.encoders.base.Encoder")
_EXECUTOR = ("m3_integrations.distributed.executors.Executor",)
_STORE = ("m3_integrations.langchain.vectorstore.M3VectorStore",)
# The classes whose methods document those of a class, the first of them first.
SOURCES = {
    "m3_integrations.index.base.HybridIndex": _INDEX,
    "m3_integrations.index.local.index.LocalIndex": _HYBRID,
    "m3_integrations.index.memory.MemoryIndex": _INDEX,
    "m3_integrations.index.qdrant.index.QdrantIndex": _HYBRID,
    "m3_integrations.encoders.m3.M3Encoder": _ENCODER,
    "m3_integrations.encoders.pool.EncoderPool": _ENCODER,
    "m3_integrations.encoders.remote.RemoteEncoder": _ENCODER,
    "m3_integrations.encoders.composed.ComposedEncoder": _ENCODER,
    "m3_integrations.testing.hash_encoder.HashEncoder": _ENCODER,
    "m3_integrations.distributed.executors.InProcess": _EXECUTOR,
    "m3_integrations.distributed.executors.ProcessPool": _EXECUTOR,
    "m3_integrations.distributed.executors.RayActors": _EXECUTOR,
}
# Methods documented as another one of their class is.
TWINS = {"encode_passages": "encode_queries", "retrieve_many": "retrieve", "aretrieve": "retrieve"}
# Methods whose arguments a class documents.
CONFIGS = {"m3_integrations.encoders.m3.M3Encoder.from_pretrained": "m3_integrations.encoders.base.EncoderConfig"}
_SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:")


class InheritedDocstrings(griffe.Extension):
    """Complete the docstrings of methods."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Complete docstrings once the package is loaded."""
        for module in _modules(pkg):
            for cls in module.classes.values():
                if not cls.is_alias:
                    for method in _methods(cls).values():
                        for source in _sources(pkg, cls, method.name):
                            _complete(method, source)


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for each in module.modules.values():
        if not each.is_alias:
            yield from _modules(each)


def _methods(cls: Any) -> dict[str, Any]:
    return {name: each for name, each in cls.members.items() if not each.is_alias and each.is_function}


def _sources(pkg: griffe.Module, cls: Any, name: str) -> Iterator[Any]:
    """The methods that document a method, those of its class first."""
    own = _methods(cls)
    if own[name].path in CONFIGS:
        yield pkg[CONFIGS[own[name].path].removeprefix("m3_integrations.")]
    synchronous = name.removeprefix("async_") if name.startswith("async_") else name.removeprefix("a")
    for twin in (TWINS.get(name), synchronous):
        if twin != name and twin in own:
            yield own[twin]
    for path in SOURCES.get(cls.path, ()):
        methods = _methods(pkg[path.removeprefix("m3_integrations.")])
        for each in (name, TWINS.get(name)):
            if each in methods and methods[each] is not own[name]:
                yield methods[each]


def _complete(method: Any, source: Any) -> None:
    if not source.has_docstring:
        return
    head, sections = split_sections(source.docstring.value)
    own_head, own = split_sections(method.docstring.value) if method.has_docstring else ("", {})
    if not own_head:
        is_async = "async" in method.labels and "async" not in source.labels
        own_head = f"Async form of `{source.name}`. {head}" if is_async else head
    if "Args:" in sections:
        sections["Args:"] = _arguments_of(method, sections["Args:"])
    merged = {name: own.get(name) or sections.get(name) for name in _SECTIONS}
    text = "\n\n".join([own_head, *(f"{name}\n{body}" for name, body in merged.items() if body)])
    method.docstring = griffe.Docstring(text, parent=method, parser=griffe.Parser.google)


def _arguments_of(method: Any, arguments: str) -> str:
    """The entries of arguments that a method has."""
    entries = re.split(r"\n(?=    \S)", arguments)
    names = {each.name for each in method.parameters}
    return "\n".join(entry for entry in entries if entry.split(":")[0].strip(" *") in names)


def split_sections(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its beginning and its sections, by their headings."""
    head: list[str] = []
    sections: dict[str, list[str]] = {}
    lines = head
    for line in text.splitlines():
        if line in _SECTIONS:
            lines = sections.setdefault(line, [])
        else:
            lines.append(line)
    return "\n".join(head).strip(), {name: "\n".join(body).rstrip() for name, body in sections.items()}
