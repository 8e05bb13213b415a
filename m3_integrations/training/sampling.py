"""Which batch comes at which step: several sources, one of them a batch, the same for every worker and after a stop."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from m3_integrations.training.batch import Batch, draw_rows
from m3_integrations.training.data import Example
from m3_integrations.training.grouping import Limits, Measured, TokenCount, grouped, measure

_BLOCK = 4096  # steps whose sources are drawn together
_SOURCES, _EPOCHS, _ROWS = range(3)  # what a generator draws; each has its own stream


@dataclass(frozen=True, slots=True)
class Sampling:
    """How batches are drawn.

    tokens: a batch over all workers holds this many at most, padding included; a single longer example is a batch.
    rows: examples of a batch at most.
    negatives: hard negatives that a query brings at most.
    longest_query, longest_passage: tokens that are read of a text at most; None for all.
    alpha: a source of n examples is drawn with a probability proportional to n ** alpha (GTE, arXiv 2308.03281).
    shuffle: the share of long passages whose segments are shuffled (M3, arXiv 2402.03216).
    seed: all that is drawn follows from it and the number of the step.
    """

    tokens: int = 16384
    rows: int | None = None
    negatives: int = 7
    longest_query: int | None = None
    longest_passage: int | None = None
    alpha: float = 0.5
    shuffle: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "rows", "longest_query", "longest_passage"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.negatives < 0 or self.seed < 0:
            raise ValueError(f"negatives and seed are at least 0, got {self.negatives} and {self.seed}")
        if not 0 <= self.shuffle <= 1:
            raise ValueError(f"shuffle is a share from 0 to 1, got {self.shuffle}")
        if not np.isfinite(self.alpha):
            raise ValueError(f"alpha is a finite number; 0 draws all sources alike, 1 by size; got {self.alpha}")

    def longest(self, limit: int) -> tuple[int, int]:
        """The tokens that a model which reads `limit` of a text reads of a query, and of a passage."""
        return min(self.longest_query or limit, limit), min(self.longest_passage or limit, limit)

    @property
    def limits(self) -> Limits:
        """What bounds a batch."""
        return Limits(self.tokens, self.rows)


def source_shares(sizes: Sequence[int], alpha: float = 0.5) -> npt.NDArray[np.float64]:
    """(sources,) with what probability a batch is drawn from each: n_i ** alpha / Σ n_j ** alpha (arXiv 2308.03281)."""
    # Over the largest first: a power of the sizes themselves can overflow.
    powers = (np.asarray(sizes, np.float64) / max(sizes)) ** alpha
    shares: npt.NDArray[np.float64] = powers / powers.sum()
    return shares


@dataclass(slots=True)
class _Source:
    """One source: its examples, and how many batches its epochs had so far."""

    number: int
    name: str
    examples: Sequence[Example]
    measured: Measured
    ends: list[int] = field(default_factory=list)  # after each epoch, how many batches there were
    latest: tuple[int, list[list[int]]] = (-1, [])  # an epoch and its batches


class Sampler:
    """The batches of a training run by step: the same for a seed on every worker, in whatever order they are asked for.

    sources: the examples by name. token_count: the tokens of each text, such as `M3Encoder.token_count`.
    Within a source every example comes once before any comes again. No two examples of a batch have a query or a
    positive in common, and no negative is an answer to another row's query that the data knows of.
    Raises ValueError without sources, and for a source without examples.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Example]], token_count: TokenCount, sampling: Sampling | None = None
    ) -> None:
        if not sources or not all(len(examples) for examples in sources.values()):
            empty = [name for name, examples in sources.items() if not len(examples)]
            raise ValueError(
                f"every source needs examples; these have none: {empty}" if empty else "there is no source"
            )
        self.sampling = sampling or Sampling()
        self._sources = [
            _Source(number, name, examples, self._measured(examples, token_count))
            for number, (name, examples) in enumerate(sources.items())
        ]
        self._shares = source_shares([len(examples) for examples in sources.values()], self.sampling.alpha)
        self._before = [np.zeros(len(self._sources), np.int64)]  # batches of each source before each block of steps

    @property
    def shares(self) -> dict[str, float]:
        """The probability of each source to be a batch's."""
        return {source.name: float(share) for source, share in zip(self._sources, self._shares, strict=True)}

    def batch(self, step: int) -> Batch:
        """The batch of one step, counted from 0.

        Beginning at a late one costs the grouping of the epochs before it, once, and touches no texts.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        source, nth = self._turn(step)
        rng = self._rng(_ROWS, step)
        examples = [source.examples[i] for i in self._rows(source, nth)]
        return Batch(step, source.name, tuple(draw_rows(examples, self.sampling.negatives, self.sampling.shuffle, rng)))

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches from one step on, up to another or for ever."""
        step = start
        while stop is None or step < stop:
            yield self.batch(step)
            step += 1

    def steps(self, epochs: int = 1) -> int:
        """How many batches this many epochs of every source hold.

        That many steps see every example so often where there is one source; of several, some more and some less often.
        """
        for source in self._sources:
            while len(source.ends) < epochs:
                self._epoch(source, len(source.ends))
        return sum(source.ends[epochs - 1] for source in self._sources) if epochs > 0 else 0

    def _measured(self, examples: Sequence[Example], token_count: TokenCount) -> Measured:
        of = self.sampling
        return measure(examples, token_count, of.negatives, of.longest_query, of.longest_passage)

    def _turn(self, step: int) -> tuple[_Source, int]:
        """The source of a step, and how many steps before it had the same."""
        block, place = divmod(step, _BLOCK)
        while len(self._before) <= block:
            drawn = np.bincount(self._drawn_sources(len(self._before) - 1), minlength=len(self._sources))
            self._before.append(self._before[-1] + drawn)
        turns = self._drawn_sources(block)
        source = turns[place]
        return self._sources[source], int(self._before[block][source] + (turns[:place] == source).sum())

    def _drawn_sources(self, block: int) -> npt.NDArray[np.int64]:
        return self._rng(_SOURCES, block).choice(len(self._sources), _BLOCK, p=self._shares)

    def _rows(self, source: _Source, nth: int) -> list[int]:
        """The examples of the nth batch of a source."""
        while not source.ends or source.ends[-1] <= nth:
            self._epoch(source, len(source.ends))
        epoch = bisect_right(source.ends, nth)
        return self._epoch(source, epoch)[nth - source.ends[epoch]]  # counted back from the epoch's end

    def _epoch(self, source: _Source, epoch: int) -> list[list[int]]:
        """The batches of one epoch; only the epoch asked for last is kept."""
        if source.latest[0] != epoch:
            rng = self._rng(_EPOCHS, source.number, epoch)
            source.latest = epoch, grouped(source.measured, self.sampling.limits, rng)
        if len(source.ends) == epoch:
            source.ends.append((source.ends or [0])[-1] + len(source.latest[1]))
        return source.latest[1]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.sampling.seed, *stream))
