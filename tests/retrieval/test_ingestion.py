"""Filling an index: what is new is added, what changed is replaced, what is the same costs nothing."""

from __future__ import annotations

import threading
import time

import pytest

from m3_integrations import IngestReport, MemoryIndex, Passage, ingest
from m3_integrations.core.errors import MissingMode
from m3_integrations.testing import HashEncoder


class Counting(HashEncoder):
    """Records the texts that it encodes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.encoded = []

    def encode_passages(self, texts, modes=None, *, show_progress=False):
        self.encoded.extend(texts)
        return super().encode_passages(texts, modes, show_progress=show_progress)


@pytest.fixture
def encoder():
    return Counting()


def passages(*texts):
    return [Passage(f"p{i}", text) for i, text in enumerate(texts)]


def test_new_passages_are_added(encoder, index):
    assert ingest(encoder, index, passages("red", "blue")) == IngestReport(added=2, replaced=0, unchanged=0)
    assert index.passages() == passages("red", "blue")
    assert index.modes == encoder.modes


def test_unchanged_passages_are_not_encoded_again(encoder, index):
    ingest(encoder, index, passages("red", "blue"))
    encoder.encoded.clear()
    assert ingest(encoder, index, passages("red", "blue", "green")) == IngestReport(added=1, replaced=0, unchanged=2)
    assert encoder.encoded == ["green"]


def test_a_passage_whose_text_changed_is_replaced(encoder, index):
    ingest(encoder, index, passages("red", "blue"))
    assert ingest(encoder, index, passages("red", "green")) == IngestReport(added=0, replaced=1, unchanged=1)
    assert index.passages(["p1"])[0].text == "green"
    assert index.search("dense", encoder.encode_queries(["green"]), 1)[0][0].id == "p1"


def test_a_passage_whose_metadata_changed_is_replaced(encoder, index):
    ingest(encoder, index, [Passage("a", "red", {"year": 2020})])
    assert ingest(encoder, index, [Passage("a", "red", {"year": 2021})]).replaced == 1
    assert index.passages(["a"])[0].metadata == {"year": 2021}


def test_the_last_passage_of_a_repeated_id_is_stored(encoder, index):
    report = ingest(encoder, index, [Passage("a", "red"), Passage("a", "blue")])
    assert report.total == 2
    assert [passage.text for passage in index.passages()] == ["blue"]


def test_a_generator_is_streamed(encoder, index):
    kept_when_asked = []

    def stream():
        for i in range(1100):
            kept_when_asked.append(len(index))
            yield Passage(f"{i:04d}", f"word{i % 7}")

    assert ingest(encoder, index, stream()).added == 1100
    assert len(index) == 1100
    assert 0 < kept_when_asked[-1] < 1100  # much was added before the last passage was made


def test_passages_added_before_an_error_stay_and_the_next_call_resumes(encoder, index):
    def breaking():
        yield from (Passage(f"{i:04d}", "red") for i in range(600))
        raise OSError("the disk was pulled out")

    with pytest.raises(OSError, match="pulled out"):
        ingest(encoder, index, breaking())
    before = len(index)
    assert 0 < before < 600
    report = ingest(encoder, index, (Passage(f"{i:04d}", "red") for i in range(600)))
    assert report == IngestReport(added=600 - before, replaced=0, unchanged=before)


def test_nothing_to_ingest_changes_nothing(encoder, index):
    assert ingest(encoder, index, []) == IngestReport(0, 0, 0)
    assert len(index) == 0


def test_the_requested_modes_are_stored_and_later_calls_follow_the_index(encoder, index):
    ingest(encoder, index, passages("red"), modes=("dense",))
    ingest(encoder, index, passages("red", "blue"))
    assert index.modes == {"dense"}


def test_a_mode_that_the_encoder_lacks_raises(index):
    with pytest.raises(MissingMode, match="'sparse' is not available"):
        ingest(HashEncoder(modes=("dense",)), index, passages("red"), modes=("sparse",))


def test_empty_texts_are_stored(encoder, index):
    assert ingest(encoder, index, passages("", "  ")).added == 2
    assert len(index.search("dense", encoder.encode_queries([""]), 2)[0]) == 2


def test_progress_is_shown_only_on_request(encoder, index, capsys):
    ingest(encoder, index, passages("red"))
    assert capsys.readouterr().err == ""
    ingest(encoder, index, passages("red"), show_progress=True)
    assert "ingest" in capsys.readouterr().err


def test_reports_add_up():
    assert IngestReport(1, 2, 3) + IngestReport(10, 20, 30) == IngestReport(11, 22, 33)
    assert IngestReport(1, 2, 3).total == 1 + 2 + 3


LONG = 1 << 17  # characters: such a passage is encoded and written on its own


def test_passages_are_encoded_while_earlier_ones_are_written():
    second_is_encoded = threading.Event()

    class Telling(Counting):
        def encode_passages(self, texts, modes=None, *, show_progress=False):
            found = super().encode_passages(texts, modes, show_progress=show_progress)
            if len(self.encoded) == 2:
                second_is_encoded.set()
            return found

    class Waiting(MemoryIndex):
        def add(self, passages, encoded):
            assert second_is_encoded.wait(timeout=60)
            super().add(passages, encoded)

    with Waiting() as index:
        assert ingest(Telling(), index, [Passage(letter, letter * LONG) for letter in "abc"]).added == 3
        assert index.ids() == ["a", "b", "c"]


def test_an_id_repeated_while_it_is_written_counts_as_replaced(encoder):
    with MemoryIndex() as index:
        report = ingest(encoder, index, [Passage("a", letter * LONG) for letter in "aab"])
        assert (report.added, report.unchanged, report.replaced) == (1, 1, 1)
        assert [passage.text[0] for passage in index.passages()] == ["b"]


def test_a_failed_addition_raises_and_earlier_passages_stay(encoder):
    class Full(MemoryIndex):
        def add(self, passages, encoded):
            if len(self) == 2:
                raise OSError("no space left on device")
            super().add(passages, encoded)

    with Full() as index:
        with pytest.raises(OSError, match="no space left"):
            ingest(encoder, index, [Passage(letter, letter * LONG) for letter in "abcd"])
        assert index.ids() == ["a", "b"]


class Watching(MemoryIndex):
    """Remembers how many passages came at once."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def add(self, passages, encoded):
        self.sizes.append(len(passages))
        super().add(passages, encoded)


