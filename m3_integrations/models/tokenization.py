"""Token sequences of texts, and the character spans of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from m3_integrations.core.forking import delay_forks
from m3_integrations.core.types import is_blank
from m3_integrations.models.conventions import SpecialTokens
from m3_integrations.models.heads.late_interaction import VectorTokens

Ids = npt.NDArray[np.int32]
_SPACES = " \u2581\u0120"  # as SentencePiece and byte-level tokenizers write a space


class TokenSequence(NamedTuple):
    """Input of one forward pass: a text, or a window of one.

    Attributes:
        ids: Token ids from cls to eos.
        text: Row of its text.
        prefix: Number of prefix tokens after the first cls.
        cls: Positions of cls tokens.
        vectors: Positions of the tokens that have vectors; None for those of `content_positions`.
        unattended: Tokens at the end that the others do not attend to.
    """

    ids: Ids
    text: int
    prefix: int
    cls: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.int64] | None = None
    unattended: int = 0

    @property
    def vector_count(self) -> int:
        """Number of tokens that have vectors."""
        return len(self.ids) - self.prefix - len(self.cls) if self.vectors is None else len(self.vectors)

    def content_positions(self) -> npt.NDArray[np.int64]:
        """Return the positions of the text's own tokens and the final eos: without cls and prefix."""
        return np.delete(np.arange(len(self.ids)), self.cls)[self.prefix :]


class Span(NamedTuple):
    """A token and its characters, `text[start:stop]`; empty for the final token."""

    id: int
    start: int
    stop: int


