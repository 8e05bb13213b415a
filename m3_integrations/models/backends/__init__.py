"""Runtimes of the forward pass: PyTorch, ONNX Runtime, OpenVINO."""
