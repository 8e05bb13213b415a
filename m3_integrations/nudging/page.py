"""A report as one HTML page with pictures: self-contained, and everything that it shows is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.index.base import Index
from m3_integrations.nudging.judged import Ints
from m3_integrations.nudging.pictures import Picture, curves_picture, gains_picture, lengths_picture
from m3_integrations.nudging.report import Change, Move, NudgeReport, Outcome
from m3_integrations.nudging.spread import Spread

TOLD = 6  # questions that won, and as many that lost, with their passages
EXCERPT = 180  # characters of a passage
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class ModePart(NamedTuple):
    """One mode of a report: how it moved, None where it did not, and its pictures."""

    mode: Mode
    move: Move | None
    curves: Picture
    lengths: Picture | None


class Row(NamedTuple):
    """Questions that are told of together. low, high: of the 95 % interval of what they gain."""

    name: str
    questions: int
    before: float
    after: float
    low: float
    high: float


class Best(NamedTuple):
    """One of the best passages for a question; text: None where the index does not hold it."""

    id: str
    text: str | None
    answers: bool


class Told(NamedTuple):
    """A question that won or lost, and its best passages before and after."""

    change: Change
    before: Sequence[Best]
    after: Sequence[Best]


@dataclass(frozen=True)
class Story:
    """What a page tells of a report. texts: by id, of the passages that it shows."""

    report: NudgeReport
    texts: Mapping[str, str]

    @classmethod
    def of(cls, report: NudgeReport, index: Index | None) -> Story:
        """index: where the passages' texts are; None: their ids are shown alone."""
        changes = [] if (outcome := judged(report)) is None else [*outcome.won[:TOLD], *outcome.lost[:TOLD]]
        ids = {id for change in changes for id in (*change.best_before, *change.best_after)}
        known = [] if index is None else index.passages(sorted(index.content_hashes(ids)))
        return cls(report, {passage.id: passage.text for passage in known})

    @property
    def modes(self) -> list[ModePart]:
        return [self._part(mode) for mode in MODES if mode in self.report.curves]

    def _part(self, mode: Mode) -> ModePart:
        move = self.report.moves.get(mode)
        curves = curves_picture(mode, self.report.metric_curves(mode), move)
        return ModePart(mode, move, curves, lengths_picture(mode, move) if move else None)

    @property
    def rows(self) -> list[Row]:
        return outcome_rows(self.report)

    @property
    def judged(self) -> Outcome | None:
        return judged(self.report)

    @property
    def gains(self) -> Picture | None:
        outcome = self.judged
        return gains_picture(outcome) if outcome is not None and (outcome.won or outcome.lost) else None

    @property
    def won(self) -> list[Told]:
        return self._told(self.judged.won) if self.judged else []

    @property
    def lost(self) -> list[Told]:
        return self._told(self.judged.lost) if self.judged else []

    def _told(self, changes: Sequence[Change]) -> list[Told]:
        return [
            Told(each, self._best(each, each.best_before), self._best(each, each.best_after)) for each in changes[:TOLD]
        ]

    def _best(self, change: Change, ids: Iterable[str]) -> list[Best]:
        return [Best(id, self.texts.get(id), change.query.relevant.get(id, 0) > 0) for id in ids]

    @property
    def clusters(self) -> list[Row]:
        """The shifted questions, cluster by cluster, each under one of its questions; what gained most first."""
        shifted = self.report.shifted
        if shifted is None or shifted.clusters is None:
            return []
        rows = [_cluster(shifted, np.flatnonzero(shifted.clusters == each)) for each in np.unique(shifted.clusters)]
        return sorted(rows, key=lambda row: row.before - row.after)


def judged(report: NudgeReport) -> Outcome | None:
    """The questions that a reader trusts most: those of the test, or else of the validation."""
    return report.test or report.validation


def outcome_rows(report: NudgeReport) -> list[Row]:
    """What became of the validation, the test and the shifted questions, of those that there are."""
    named = {"validation": report.validation, "test": report.test, "unlike training": report.shifted}
    return [
        Row(name, len(each.queries), each.before, each.after, *each.interval)
        for name, each in named.items()
        if each is not None
    ]


def _cluster(shifted: Outcome, rows: Ints) -> Row:
    part = Outcome(
        [shifted.queries[row] for row in rows.tolist()],
        shifted.before_each[rows],
        shifted.after_each[rows],
        [shifted.best_before[row] for row in rows.tolist()],
        [shifted.best_after[row] for row in rows.tolist()],
    )
    return Row(part.queries[0].text, len(rows), part.before, part.after, *part.interval)


def how(move: Move) -> str:
    """A method in words."""
    return {"n": "turned, lengths kept (NUDGE-N)", "m": "pushed, lengths change (NUDGE-M)"}[move.method]


def said_spread(spread: Spread | None) -> str:
    return "none" if spread is None else f"temperature {spread.temperature:g}, own {spread.own:g}"


def said_weights(weights: Mapping[Mode, float] | None) -> str:
    return "the encoder's own" if weights is None else ", ".join(f"{mode} {w:g}" for mode, w in weights.items())


def printable(text: str) -> str:
    """A text without characters that no page can hold."""
    return _UNPRINTABLE.sub("\ufffd", text)


def excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT].rstrip()}…"


def environment() -> Environment:
    """The templates of this package, with the filters that the parts of a nudge's page need."""
    found = Environment(loader=PackageLoader("m3_integrations", "templates"), autoescape=True)
    for each in (how, said_spread, said_weights, printable, excerpt):
        found.filters[each.__name__] = each
    return found


def page(report: NudgeReport, index: Index | None = None) -> str:
    """The report as HTML; the texts of passages come from the index, and without one there are ids alone."""
    return environment().get_template("nudge.html").render(story=Story.of(report, index))


def write_page(path: Path, html: str) -> None:
    """Write a page, and the folder that it lies in; an old one stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f"{path.name}.part")
    half_written.write_text(html, encoding="utf-8")
    half_written.replace(path)
