"""Batches in flight: their order, and insufficient memory while some are computing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3_integrations.models.backends.base import BatchRunner
from m3_integrations.models.backends.states import BatchStates
from m3_integrations.models.tokenization import TokenSequence

SEQUENCES = [TokenSequence(np.full(4, i, np.int32), i, 0, np.array([0])) for i in range(12)]


class Pending:
    def __init__(self, device, batch):
        self.device, self.batch = device, batch

    def result(self):
        self.device.started.remove(self)
        values = torch.tensor([[float(each.text)] for each in self.batch])
        return BatchStates({"dense": values}, {"dense": torch.ones(len(values), dtype=torch.bool)})


class Device:
    """A device with room for some sequences, which holds those of a batch until its result is read."""

    is_padded = False

    def __init__(self, room, batches_ahead):
        self.room, self.batches_ahead, self.started, self.most = room, batches_ahead, [], 0

    def start(self, batch, modes):
        if len(batch) + sum(len(each.batch) for each in self.started) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.started.append(Pending(self, batch))
        self.most = max(self.most, len(self.started))
        return self.started[-1]


def run(device, batch_tokens):
    runner = BatchRunner(device, None, batch_tokens, "model")
    return [(batch, states["dense"][:, 0].tolist()) for batch, states in runner.run(SEQUENCES, ("dense",))]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_batches_are_started_ahead_and_returned_in_order(ahead):
    device = Device(room=100, batches_ahead=ahead)
    found = run(device, batch_tokens=8)
    assert found == [([i, i + 1], [i, i + 1.0]) for i in range(0, 12, 2)]
    assert device.most == min(ahead + 1, 6)
    assert not device.started


@pytest.mark.parametrize("room", [1, 2, 3, 5])
def test_if_memory_is_short_batches_are_read_before_others_are_halved(room):
    found = run(Device(room=room, batches_ahead=2), batch_tokens=8)
    assert [i for batch, _ in found for i in batch] == list(range(12))
    assert max(len(batch) for batch, _ in found) == min(room, 2)
    assert all(values == batch for batch, values in found)


def test_a_single_sequence_without_room_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        run(Device(room=0, batches_ahead=2), batch_tokens=8)
