"""Files of a checkpoint's folder, read with checks: JSON and tensors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig

from m3_integrations.core.errors import CheckpointError

UNBOUNDED = sys.maxsize
_FLOATS = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}
_LFS_POINTER = b"version https://git-lfs"
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_UNSAFE_ADVICE = re.compile(r"weights_only|trust_remote_code|allow_pickle|add_safe_globals")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def read_error(message: str, error: Exception) -> CheckpointError:
    """Return the error for an unreadable file, without the advice of a library to give up its safe reader.

    Args:
        message: Text of the error, in which "{reason}" stands for the library's first line.
        error: Error of the library.
    """
    is_unsafe = _UNSAFE_ADVICE.search(str(error)) is not None
    reason = type(error).__name__ if is_unsafe else (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, KeyError):
        reason = f"unknown {reason}"
    ours = CheckpointError(message.replace("{reason}", reason))
    ours.__cause__ = None if is_unsafe else error
    ours.__suppress_context__ = True
    return ours


def require_content(path: Path) -> None:
    """Raise CheckpointError if a file is a Git LFS pointer."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it"
            )


def read_json(path: Path, default: Any = None) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        default: Value of a missing file; None makes that an error.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    if default is not None and not path.is_file():
        return default
    try:
        require_content(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error


def read_object(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object; see `read_json`."""
    value = read_json(path, default)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds {type(value).__name__}")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors; nothing in it is executed.

    Raises:
        CheckpointError: If it holds anything else, or tensors larger than the file.
    """
    require_content(path)
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except Exception as error:  # torch.load raises anything from KeyError to UnpicklingError on a hostile file
        raise read_error(f"{path} cannot be read as tensors: {{reason}}", error) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} must hold a dict of tensors")
    if sum(value.numel() * value.element_size() for value in tensors.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} describes tensors larger than the file; download it again")
    return tensors


def _load_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def check_weights(folder: Path, config: PreTrainedConfig, **options: Any) -> None:
    """Check that the weight files of a folder hold a model of this configuration, before memory is allocated for it.

    Args:
        folder: Folder in the transformers layout.
        config: Its configuration.
        **options: Options of the model's class.

    Raises:
        CheckpointError: If files are missing, unreadable or outside the folder, or hold fewer layers or weights.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        for name, shape, dtype in _shapes(path):
            if name.endswith((".weight", ".bias")) and dtype not in _FLOATS:
                raise CheckpointError(f"{path} holds {name!r} as {dtype}: quantized weights are not supported")
            shapes[name] = shape
    layers = {int(found[1]) for name in shapes if (found := _LAYER.search(name))}
    expected = int(getattr(config, "num_hidden_layers", len(layers)))
    if layers and expected > len(layers):
        raise CheckpointError(f"{folder / 'config.json'} states {expected} layers, but the weights have {len(layers)}")
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False, **options)  # type: ignore[no-untyped-call]
    needed, stored = sum(each.numel() for each in model.parameters()), sum(map(prod, shapes.values()))
    if needed > stored:
        raise CheckpointError(
            f"{folder / 'config.json'} describes {needed:,} weights, but the files hold {stored:,}; they are cut, "
            "or of another model"
        )


def read_named_tensors(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Read some tensors of a folder's weight files, in float32.

    Args:
        folder: Folder in the transformers layout.
        names: Names of tensors in its files.

    Returns:
        The tensors that exist.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    found: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        require_content(path)
        if path.suffix != ".safetensors":
            found |= {name: value.float() for name, value in _map_tensors(path).items() if name in names}
            continue
        try:
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name).float() for name in file.keys() if name in names}  # noqa: SIM118
        except Exception as error:
            raise read_error(f"{path} cannot be read as tensors: {{reason}}", error) from None
    return found


def _weight_files(folder: Path) -> list[Path]:
    found = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder} lacks weights; it needs config.json, model.safetensors (or pytorch_model.bin) and tokenizer.json"
        )
    if found.suffix != ".json":
        return [found]
    names = read_object(found).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{found} must hold a 'weight_map' from tensors to files")
    return [inside(folder, name) for name in sorted(set(names.values()))]


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a checkpoint names.

    Raises:
        CheckpointError: If it is missing or outside the folder.
    """
    path = folder / name
    # Hub caches link files to another folder, so that links are not followed here.
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{folder} names {name!r}, which is outside the folder")
    if name and not path.exists():
        raise CheckpointError(f"{folder} lacks {name!r}; download it again")
    return path


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield name, shape and type of the tensors of a file."""
    require_content(path)
    if path.suffix != ".safetensors":
        yield from ((name, tuple(value.shape), str(value.dtype)) for name, value in _map_tensors(path).items())
        return
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                part = file.get_slice(name)
                yield name, tuple(part.get_shape()), part.get_dtype()
    except Exception as error:
        raise read_error(f"{path} cannot be read as tensors: {{reason}}", error) from None


def _map_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except RuntimeError:  # a file of before torch 1.6 cannot be mapped
        return read_tensors(path)
    except Exception as error:
        raise read_error(f"{path} cannot be read as tensors: {{reason}}", error) from None
