"""A nudge report as one self-contained HTML page with charts; everything shown is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.files import replace_text
from m3_integrations.core.titles import body_of, first_words, title_of
from m3_integrations.core.types import Passage
from m3_integrations.index.base import Index
from m3_integrations.nudging.judged import Ints
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.report.charts import BINS, Chart, curves_chart, gains_chart, lengths_chart
from m3_integrations.nudging.report.figures import NudgeFigures
from m3_integrations.nudging.report.values import Change, Move, Outcome

CHANGES_SHOWN = 5  # questions that gained, and as many that lost
PASSAGES_SHOWN = 3  # best passages of each of these, before and after
EXCERPT = 180  # characters of a passage
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
NAMES = {
    "multi_vector": "late interaction",
    "all": "all three modes",
    "test": "new questions",
    "validation": "validation questions",
    "held-out topics": "new topics",
}


class ModeSection(NamedTuple):
    """One mode of a report: its move, None if it did not move, and its charts."""

    mode: Mode
    move: Move | None
    curves: Chart
    lengths: Chart | None


class OutcomeRow(NamedTuple):
    """Mean metric of a set of questions before and after, with the 95 % interval of the gain (low, high)."""

    name: str
    questions: int
    before: float
    after: float
    low: float
    high: float


class RankedPassage(NamedTuple):
    """One of the best passages for a question; `passage` is None if the index does not hold it."""

    id: str
    passage: Passage | None
    answers: bool

    @property
    def title(self) -> str:
        return self.id if self.passage is None else title_of(self.passage)

    @property
    def text(self) -> str:
        return "" if self.passage is None else body_of(self.passage)

    @property
    def language(self) -> str | None:
        return None if self.passage is None else language_of(self.passage)


class QuestionChange(NamedTuple):
    """A question that gained or lost, with its best passages before and after.

    `teacher` is a training question of the passage now first, if that passage is new there and answers one.
    """

    change: Change
    before: Sequence[RankedPassage]
    after: Sequence[RankedPassage]
    teacher: str | None


@dataclass(frozen=True)
class ReportPage:
    """The content of a report page; `passages` are those shown, by id."""

    report: NudgeFigures
    passages: Mapping[str, Passage]

    @classmethod
    def of(cls, report: NudgeFigures, index: Index | None) -> ReportPage:
        """Build the content of a page; without an index, passages are shown by id alone."""
        outcome = report.unseen
        changes = [] if outcome is None else [*outcome.won[:CHANGES_SHOWN], *outcome.lost[:CHANGES_SHOWN]]
        ids = {id for change in changes for id in (*_shown(change.best_before), *_shown(change.best_after))}
        known = [] if index is None else index.passages(sorted(index.content_hashes(ids)))
        return cls(report, {passage.id: passage for passage in known})

    @property
    def modes(self) -> list[ModeSection]:
        return [self._section(mode) for mode in MODES if mode in self.report.curves]

    def _section(self, mode: Mode) -> ModeSection:
        move = self.report.moves.get(mode)
        curves = curves_chart(mode, self.report.metric_curves(mode), move)
        return ModeSection(
            mode, move, curves, lengths_chart(mode, move) if move and _has_varied_lengths(move) else None
        )

    @property
    def rows(self) -> list[OutcomeRow]:
        return outcome_rows(self.report)

    @property
    def gains(self) -> Chart | None:
        outcome = self.report.unseen
        return gains_chart(outcome) if outcome is not None and (outcome.won or outcome.lost) else None

    @property
    def won(self) -> list[QuestionChange]:
        return self._changes(self.report.unseen.won) if self.report.unseen else []

    @property
    def lost(self) -> list[QuestionChange]:
        return self._changes(self.report.unseen.lost) if self.report.unseen else []

    def _changes(self, changes: Sequence[Change]) -> list[QuestionChange]:
        return [
            QuestionChange(each, self._ranked(each, each.best_before), self._ranked(each, each.best_after), teacher)
            for each in changes[:CHANGES_SHOWN]
            for teacher in [self._teacher(each)]
        ]

    def _ranked(self, change: Change, ids: Sequence[str]) -> list[RankedPassage]:
        return [RankedPassage(id, self.passages.get(id), change.query.relevant.get(id, 0) > 0) for id in _shown(ids)]

    def _teacher(self, change: Change) -> str | None:
        if self.report.unseen is None or not change.best_after or change.best_after[:1] == change.best_before[:1]:
            return None
        return self.report.unseen.taught.get(change.best_after[0])

    @property
    def clusters(self) -> list[OutcomeRow]:
        """Held-out topics, each named by one of its questions, largest gain first."""
        topics = self.report.held_out_topics
        if topics is None or topics.clusters is None:
            return []
        rows = [_cluster(topics, np.flatnonzero(topics.clusters == each)) for each in np.unique(topics.clusters)]
        return sorted(rows, key=lambda row: row.before - row.after)


def _has_varied_lengths(move: Move) -> bool:
    """Return whether a histogram would show more than a sentence does: not nearly all in one bar."""
    low, high = np.percentile(move.lengths, [10, 90])
    return bool(high - low > move.lengths.max() / BINS)


def _shown(ids: Sequence[str]) -> Sequence[str]:
    return ids[:PASSAGES_SHOWN]


def outcome_rows(report: NudgeFigures) -> list[OutcomeRow]:
    """Return a row for each set of questions that the report has."""
    outcomes = {"validation": report.validation, "test": report.test, "held-out topics": report.held_out_topics}
    return [
        OutcomeRow(name, len(each.queries), each.before, each.after, *each.interval)
        for name, each in outcomes.items()
        if each is not None
    ]


def _cluster(topics: Outcome, rows: Ints) -> OutcomeRow:
    part = Outcome(
        [topics.queries[row] for row in rows.tolist()],
        topics.before_each[rows],
        topics.after_each[rows],
        [topics.best_before[row] for row in rows.tolist()],
        [topics.best_after[row] for row in rows.tolist()],
    )
    return OutcomeRow(part.queries[0].text, len(rows), part.before, part.after, *part.interval)


def describe_method(move: Move) -> str:
    """Describe the method of a move."""
    return {"nudge-n": "rotated, lengths kept (NUDGE-N)", "nudge-m": "translated, lengths change (NUDGE-M)"}[
        move.method
    ]


def describe_propagation(propagation: Propagation | None) -> str:
    """Describe a propagation of pulls."""
    if propagation is None:
        return "none"
    return f"temperature {propagation.temperature:g}, self weight {propagation.self_weight:g}"


def describe_weights(weights: Mapping[Mode, float] | None) -> str:
    """Describe mode weights; None are the encoder's own."""
    return "the encoder's own" if weights is None else ", ".join(f"{mode} {w:g}" for mode, w in weights.items())


