"""Models exported to another engine: the graph with its heads, and the folder that says which checkpoint it is of."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.encoded import MODES, Array, Mode
from m3_integrations.core.errors import CheckpointError
from m3_integrations.core.extras import need
from m3_integrations.core.gathering import StateArrays
from m3_integrations.core.model import M3Model
from m3_integrations.core.packing import as_batch, pool_of
from m3_integrations.core.sequences import TokenSequence

Backend = Literal["torch", "onnx", "openvino"]
BACKENDS: tuple[Backend, ...] = ("torch", "onnx", "openvino")
INPUTS = ("ids", "mask", "pool")
_MANIFEST = "m3_exported.json"
_DTYPES: Mapping[Backend, tuple[str, ...]] = {"onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16")}
_LIBRARIES: Mapping[Backend, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}


class Engine(Protocol):
    """Another engine that runs the graph of a model."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[Mode, Array]:
        """ids, mask, pool: (texts, length). What `M3Model.forward` answers, in every mode that the model has."""


class Engines(Protocol):
    """A module that writes and loads one engine's files."""

    def write(self, graph: Graph, folder: Path, dtype: str) -> None: ...

    def load(self, folder: Path, dtype: str, modes: Sequence[Mode]) -> Engine: ...


class Graph(nn.Module):
    """The model as a graph of tensors alone, which exporters follow: every mode that it has, in the order of MODES."""

    def __init__(self, model: M3Model, modes: Sequence[Mode]) -> None:
        super().__init__()
        self.model = model
        self.modes = tuple(modes)

    def forward(self, ids: Tensor, mask: Tensor, pool: Tensor) -> tuple[Tensor, ...]:
        states = self.model(ids, mask, pool, self.modes)
        return tuple(part for part in states if part is not None)

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Two padded texts, for an exporter to follow."""
        mask = torch.tensor([[1] * 16, [1] * 10 + [0] * 6])
        return torch.full_like(mask, 5), mask, mask / mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class Manifest:
    """What an exported folder is of. files: name -> the SHA-256 of its bytes."""

    backend: str
    dtype: str
    weights: str
    files: Mapping[str, str]


def export(checkpoint: Checkpoint, backend: Backend, dtype: str, folder: Path) -> None:
    """Write a model, its heads in the graph, for another engine into a new folder."""
    engines = _engines(backend)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} holds something already; name a new folder to export into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    modes = [mode for mode in MODES if mode in checkpoint.heads.modes]
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        written = Path(beside, "exported")
        written.mkdir()
        engines.write(Graph(M3Model(*checkpoint.stored()).eval(), modes), written, dtype)
        files = {path.name: _hash(path) for path in sorted(written.iterdir())}
        manifest = Manifest(backend, dtype, checkpoint.hash_weights(), files)
        (written / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # it is empty
        written.rename(folder)


def require_exported(checkpoint: Checkpoint, backend: Backend, dtype: str, folder: Path) -> None:
    """Raise CheckpointError unless a folder holds just what `export` would write for this checkpoint."""
    manifest = _manifest(folder)
    again = f"remove {folder}, or name a new folder, and it is exported again"
    if (manifest.backend, manifest.dtype) != (backend, dtype):
        raise CheckpointError(
            f"{folder} was exported for {manifest.backend!r} in {manifest.dtype}, not for {backend!r} in {dtype}; "
            f"{again}"
        )
    if manifest.weights != checkpoint.hash_weights():
        raise CheckpointError(f"{folder} was exported from another checkpoint than {checkpoint.name!r}; {again}")
    for name, expected in manifest.files.items():
        if not (folder / name).is_file() or _hash(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is not the file that was exported: absent or changed; {again}")


class ExportedModel:
    """Runs batches of sequences through another engine."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend, dtype: str | None, folder: str | Path | None) -> None:
        self._checkpoint = checkpoint
        self.dtype = _checked(backend, dtype)
        # An engine may map its files: those that nobody asked to keep live as long as it does.
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        path = Path(folder if self._temporary is None else self._temporary.name).expanduser()  # type: ignore[arg-type]
        if not path.is_dir() or not any(path.iterdir()):
            export(checkpoint, backend, self.dtype, path)
        else:
            require_exported(checkpoint, backend, self.dtype, path)
        self._modes = [mode for mode in MODES if mode in checkpoint.heads.modes]
        self._engine = _engines(backend).load(path, self.dtype, self._modes)

    def __call__(self, batch: Sequence[TokenSequence], modes: Collection[Mode]) -> StateArrays:
        """The states of a batch, token after token, as `M3Model.read` gives them."""
        inputs = as_batch(self._checkpoint.backbone, batch, self._checkpoint.special.pad)
        ids = inputs.arguments["input_ids"]
        pool = torch.zeros(ids.shape)
        pooled = pool_of(batch, self._checkpoint.conventions.pooling, torch.device("cpu"))
        mask = inputs.mask if inputs.mask is not None else torch.ones_like(ids, dtype=torch.bool)
        flat = torch.zeros(len(inputs.ids))
        flat[pooled.places] = pooled.shares
        pool[mask] = flat
        states = self._engine({"ids": ids.numpy(), "mask": mask.long().numpy(), "pool": pool.numpy()})
        return {mode: part if mode == "dense" else part[mask.numpy()] for mode, part in states.items() if mode in modes}


def _checked(backend: Backend, dtype: str | None) -> str:
    allowed = _DTYPES[backend]
    if dtype is not None and dtype not in allowed:
        raise ValueError(f"dtype of the backend {backend!r} is one of {list(allowed)}, got {dtype!r}")
    return dtype or allowed[0]


def _engines(backend: Backend) -> Engines:
    for library in _LIBRARIES[backend]:
        need(library, extra=backend)
    module: Engines = import_module(f"m3_integrations.core.{backend}_engine")
    return module


def _manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no exported model: {_MANIFEST} cannot be read ({error}); name a new folder to export into"
        ) from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