def test_long_passages_are_encoded_in_small_parts(encoder):
    with Watching() as index:
        ingest(encoder, index, [Passage(str(i), "x" * (LONG // 4)) for i in range(40)])
    assert (sum(index.sizes), max(index.sizes)) == (40, 4)


def test_an_encoder_with_large_batches_gets_two_batches_at_once(encoder):
    encoder.batch_tokens = LONG // 4  # of 4 characters, two of which are twice the characters that others get
    with Watching() as index:
        ingest(encoder, index, [Passage(str(i), "x" * (LONG // 4)) for i in range(60)])
    assert (sum(index.sizes), max(index.sizes)) == (60, 8)


def test_a_slow_encoder_loses_seconds_of_work_when_it_is_interrupted(index):
    class Interrupted(HashEncoder):
        def encode_passages(self, texts, modes=None, *, show_progress=False):
            for text in texts:
                if text == "number 180":
                    raise KeyboardInterrupt
                time.sleep(0.03)
            return super().encode_passages(texts, modes, show_progress=show_progress)

    with pytest.raises(KeyboardInterrupt):
        ingest(Interrupted(), index, [Passage(f"{i:03d}", f"number {i}") for i in range(300)])
    assert 180 - 3 / 0.03 < len(index) <= 180
    report = ingest(HashEncoder(), index, [Passage(f"{i:03d}", f"number {i}") for i in range(300)])
    assert report.added == 300 - report.unchanged < 300


def test_progress_is_reported_with_the_counts_so_far(encoder, index):
    ingest(encoder, index, passages("red", "blue"))
    reports = []
    total = ingest(encoder, index, passages("red", "blue", *("green" * 500,) * 3), on_progress=reports.append)
    assert reports[0] == IngestReport(added=0, replaced=0, unchanged=2)
    assert reports[-1] == total == IngestReport(added=3, replaced=0, unchanged=2)
    assert len(reports) > 2
