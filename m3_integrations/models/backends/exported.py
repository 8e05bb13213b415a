"""Models exported to another runtime: graph, heads and a manifest of the checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from m3_integrations.core.encoded import MODES, Array, Mode, Modes
from m3_integrations.core.errors import CheckpointError
from m3_integrations.core.forking import ProcessBound
from m3_integrations.core.optional import import_optional
from m3_integrations.models.backends.states import PendingStates
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.models.packing import pad, pool_of
from m3_integrations.models.tokenization import TokenSequence
from m3_integrations.models.transformer import M3Model

Backend = Literal["torch", "onnx", "openvino"]
BACKENDS: tuple[Backend, ...] = ("torch", "onnx", "openvino")
INPUTS = ("ids", "mask", "pool")
_LONGEST_NAME = 200  # characters
_MANIFEST = "m3_exported.json"
_DTYPES: Mapping[Backend, tuple[str, ...]] = {"onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16")}
_LIBRARIES: Mapping[Backend, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}


class GraphRunner(Protocol):
    """Runs an exported graph."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[Mode, Array]:
        """Return the outputs of `M3Model.forward` by mode.

        The inputs ids, mask and pool are (texts, length).
        """


class BackendModule(Protocol):
    """A module that writes and loads one runtime's files."""

    def write(self, graph: ExportableModel, folder: Path, dtype: str) -> None: ...

    def load(self, folder: Path, dtype: str, modes: Sequence[Mode]) -> GraphRunner: ...


class ExportableModel(nn.Module):
    """The model as a graph of tensors: its modes in the order of MODES."""

    def __init__(self, model: M3Model, modes: Sequence[Mode]) -> None:
        super().__init__()
        self.model = model
        self.modes = tuple(modes)

    def forward(self, ids: Tensor, mask: Tensor, pool: Tensor) -> tuple[Tensor, ...]:
        states = self.model(ids, mask, pool, self.modes)
        return tuple(part for part in states if part is not None)

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return two padded texts for the exporter to trace."""
        mask = torch.tensor([[1] * 16, [1] * 10 + [0] * 6])
        return torch.full_like(mask, 5), mask, mask / mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class Manifest:
    """Origin of an exported folder.

    Attributes:
        backend: Runtime that it was exported for.
        dtype: Precision.
        weights: Hash of the checkpoint's weights.
        files: SHA-256 of each file by name.
    """

    backend: str
    dtype: str
    weights: str
    files: Mapping[str, str]


def export(checkpoint: Checkpoint, backend: Backend, dtype: str, folder: Path) -> None:
    """Write a model with its heads for another runtime.

    Args:
        checkpoint: Checkpoint to export.
        backend: Runtime.
        dtype: Precision.
        folder: Target; absent or empty.

    Raises:
        CheckpointError: If the folder is not empty.
    """
    engines = _engines(backend)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; name a new folder to export into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    modes = [mode for mode in MODES if mode in checkpoint.heads.modes]
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        written = Path(temporary, "exported")
        written.mkdir()
        engines.write(ExportableModel(M3Model(*checkpoint.stored()).eval(), modes), written, dtype)
        files = {path.name: _hash(path) for path in sorted(written.iterdir())}
        manifest = Manifest(backend, dtype, checkpoint.hash_weights(), files)
        (written / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # empty
        written.rename(folder)


def require_exported(checkpoint: Checkpoint, backend: Backend, dtype: str, folder: Path) -> None:
    """Check that a folder holds the export of a checkpoint.

    Args:
        checkpoint: Expected checkpoint.
        backend: Expected runtime.
        dtype: Expected precision.
        folder: Folder to check.

    Raises:
        CheckpointError: If it holds another export, or files are missing or changed.
    """
    manifest = _manifest(folder)
    advice = f"remove {folder} or name a new folder to export again"
    if (manifest.backend, manifest.dtype) != (backend, dtype):
        raise CheckpointError(
            f"{folder} was exported for {manifest.backend!r} in {manifest.dtype}, not for {backend!r} in {dtype}; "
            f"{advice}"
        )
    if manifest.weights != checkpoint.hash_weights():
        raise CheckpointError(f"{folder} was exported from a checkpoint other than {checkpoint.name!r}; {advice}")
    for name, expected in manifest.files.items():
        if not (folder / name).is_file() or _hash(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is missing or differs from the exported file; {advice}")


class ExportedModel:
    """Runs batches through an exported graph."""

    is_padded = True

    def __init__(self, checkpoint: Checkpoint, backend: Backend, dtype: str | None, folder: str | Path | None) -> None:
        self._checkpoint = checkpoint
        self._process = ProcessBound(f"an encoder with backend={backend!r}")
        self.dtype = _checked(backend, dtype)
        # A runtime may map its files, so a temporary folder lives as long as the runtime.
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        path = Path(folder if self._temporary is None else self._temporary.name).expanduser()  # type: ignore[arg-type]
        if not path.is_dir() or not any(path.iterdir()):
            export(checkpoint, backend, self.dtype, path)
        else:
            require_exported(checkpoint, backend, self.dtype, path)
        self.batches_ahead = 0
        self._modes = [mode for mode in MODES if mode in checkpoint.heads.modes]
        self._engine = _engines(backend).load(path, self.dtype, self._modes)

    def start(self, batch: Sequence[TokenSequence], modes: Modes) -> PendingStates:
        """Compute the states of a batch, token after token, as `M3Model.encode` does."""
        self._process.check()
        inputs = pad(self._checkpoint.backbone, batch, self._checkpoint.special.pad)
        ids = inputs.arguments["input_ids"]
        pool = torch.zeros(ids.shape)
        pooled = pool_of(batch, self._checkpoint.conventions.pooling, torch.device("cpu"))
        mask = inputs.mask if inputs.mask is not None else torch.ones_like(ids, dtype=torch.bool)
        flat = torch.zeros(len(inputs.ids))
        flat[pooled.places] = pooled.shares
        pool[mask] = flat
        attended = inputs.arguments["attention_mask"]
        attended = mask.long() if attended is None else attended
        states = self._engine({"ids": ids.numpy(), "mask": attended.numpy(), "pool": pool.numpy()})
        parts = {mode: torch.from_numpy(part) for mode, part in states.items() if mode in modes}
        return PendingStates(
            {mode: part if mode == "dense" else part[mask] for mode, part in parts.items()}, torch.float32
        )


def _checked(backend: Backend, dtype: str | None) -> str:
    allowed = _DTYPES[backend]
    if dtype is not None and dtype not in allowed:
        raise ValueError(f"dtype of the backend {backend!r} is one of {list(allowed)}, got {dtype!r}")
    return dtype or allowed[0]


def _engines(backend: Backend) -> BackendModule:
    for library in _LIBRARIES[backend]:
        import_optional(library, extra=backend)
    module: BackendModule = import_module(f"m3_integrations.models.backends.{backend}")
    return module


def _manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        if not all(Path(name).name == name and len(name) < _LONGEST_NAME for name in manifest.files):
            raise ValueError(f"it names files elsewhere: {sorted(manifest.files)[:3]}")
        return Manifest(manifest.backend, manifest.dtype, manifest.weights, dict(manifest.files))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} is not an exported model: {_MANIFEST} cannot be read ({error}); name a new folder to export into"
        ) from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
