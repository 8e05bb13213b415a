"""Open the index of a command with the model that filled it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from m3_integrations.cli.options import UsageError
from m3_integrations.cli.output import terminal
from m3_integrations.cli.progress import has_bfloat16

if TYPE_CHECKING:
    from m3_integrations import Encoder, LocalIndex, M3Encoder
    from m3_integrations.encoders.base import Dtype
    from m3_integrations.models.backends.exported import Backend

DEFAULT_MODEL = "m3-mini"


def require_index(folder: Path) -> None:
    """Check that a folder holds an index with passages.

    Raises:
        FileNotFoundError: If the folder is missing or empty, or its index holds no passages.
        IndexFolderError: If the folder is not an index.
    """
    from m3_integrations import LocalIndex

    if not _has_files(folder):
        raise FileNotFoundError(f"there is no index at {folder}; create one with: m3 index {folder} SOURCE")
    with LocalIndex.open(folder) as index:
        if not index.modes:
            raise FileNotFoundError(f"the index at {folder} holds no passages; add some with: m3 index {folder} SOURCE")


def require_no_index_around(folder: Path) -> None:
    """Check that a folder for a new index is not inside another index.

    Raises:
        UsageError: If it is.
    """
    from m3_integrations.index.local.catalog import FILE_NAME

    around = next((each for each in folder.absolute().parents if (each / FILE_NAME).is_file()), None)
    if around is not None and not folder.exists():
        raise UsageError(f"{folder} would be inside the index {around}; name a folder outside it")


def load_encoder(folder: Path, model: str | None, backend: Backend = "torch") -> M3Encoder:
    """Load a model: the one named, otherwise the one that filled the index, m3-mini for a new index.

    Args:
        folder: Folder of the index.
        model: Name of the model.
        backend: Backend; openvino computes in bfloat16 if the processor does.

    Raises:
        IndexFolderError: If the folder is not an index.
    """
    from m3_integrations import M3Encoder

    name = model or recorded_model(folder) or DEFAULT_MODEL
    if terminal.verbose:
        terminal.note(f"model: {name}")
    dtype: Dtype | None = "bfloat16" if backend == "openvino" and has_bfloat16() else None
    return M3Encoder.from_pretrained(name, backend=backend, dtype=dtype)


def open_for_queries(folder: Path, model: str | None) -> tuple[Encoder, LocalIndex]:
    """Open an index with an encoder of queries; that of m3-mini needs no torch.

    Raises:
        WrongEncoder: If the model named is not that of the index.
    """
    from m3_integrations import LocalIndex
    from m3_integrations.core.errors import WrongEncoder

    if (model or recorded_model(folder)) == DEFAULT_MODEL:
        from m3_integrations.encoders.mini_queries import MiniQueryEncoder

        encoder = MiniQueryEncoder.open_if_known()
        with suppress(WrongEncoder):  # another model, or the hash of the complete one
            if encoder is not None:
                return encoder, LocalIndex.open(folder, encoder)
    return open_index(folder, model)


def open_index(folder: Path, model: str | None) -> tuple[M3Encoder, LocalIndex]:
    """Open an index with its model, also if it is re-encoded with another one meanwhile.

    Raises:
        WrongEncoder: If the model named is not that of the index.
    """
    from m3_integrations import LocalIndex
    from m3_integrations.core.errors import WrongEncoder

    encoder = load_encoder(folder, model)
    try:
        return encoder, LocalIndex.open(folder, encoder)
    except WrongEncoder:
        if model is not None:
            raise
    encoder = load_encoder(folder, None)
    return encoder, LocalIndex.open(folder, encoder)


@contextmanager
def open_for_writing(folder: Path, encoder: M3Encoder) -> Iterator[LocalIndex]:
    """Open an index, and create it if there is none; a new one that is still empty after an error is removed."""
    from m3_integrations import LocalIndex

    is_new, passages = not folder.exists(), 0
    try:
        with LocalIndex.open(folder, encoder) as index:
            try:
                yield index
            finally:
                passages = len(index)
    except BaseException:
        if is_new and not passages and folder.is_dir():
            rmtree(folder)
        raise


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def recorded_model(folder: Path) -> str | None:
    """Return the model that filled the index of a folder; None if there is no index or it does not say.

    Raises:
        IndexFolderError: If the folder is not an index.
    """
    from m3_integrations import LocalIndex

    if not folder.is_file() and not _has_files(folder):
        return None
    with LocalIndex.open(folder) as index:
        return model_of_index(index)


def model_of_index(index: LocalIndex) -> str | None:
    """Return the model that filled an index, from the repr of its encoder; None if that does not say.

    The repr is a Python call, such as "M3Encoder('m3-mini', max_length=512)"; it is parsed and not run.
    """
    return model_of_label(index.encoder[1])


def model_of_label(label: str | None) -> str | None:
    """Return the model of an encoder, from its repr; None if that does not say."""
    try:
        call = ast.parse(label or "", mode="eval").body
    except (SyntaxError, ValueError):
        return None
    match call:
        case ast.Call(func=ast.Name(id="M3Encoder"), args=[ast.Constant(value=str(model)), *_]):
            return model
        case _:
            return None
