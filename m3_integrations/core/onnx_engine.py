"""ONNX Runtime: writes the graph as ONNX, in float32 or with 8-bit weights and activations, and runs it."""

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
from m3_integrations.core.exported import INPUTS, Engine, Graph

_FILE = "model.onnx"


def write(graph: Graph, folder: Path, dtype: str) -> None:
    """Write the graph; weights go beside it, since a file of this format holds 2 GB at most."""
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
        _quantise(whole, folder / _FILE)


def _quantise(whole: Path, coded: Path) -> None:
    """Linear layers in 8 bits: weights by column, activations as they come."""
    quantize_dynamic(
        whole,
        coded,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    for path in whole.parent.glob(f"{whole.name}*"):
        path.unlink()


def load(folder: Path, dtype: str, modes: Sequence[Mode]) -> Engine:
    """A session over the file, on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / _FILE, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Array]) -> dict[Mode, Array]:
        return dict(zip(modes, session.run(list(modes), dict(inputs)), strict=True))

    return run


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what the exporter says of operators that no model of ours has."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
