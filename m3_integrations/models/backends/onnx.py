"""ONNX Runtime: export in float32 or with 8-bit weights and activations, and execution."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from m3_integrations.core.encoded import Array, Mode
from m3_integrations.models.backends.exported import INPUTS, ExportableModel, GraphRunner

_FILE = "model.onnx"


def write(graph: ExportableModel, folder: Path, dtype: str) -> None:
    """Write the graph, with weights in a separate file, since an ONNX file holds at most 2 GB."""
    whole = folder / ("whole.onnx" if dtype == "int8" else _FILE)
    texts, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    with _quiet_exporter():
        torch.onnx.export(
            graph,
            graph.example(),
            whole,
            input_names=list(INPUTS),
            output_names=list(graph.modes),
            dynamic_shapes=({0: texts, 1: length},) * len(INPUTS),
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    if dtype == "int8":
        _quantize(whole, folder / _FILE)


def _quantize(whole: Path, coded: Path) -> None:
    """Quantize linear layers to int8: weights per column, activations dynamically.

    Weights use 7 bits: products of 8-bit weights overflow 16-bit sums on processors without VNNI instructions.
    """
    quantize_dynamic(
        whole,
        coded,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        use_external_data_format=True,
    )
    for path in whole.parent.glob(f"{whole.name}*"):
        path.unlink()


def load(folder: Path, dtype: str, modes: Sequence[Mode]) -> GraphRunner:
    """Return a session on as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / _FILE, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Array]) -> dict[Mode, Array]:
        return dict(zip(modes, session.run(list(modes), dict(inputs)), strict=True))

    return run


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about operators that our models do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
