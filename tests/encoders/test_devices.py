"""M3Encoder on an accelerator against the CPU: `pytest -m gpu`, on the device that M3_TEST_DEVICE names."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core.encoded import MODES
from m3_integrations.encoders.pool import EncoderPool
from m3_integrations.models.backends.states import PendingStates

DEVICE = os.environ.get("M3_TEST_DEVICE", "cuda")
on_a_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available() and DEVICE != "cpu", reason="there is no accelerator"),
]
TEXTS = ["the bridge", "Die Brücke über die Wolga " * 5, "", "мост", "橋はどこにある", "what is a passage?"] * 4
CLOSEST = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}


def load(folder, device=DEVICE, **options):
    return M3Encoder.from_pretrained(str(folder), device=device, **options)


def assert_close(found, expected, tolerance):
    for mode in MODES:
        left, right = (getattr(each, mode) for each in (found, expected))
        if mode == "sparse":
            left, right = left.toarray(), right.toarray()
        if mode == "multi_vector":
            np.testing.assert_array_equal(left.offsets, right.offsets)
            left, right = left.values, right.values
        assert left.dtype == np.float32
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


class TestDevice:
    pytestmark = on_a_device

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_states_are_copied_in_the_precision_of_the_model_without_loss(self, dtype):
        torch.manual_seed(0)
        token_states = {"sparse": torch.rand(20), "multi_vector": torch.randn(20, 8)}
        parts = {"dense": torch.randn(3, 8)} | {mode: part.to(dtype).float() for mode, part in token_states.items()}
        copied = PendingStates({mode: part.to(DEVICE) for mode, part in parts.items()}, dtype).result()
        assert copied.find_non_finite([6, 7, 7]) == []
        for mode, part in parts.items():
            torch.testing.assert_close(copied.parts[mode].float(), part, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_single_short_texts_equal_those_of_a_batch(self, bge_m3, dtype):
        encoder = load(bge_m3(), dtype=dtype)
        texts = ["a", *("bridge " * length for length in (5, 13, 14, 15, 30, 60, 120, 125, 126, 127, 140)), "", "a"]
        expected = encoder.encode_queries(texts)
        for i, text in enumerate(texts):
            found = encoder.encode_queries([text])
            for left, right in (
                (found.dense[0], expected.dense[i]),
                (found.sparse.toarray()[0], expected.sparse[[i]].toarray()[0]),
                (found.multi_vector[0], expected.multi_vector[i]),
            ):
                np.testing.assert_allclose(left, right, rtol=CLOSEST[dtype], atol=CLOSEST[dtype])

    def test_texts_in_many_batches_keep_their_order(self, bge_m3):
        encoder = load(bge_m3(), dtype="float16", batch_tokens=256)
        texts = [f"bridge {'word ' * (i % 37)}{i}" for i in range(300)]
        assert_close(encoder.encode_passages(texts), load(bge_m3(), "cpu").encode_passages(texts), CLOSEST["float16"])

    @pytest.mark.parametrize("mode", MODES)
    def test_a_text_that_overflows_in_half_precision_is_computed_in_float32(self, bge_m3, mode):
        encoder = load(bge_m3(), dtype="float16")
        with torch.no_grad():
            encoder._runner.backend.model.backbone.encoder.layer[0].intermediate.dense.weight.mul_(torch.inf)
        found = encoder.encode_passages(TEXTS, (mode,))
        expected = load(bge_m3(), "cpu").encode_passages(TEXTS, (mode,))
        left, right = (getattr(each, mode) for each in (found, expected))
        if mode == "sparse":
            left, right = left.toarray(), right.toarray()
        if mode == "multi_vector":
            left, right = left.values, right.values
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("dtype", list(CLOSEST))
    def test_vectors_equal_those_of_the_cpu(self, bge_m3, dtype):
        found = load(bge_m3(), dtype=dtype).encode_passages(TEXTS)
        assert_close(found, load(bge_m3(), "cpu").encode_passages(TEXTS), CLOSEST[dtype])

    @pytest.mark.parametrize("options", [{"window_overlap": 8, "max_length": 24}, {"token_pooling": 2}])
    def test_windows_and_pooled_tokens_equal_those_of_the_cpu(self, bge_m3, options):
        found, expected = (load(bge_m3(), device, **options).encode_passages(TEXTS) for device in (DEVICE, "cpu"))
        np.testing.assert_allclose(found.dense, expected.dense, atol=1e-4)
        np.testing.assert_array_equal(found.multi_vector.offsets, expected.multi_vector.offsets)

    def test_batches_of_any_size_give_the_same_vectors(self, bge_m3):
        expected = load(bge_m3()).encode_passages(TEXTS)
        assert_close(load(bge_m3(), batch_tokens=1).encode_passages(TEXTS), expected, 1e-4)

    def test_a_text_of_8192_tokens_is_encoded(self, bge_m3):
        encoder = load(bge_m3(positions=8192), dtype="float16", max_length=8192)
        text = "bridge " * 9000
        with pytest.warns(UserWarning, match="8192"):
            assert np.isfinite(encoder.encode_passages([text]).dense).all()

    def test_insufficient_memory_halves_the_batches(self, bge_m3):
        if not DEVICE.startswith("cuda"):
            pytest.skip("only CUDA limits a process's memory")
        encoder, texts = load(bge_m3(), batch_tokens=1 << 24), ["the bridge over the river " * 12] * 20_000
        expected = encoder.encode_passages(texts[:8]).dense
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 28)) / total)
        try:
            found = encoder.encode_passages(texts, ("dense",)).dense
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        np.testing.assert_allclose(found[:8], expected, atol=1e-4)

    def test_a_pool_on_one_device_gives_the_same_vectors(self, bge_m3):
        with EncoderPool(str(bge_m3()), devices=[DEVICE]) as pool:
            assert_close(pool.encode_passages(TEXTS), load(bge_m3()).encode_passages(TEXTS), 1e-4)
