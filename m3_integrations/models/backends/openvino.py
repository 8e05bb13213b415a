"""OpenVINO: export, and execution in float32 or bfloat16."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import openvino
import torch

from m3_integrations.core.encoded import Array, Mode
from m3_integrations.models.backends.exported import INPUTS, ExportableModel, GraphRunner

_FILE = "model.xml"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def write(graph: ExportableModel, folder: Path, dtype: str) -> None:
    """Write the graph with float32 weights, for either precision."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about branches that our inputs do not take
        model = openvino.convert_model(graph, example_input=graph.example())
    for port, name in zip(model.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(model, folder / _FILE, compress_to_fp16=False)


def load(folder: Path, dtype: str, modes: Sequence[Mode]) -> GraphRunner:
    """Return the compiled model on as many threads as torch uses; it runs one query at a time."""
    options = {
        "INFERENCE_PRECISION_HINT": _HINTS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(folder / _FILE, "CPU", options).create_infer_request()
    lock = threading.Lock()

    def run(inputs: Mapping[str, Array]) -> dict[Mode, Array]:
        with lock:
            outputs = request.infer(dict(inputs))
            return {mode: outputs[position].copy() for position, mode in enumerate(modes)}

    return run