def describe_lengths(move: Move) -> str:
    """Describe how far passages moved."""
    low, middle, high = (f"{value:.2g}" for value in np.percentile(move.lengths, [0, 50, 100]))
    distance = f"by {high}" if low == high else f"by {middle} (median; {low} to {high})"
    return f"{move.moved} passages moved {distance}"


def describe_rank(rank: int | None) -> str:
    """Describe the rank of an answer."""
    return "not in the first 10" if rank is None else f"rank {rank}"


def name_of(key: str) -> str:
    """Return the name of a mode, a plan or a set of questions for people."""
    return NAMES.get(key, key)


def percent(fraction: float) -> str:
    """Return a fraction in percent."""
    return f"{fraction:.0%}"


def printable(text: str) -> str:
    """Replace characters that an HTML page cannot hold."""
    return _UNPRINTABLE.sub("\ufffd", text)


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line."""
    return first_words(text, EXCERPT)


def language_of(passage: Passage) -> str | None:
    """Return the language tag that the metadata of a passage states, if it is one."""
    stated = passage.metadata.get("language") or passage.metadata.get("lang")
    return stated if isinstance(stated, str) and _LANGUAGE.fullmatch(stated) else None


_FILTERS = (
    describe_method,
    describe_propagation,
    describe_weights,
    describe_lengths,
    describe_rank,
    name_of,
    percent,
    printable,
    excerpt,
)


def environment() -> Environment:
    """Return the templates of this package with the filters that they use."""
    templates = Environment(
        loader=PackageLoader("m3_integrations", "templates"), autoescape=True, undefined=StrictUndefined
    )
    templates.filters |= {each.__name__: each for each in _FILTERS}
    return templates


def page(report: NudgeFigures, index: Index | None = None) -> str:
    """Render a report as HTML; the texts of passages come from the index."""
    return environment().get_template("nudge.html").render(page=ReportPage.of(report, index))


def write_page(path: Path, html: str) -> None:
    """Write a page atomically, creating missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, html)