@dataclass(frozen=True)
class SequenceTokenizer:
    """Splits texts into sequences of at most `max_length` tokens.

    Args:
        tokenizer: Rust tokenizer, without padding or truncation.
        special: Its special tokens.
        max_length: Longest sequence, special tokens included.
        window_overlap: Tokens shared by consecutive windows of a longer text; None truncates it.
        cls_every: Tokens between cls tokens (MCLS, arXiv 2402.03216, section 3.4); None for one cls.
        vector_tokens: Tokens that have vectors, and that expand a text; None for the rule of BGE-M3.

    Raises:
        ValueError: If a value is out of range.
    """

    tokenizer: Tokenizer
    special: SpecialTokens
    max_length: int
    window_overlap: int | None = None
    cls_every: int | None = None
    vector_tokens: VectorTokens | None = None

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if self.cls_every is not None and self.cls_every < 1:
            raise ValueError(f"cls_every must be at least 1 token, got {self.cls_every}")
        if self.window_overlap is not None and not 0 <= self.window_overlap <= self.max_content_tokens // 2:
            raise ValueError(
                f"window_overlap must be from 0 to {self.max_content_tokens // 2} tokens, got {self.window_overlap}"
            )

    @property
    def max_content_tokens(self) -> int:
        """Most tokens of text in a sequence, prefix included."""
        most = self.max_length - 2
        return most if self.cls_every is None else most - most // (self.cls_every + 1)

    def sequences(self, texts: Sequence[str], prefix: str) -> tuple[list[TokenSequence], int]:
        """Split texts into sequences.

        Args:
            texts: Texts.
            prefix: Text put before each.

        Returns:
            The sequences of each text in order, and the number of truncated texts.

        Raises:
            ValueError: If the prefix leaves no room for text.
        """
        encodings = self._encode(texts, prefix)
        return self._sequences_of(encodings, [prefix_tokens(each, prefix) for each in encodings])

    def _sequences_of(self, encodings: Sequence[Encoding], prefixes: Sequence[int]) -> tuple[list[TokenSequence], int]:
        found: list[TokenSequence] = []
        cut = 0
        for row, (encoding, leading) in enumerate(zip(encodings, prefixes, strict=True)):
            ids = np.array(encoding.ids[1:-1], np.int32)
            windows = list(self._windows(ids[leading:], self._tokens_after(leading)))
            cut += sum(map(len, windows)) < len(ids) - leading
            found.extend(self._sequence(ids[:leading], window, row) for window in windows)
        return found, cut

    def spans(self, text: str, prefix: str) -> list[Span]:
        """Return the tokens of a text in the order of its multi-vectors.

        The final token of each sequence is included.
        """
        (encoding,) = self._encode([text], prefix)
        leading = prefix_tokens(encoding, prefix)
        tokens = list(zip(encoding.ids, encoding.offsets, strict=True))[1 + leading : -1]
        if self.vector_tokens is not None:
            return self._spans_of_vectors(encoding, len(prefix), leading, text)
        spans = [Span(id, max(0, start - len(prefix)), max(0, stop - len(prefix))) for id, (start, stop) in tokens]
        found: list[Span] = []
        for window in self._windows(np.arange(len(spans), dtype=np.int32), self._tokens_after(leading)):
            found.extend(spans[i] for i in window)
            found.append(Span(self.special.eos, len(text), len(text)))
        return found

    def _spans_of_vectors(self, encoding: Encoding, characters: int, leading: int, text: str) -> list[Span]:
        """Return the tokens that have vectors by `vector_tokens`; cls and prefix tokens are empty."""
        (sequences, _), end = self._sequences_of([encoding], [leading]), len(text)
        places = [(max(0, start - characters), max(0, stop - characters)) for start, stop in encoding.offsets]
        found, first = [], 1 + leading
        for each in sequences:
            content = len(each.ids) - each.unattended - 2 - leading
            content = min(content, len(places) - 1 - first)
            inner = places[first : first + content]
            spans = [(0, 0)] * (1 + leading) + inner
            spans += [(end, end)] * (len(each.ids) - len(spans))
            assert each.vectors is not None  # of vector_tokens
            found += [Span(int(each.ids[i]), *spans[i]) for i in each.vectors.tolist()]
            first += content - (self.window_overlap or 0)
        return found

    def count(self, texts: Sequence[str], prefix: str) -> list[int]:
        """Return the number of tokens of each complete text, with prefix and special tokens."""
        return [len(encoding.ids) for encoding in self._encode(texts, prefix)]

    def has_content(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text has a token other than special ones and spaces.

        A letter or a digit always has one, so that only texts without them are tokenized.
        """
        return [any(map(str.isalnum, text)) or (not is_blank(text) and self._has_token(text)) for text in texts]

    def _has_token(self, text: str) -> bool:
        with delay_forks():
            tokens = self.tokenizer.encode(text, add_special_tokens=False).tokens
        return any(token.strip(_SPACES) for token in tokens)

    def _encode(self, texts: Sequence[str], prefix: str) -> list[Encoding]:
        # Whitespace counts as the empty text; some tokenizers would return a token for it.
        with delay_forks():
            return self.tokenizer.encode_batch([prefix + text if text.strip() else prefix for text in texts])

    def _tokens_after(self, prefix: int) -> int:
        available = self.max_content_tokens - prefix
        if available <= (self.window_overlap or 0):
            raise ValueError(
                f"the prefix takes {prefix} of {self.max_content_tokens} tokens and leaves too few for the text; "
                "shorten the prefix, lower window_overlap or raise max_length"
            )
        return available

    def _windows(self, ids: Ids, size: int) -> Iterator[Ids]:
        if self.window_overlap is None:
            yield ids[:size]
            return
        step = size - self.window_overlap
        for start in range(0, max(1, len(ids) - self.window_overlap), step):
            yield ids[start : start + size]

    def _sequence(self, prefix: Ids, window: Ids, row: int) -> TokenSequence:
        content = np.concatenate([prefix, window])
        every = self.cls_every or max(1, len(content))
        starts = np.arange(0, max(1, len(content)), every)
        framed = np.append(np.insert(content, starts, self.special.cls), self.special.eos).astype(np.int32)
        cls = starts + np.arange(len(starts))
        if self.vector_tokens is None:
            return TokenSequence(framed, row, len(prefix), cls)
        ids, vectors, unattended = self.vector_tokens.expand(framed)
        return TokenSequence(ids, row, len(prefix), cls, vectors, unattended)


def prefix_tokens(encoding: Encoding, prefix: str) -> int:
    """Return the number of tokens after the first that hold the prefix."""
    written = prefix.rstrip()
    last = encoding.char_to_token(len(written) - 1) if written else None
    return last or 0
