"""Batch sampling from several sources, a pure function of seed and step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from m3_integrations.training.data.batch import Batch, sample_rows
from m3_integrations.training.data.bucketing import BatchLimits, ExampleLengths, TokenCount, bucket, measure
from m3_integrations.training.data.examples import Example

_BLOCK = 4096  # steps per draw of sources
_SOURCES, _EPOCHS, _ROWS = range(3)  # random streams


@dataclass(frozen=True, slots=True)
class Sampling:
    """Options of batch sampling.

    Attributes:
        tokens: Maximum tokens of a batch over all workers, padding included; a single longer example forms its own
            batch.
        rows: Maximum examples of a batch; None for no bound.
        negatives: Maximum hard negatives per query.
        longest_query: Maximum tokens read of a query; None for the model's limit.
        longest_passage: Maximum tokens read of a passage; None for the model's limit.
        alpha: Exponent of a source's size in its probability, n ** alpha (GTE, arXiv 2308.03281).
        shuffle: Share of long passages with shuffled segments (M3, arXiv 2402.03216, section 3.3).
        seed: Seed; with the step number it determines every draw.

    Raises:
        ValueError: If a value is out of range.
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
            raise ValueError(f"negatives and seed must be at least 0, got {self.negatives} and {self.seed}")
        if not 0 <= self.shuffle <= 1:
            raise ValueError(f"shuffle must be from 0 to 1, got {self.shuffle}")
        if not np.isfinite(self.alpha):
            raise ValueError(f"alpha must be finite, got {self.alpha}; 0 draws sources uniformly, 1 by size")

    def max_lengths(self, limit: int) -> tuple[int, int]:
        """Maximum tokens read of a query and of a passage by a model limited to `limit` tokens.

        Args:
            limit: Maximum tokens of the model.

        Returns:
            Tokens of a query, and of a passage.
        """
        return min(self.longest_query or limit, limit), min(self.longest_passage or limit, limit)

    @property
    def limits(self) -> BatchLimits:
        """Bounds on a batch."""
        return BatchLimits(self.tokens, self.rows)


def source_probabilities(sizes: Sequence[int], alpha: float = 0.5) -> npt.NDArray[np.float64]:
    """Compute source probabilities n_i ** alpha / Σ n_j ** alpha (GTE, arXiv 2308.03281).

    Args:
        sizes: Examples per source.
        alpha: Exponent; default 0.5.

    Returns:
        Probabilities, shape (sources,).
    """
    # Divide by the largest size first: powers of the sizes can overflow.
    powers = (np.asarray(sizes, np.float64) / max(sizes)) ** alpha
    shares: npt.NDArray[np.float64] = powers / powers.sum()
    return shares


@dataclass(slots=True)
class _Source:
    """One source and the batch counts of its epochs so far."""

    index: int
    name: str
    examples: Sequence[Example]
    lengths: ExampleLengths
    epoch_ends: list[int] = field(default_factory=list)  # cumulative batches after each epoch
    last_epoch: tuple[int, list[list[int]]] = (-1, [])  # epoch number and its batches


class Sampler:
    """Batches of a training run by step number, in any order of access.

    Every example of a source occurs once per epoch of the source. No two examples of a batch share a query or a
    positive, and no negative is a query or positive of another row.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Example]], token_count: TokenCount, sampling: Sampling | None = None
    ) -> None:
        """Create a sampler.

        Args:
            sources: Examples by name of their source.
            token_count: Tokens of each text, such as `M3Encoder.token_count`.
            sampling: Options; None for the defaults.

        Raises:
            ValueError: If there is no source, or a source is empty.
        """
        if not sources or not all(len(examples) for examples in sources.values()):
            empty = [name for name, examples in sources.items() if not len(examples)]
            raise ValueError(f"sources without examples: {empty}" if empty else "no source given")
        self.sampling = sampling or Sampling()
        self._sources = [
            _Source(index, name, examples, self._measure(examples, token_count))
            for index, (name, examples) in enumerate(sources.items())
        ]
        self._probabilities = source_probabilities([len(each) for each in sources.values()], self.sampling.alpha)
        self._counts_before = [np.zeros(len(self._sources), np.int64)]  # per block of steps: earlier batches by source

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each source, by name."""
        return {source.name: float(p) for source, p in zip(self._sources, self._probabilities, strict=True)}

    def batch(self, step: int) -> Batch:
        """Draw the batch of one step.

        The first call for a late step buckets all earlier epochs once, without reading their texts.

        Args:
            step: Step number, from 0.

        Returns:
            The batch; the same for every call.

        Raises:
            ValueError: If step is negative.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        source, nth = self._source_at(step)
        rng = self._rng(_ROWS, step)
        examples = [source.examples[i] for i in self._rows(source, nth)]
        return Batch(
            step, source.name, tuple(sample_rows(examples, self.sampling.negatives, self.sampling.shuffle, rng))
        )

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield the batches of steps start to stop - 1; without end if stop is None."""
        return map(self.batch, count(start) if stop is None else range(start, stop))

    def steps(self, epochs: int = 1) -> int:
        """Count the batches in `epochs` epochs of every source.

        With a single source, that many steps read every example `epochs` times. With several, sources are drawn at
        random, so that counts per example vary.
        """
        for source in self._sources:
            while len(source.epoch_ends) < epochs:
                self._epoch(source, len(source.epoch_ends))
        return sum(source.epoch_ends[epochs - 1] for source in self._sources) if epochs > 0 else 0

    def _measure(self, examples: Sequence[Example], token_count: TokenCount) -> ExampleLengths:
        options = self.sampling
        return measure(examples, token_count, options.negatives, options.longest_query, options.longest_passage)

    def _source_at(self, step: int) -> tuple[_Source, int]:
        """The source of a step, and the number of its earlier batches."""
        block, offset = divmod(step, _BLOCK)
        while len(self._counts_before) <= block:
            drawn = np.bincount(self._draw_sources(len(self._counts_before) - 1), minlength=len(self._sources))
            self._counts_before.append(self._counts_before[-1] + drawn)
        sources = self._draw_sources(block)
        source = sources[offset]
        return self._sources[source], int(self._counts_before[block][source] + (sources[:offset] == source).sum())

    def _draw_sources(self, block: int) -> npt.NDArray[np.int64]:
        return self._rng(_SOURCES, block).choice(len(self._sources), _BLOCK, p=self._probabilities)

    def _rows(self, source: _Source, nth: int) -> list[int]:
        """Example numbers of the nth batch of a source."""
        while not source.epoch_ends or source.epoch_ends[-1] <= nth:
            self._epoch(source, len(source.epoch_ends))
        epoch = bisect_right(source.epoch_ends, nth)
        return self._epoch(source, epoch)[nth - source.epoch_ends[epoch]]  # negative: from the end of the epoch

    def _epoch(self, source: _Source, epoch: int) -> list[list[int]]:
        """The batches of one epoch; only the latest is cached."""
        if source.last_epoch[0] != epoch:
            rng = self._rng(_EPOCHS, source.index, epoch)
            source.last_epoch = epoch, bucket(source.lengths, self.sampling.limits, rng)
        if len(source.epoch_ends) == epoch:
            source.epoch_ends.append((source.epoch_ends or [0])[-1] + len(source.last_epoch[1]))
        return source.last_epoch[1]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.sampling.seed, *stream))
