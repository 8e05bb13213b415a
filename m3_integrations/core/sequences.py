"""From texts to the token sequences that the model reads, and back to the places in the text that tokens came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from m3_integrations.core.checkpoint import SpecialTokens

Ids = npt.NDArray[np.int32]


class TokenSequence(NamedTuple):
    """What the model reads at once: a text, or a window of one.

    ids: token ids, beginning with cls and ending with eos. text: the row of the text that it belongs to.
    prefix: how many tokens after the first belong to the prefix. cls: the places of the cls tokens.
    """

    ids: Ids
    text: int
    prefix: int
    cls: npt.NDArray[np.int64]

    def kept(self) -> npt.NDArray[np.int64]:
        """The places that stand for the text itself: cls and prefix left out, the ending eos kept."""
        return np.delete(np.arange(len(self.ids)), self.cls)[self.prefix :]


class Span(NamedTuple):
    """A token of a text, and the characters that it came from: `text[start:stop]`; the ending token has none."""

    id: int
    start: int
    stop: int


@dataclass(frozen=True)
class Sequencer:
    """Cuts texts into sequences of at most `max_length` tokens.

    window_overlap: None cuts a longer text at its end; a number reads it in windows that share so many tokens.
    cls_every: None begins a sequence with one cls; a number sets another before each so many tokens (MCLS,
    arXiv 2402.03216, section 3.4).
    """

    tokenizer: Tokenizer
    special: SpecialTokens
    max_length: int
    window_overlap: int | None = None
    cls_every: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if self.cls_every is not None and self.cls_every < 1:
            raise ValueError(f"cls_every must be at least 1 token, got {self.cls_every}")
        if self.window_overlap is not None and not 0 <= self.window_overlap <= self.room // 2:
            raise ValueError(f"window_overlap must be from 0 to {self.room // 2} tokens, got {self.window_overlap}")

    @property
    def room(self) -> int:
        """How many tokens of text a sequence holds, the prefix among them."""
        room = self.max_length - 2
        return room if self.cls_every is None else room - room // (self.cls_every + 1)

    def sequences(self, texts: Sequence[str], prefix: str) -> tuple[list[TokenSequence], int]:
        """The sequences of each text in the order of texts, and how many texts were cut."""
        found: list[TokenSequence] = []
        cut = 0
        for row, encoding in enumerate(self._encode(texts, prefix)):
            ids = np.array(encoding.ids[1:-1], np.int32)
            leading = _prefix_tokens(encoding, prefix)
            windows = list(self._windows(ids[leading:], self._room_after(leading)))
            cut += sum(map(len, windows)) < len(ids) - leading
            found.extend(self._sequence(ids[:leading], window, row) for window in windows)
        return found, cut

    def spans(self, text: str, prefix: str) -> list[Span]:
        """The tokens of a text in the order of its multi-vectors, the ending token of each sequence among them."""
        (encoding,) = self._encode([text], prefix)
        leading = _prefix_tokens(encoding, prefix)
        tokens = list(zip(encoding.ids, encoding.offsets, strict=True))[1 + leading : -1]
        spans = [Span(id, max(0, start - len(prefix)), max(0, stop - len(prefix))) for id, (start, stop) in tokens]
        found: list[Span] = []
        for window in self._windows(np.arange(len(spans), dtype=np.int32), self._room_after(leading)):
            found.extend(spans[i] for i in window)
            found.append(Span(self.special.eos, len(text), len(text)))
        return found

    def count(self, texts: Sequence[str], prefix: str) -> list[int]:
        """How many tokens each text has whole, prefix and special tokens among them."""
        return [len(encoding.ids) for encoding in self._encode(texts, prefix)]

    def _encode(self, texts: Sequence[str], prefix: str) -> list[Encoding]:
        # Whitespace alone is the empty text: some tokenizers would make a token of it, which means nothing.
        return self.tokenizer.encode_batch([prefix + text if text.strip() else prefix for text in texts])

    def _room_after(self, prefix: int) -> int:
        room = self.room - prefix
        if room <= (self.window_overlap or 0):
            raise ValueError(
                f"the prefix takes {prefix} of the {self.room} tokens there are, which leaves no room for the text; "
                "shorten the prefix, lower window_overlap or raise max_length"
            )
        return room

    def _windows(self, ids: Ids, room: int) -> Iterator[Ids]:
        if self.window_overlap is None:
            yield ids[:room]
            return
        step = room - self.window_overlap
        for start in range(0, max(1, len(ids) - self.window_overlap), step):
            yield ids[start : start + room]

    def _sequence(self, prefix: Ids, window: Ids, row: int) -> TokenSequence:
        content = np.concatenate([prefix, window])
        every = self.cls_every or max(1, len(content))
        starts = np.arange(0, max(1, len(content)), every)
        framed = np.append(np.insert(content, starts, self.special.cls), self.special.eos).astype(np.int32)
        return TokenSequence(framed, row, len(prefix), starts + np.arange(len(starts)))


def _prefix_tokens(encoding: Encoding, prefix: str) -> int:
    """How many tokens after the first hold the characters of the prefix."""
    written = prefix.rstrip()
    last = encoding.char_to_token(len(written) - 1) if written else None
    return last or 0
