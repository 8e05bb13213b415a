"""griffe extension: a method without a docstring has that of its protocol, or of its synchronous form."""

from __future__ import annotations

from typing import Any

import griffe

# A class documents its methods as the protocol does that it implements.
PROTOCOLS = {
    "m3_integrations.index.local.index.LocalIndex": "m3_integrations.index.base.HybridIndex",
    "m3_integrations.index.memory.MemoryIndex": "m3_integrations.index.base.Index",
    "m3_integrations.index.qdrant.index.QdrantIndex": "m3_integrations.index.base.HybridIndex",
    "m3_integrations.encoders.m3.M3Encoder": "m3_integrations.encoders.base.Encoder",
    "m3_integrations.encoders.pool.EncoderPool": "m3_integrations.encoders.base.Encoder",
    "m3_integrations.encoders.remote.RemoteEncoder": "m3_integrations.encoders.base.Encoder",
    "m3_integrations.encoders.composed.ComposedEncoder": "m3_integrations.encoders.base.Encoder",
    "m3_integrations.distributed.executors.InProcess": "m3_integrations.distributed.executors.Executor",
    "m3_integrations.distributed.executors.ProcessPool": "m3_integrations.distributed.executors.Executor",
    "m3_integrations.distributed.executors.RayActors": "m3_integrations.distributed.executors.Executor",
}


class InheritedDocstrings(griffe.Extension):
    """Give methods without a docstring that of the method that they implement."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Fill in docstrings once the package is loaded."""
        for path, protocol in PROTOCOLS.items():
            for name, method in _methods(_find(pkg, path)).items():
                if not method.has_docstring:
                    method.docstring = _inherited(pkg, protocol, name)
        for module in _modules(pkg):
            for cls in module.classes.values():
                if not cls.is_alias:
                    _document_async(_methods(cls))


def _modules(module: griffe.Module) -> list[griffe.Module]:
    own = [each for each in module.modules.values() if not each.is_alias]
    return [module, *(found for each in own for found in _modules(each))]


def _find(pkg: griffe.Module, path: str) -> Any:
    return pkg[path.removeprefix("m3_integrations.")]


def _methods(cls: Any) -> dict[str, Any]:
    return {name: each for name, each in cls.members.items() if not each.is_alias and each.is_function}


def _inherited(pkg: griffe.Module, protocol: str, name: str) -> griffe.Docstring | None:
    cls = _find(pkg, protocol)
    if name in cls.members:
        return cls.members[name].docstring
    bases = [str(base) for base in cls.bases]
    found = [_inherited(pkg, f"{protocol.rpartition('.')[0]}.{base}", name) for base in bases if base in ("Index",)]
    return next((each for each in found if each is not None), None)


def _document_async(methods: dict[str, Any]) -> None:
    for name, method in methods.items():
        twin = methods.get(name.removeprefix("async_") if name.startswith("async_") else name[1:])
        is_twin = name.startswith("a") and twin is not None and twin.has_docstring
        if is_twin and not method.has_docstring:
            text = twin.docstring.value
            first, _, rest = text.partition("\n")
            method.docstring = griffe.Docstring(f"Async form of `{twin.name}`. {first}\n{rest}", parent=method)
