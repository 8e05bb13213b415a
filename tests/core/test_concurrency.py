"""Concurrent single queries share a forward pass."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from m3_integrations.core import concurrency as microbatch
from m3_integrations.core.concurrency import MAX_BATCH, micro_batched

PATIENCE = 60


class Lengths:
    """Answers the length of each text, writes down what it was asked, and works only while its gate is open."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def of(self, texts: list[str]) -> list[int]:
        self.passes.append(texts)
        assert self.gate.wait(PATIENCE)
        if "bad" in texts:
            raise ValueError(f"'bad' at position {texts.index('bad')}")
        return [len(text) for text in texts]


@pytest.fixture
def lengths():
    return Lengths()


async def until(true) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def during_a_pass(lengths: Lengths) -> asyncio.Task[int]:
    """A question whose pass has begun and waits at the gate."""
    lengths.gate.clear()
    first = asyncio.create_task(micro_batched(lengths.of, "first"))
    await until(lambda: lengths.passes)
    return first


async def test_questions_asked_together_share_passes_and_each_gets_its_own_answer(lengths):
    texts = ["x" * n for n in range(64)]
    assert await asyncio.gather(*(micro_batched(lengths.of, text) for text in texts)) == list(range(64))
    assert len(lengths.passes) < 8
    assert sorted(text for each in lengths.passes for text in each) == texts


async def test_those_that_come_during_a_pass_go_together_in_the_next(lengths):
    first = await during_a_pass(lengths)
    others = [asyncio.create_task(micro_batched(lengths.of, text)) for text in ("a", "bb", "ccc")]
    await asyncio.sleep(0)
    lengths.gate.set()
    assert await asyncio.gather(first, *others) == [5, 1, 2, 3]
    assert lengths.passes == [["first"], ["a", "bb", "ccc"]]


async def test_a_pass_takes_no_more_than_the_most(lengths):
    first = await during_a_pass(lengths)
    others = [asyncio.create_task(micro_batched(lengths.of, "a")) for _ in range(MAX_BATCH + 3)]
    await asyncio.sleep(0)
    lengths.gate.set()
    await asyncio.gather(first, *others)
    assert [len(each) for each in lengths.passes] == [1, MAX_BATCH, 3]


async def test_a_lone_question_hardly_waits(lengths):
    await micro_batched(lengths.of, "a")
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        await micro_batched(lengths.of, "a")
        taken.append(time.perf_counter() - start)
    assert min(taken) < microbatch.LONGEST_WAIT + 0.003


async def test_the_event_loop_goes_on_during_a_pass(lengths):
    first = await during_a_pass(lengths)
    turns = 0
    while turns < 100:
        await asyncio.sleep(0)
        turns += 1
    assert not first.done()
    lengths.gate.set()
    assert await first == 5


async def test_a_failing_text_fails_alone_with_the_error_that_it_gets_alone(lengths):
    first = await during_a_pass(lengths)
    texts = ["a", "bb", "bad", "dddd", "bad"]
    others = [asyncio.create_task(micro_batched(lengths.of, text)) for text in texts]
    await asyncio.sleep(0)
    lengths.gate.set()
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert [str(each) if isinstance(each, ValueError) else each for each in answers] == [
        5, 1, 2, "'bad' at position 0", 4, "'bad' at position 0",
    ]  # fmt: skip


async def test_an_answer_too_few_is_an_error_and_nobody_waits_for_ever():
    with pytest.raises(ValueError, match="zip"):
        await asyncio.wait_for(micro_batched(_forgetful, "a"), PATIENCE)


def _forgetful(texts: list[str]) -> list[int]:
    return []


async def test_who_is_cancelled_in_line_is_not_asked_for_and_the_others_are_answered(lengths):
    first = await during_a_pass(lengths)
    leaver, stayer = (asyncio.create_task(micro_batched(lengths.of, text)) for text in ("leaver", "stayer"))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.sleep(0)
    lengths.gate.set()
    assert await asyncio.gather(first, stayer) == [5, 6]
    assert lengths.passes == [["first"], ["stayer"]]
    assert leaver.cancelled()


async def test_who_is_cancelled_during_its_pass_leaves_the_others_answered(lengths):
    first = await during_a_pass(lengths)
    second = asyncio.create_task(micro_batched(lengths.of, "second"))
    await asyncio.sleep(0)
    first.cancel()
    lengths.gate.set()
    assert await second == 6
    assert first.cancelled()


def test_several_loops_on_several_threads_share_passes(lengths):
    waiting = threading.Semaphore(0)

    async def ask(name: str) -> list[int]:
        queries = [asyncio.create_task(micro_batched(lengths.of, f"{name}{i}")) for i in range(8)]
        await asyncio.sleep(0)  # each begins, and waits for a pass
        waiting.release()
        return await asyncio.gather(*queries)

    answers: dict[str, list[int]] = {}
    lengths.gate.clear()
    threads = [
        threading.Thread(target=lambda name=name: answers.update({name: asyncio.run(ask(name))})) for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=PATIENCE)
    lengths.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == {name: [2] * 8 for name in "abcd"}
    assert len(lengths.passes) < 8
    assert any(len({text[0] for text in each}) > 1 for each in lengths.passes)


def test_a_loop_that_ended_while_its_question_was_asked_strands_nobody(lengths):
    async def leave() -> None:
        await during_a_pass(lengths)  # the loop ends, and cancels it

    asyncio.run(leave())
    lengths.gate.set()
    assert asyncio.run(micro_batched(lengths.of, "four")) == 4


async def test_nothing_is_kept_once_everybody_is_answered(lengths):
    assert await micro_batched(lengths.of, "a") == 1
    assert await micro_batched(lengths.of, "a") == 1
    assert lengths.passes == [["a"], ["a"]]
    await until(lambda: lengths.of not in microbatch._queues)


async def test_two_objects_do_not_share_a_line(lengths):
    other = Lengths()
    await asyncio.gather(micro_batched(lengths.of, "mine"), micro_batched(other.of, "theirs"))
    assert (lengths.passes, other.passes) == ([["mine"]], [["theirs"]])


async def test_vectors_are_those_of_single_calls(mini):
    def rows(texts: list[str]) -> list[np.ndarray]:
        return list(mini.encode_queries(texts, ("dense",)).dense)

    texts = ["a red cat", "谁建造了赵州桥？", "", "x " * 300, "When was the Forth Bridge opened?"]
    together = await asyncio.gather(*(micro_batched(rows, text) for text in texts))
    alone = [rows([text])[0] for text in texts]
    assert np.allclose(together, alone, atol=1e-5)
