"""Figures and warnings of a nudge, without their rendering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import Mode
from m3_integrations.core.types import SearchPlan
from m3_integrations.nudging.optimize.dense import Curve
from m3_integrations.nudging.report.values import FEW_POPULAR, Coverage, Evaluation, Move, Outcome, in_steps
from m3_integrations.nudging.selection.cross_validation import AGREEMENT, Evidence

CONCENTRATED = 0.5  # fraction of the questions that name a few popular passages, reported from there on
LOW_COVERAGE = 0.1  # fraction of the passages below which coverage is reported as low
CANDIDATE_LOSS = 0.01  # difference of the metric between short lists and the search that is reported


class Headline(NamedTuple):
    """A sentence and the number in it to emphasize."""

    start: str
    number: str
    end: str

    def __str__(self) -> str:
        return "".join(self)


@dataclass(frozen=True, eq=False, repr=False)
class NudgeFigures(FieldsDisplay):
    """The figures of one fit.

    Attributes:
        version: Number of the version in the ledger.
        metric: Name of the metric that was maximized.
        plan: Search plan that the nudge was evaluated with, with its weights.
        moves: Move of each mode; empty if nothing moved.
        before: Metric before the nudge on the validation questions, or on held-out folds of the training questions if
            there are none.
        after: The same after the nudge.
        gain: Cross-validated gain, on questions that the choice did not see.
        error: Standard error of `gain`.
        curves: Metric over gamma, by mode.
        coverage: Coverage of the index by the training questions.
        seconds: Duration of the fit.
        summary: What was done and whether to trust it, in two sentences.
        evidence: Evidence for the gain; None if it is unknown.
        evaluate: Computes `validation`, `test`, `held_out_topics` and `other_curves` at their first use.
    """

    version: int
    metric: str
    plan: SearchPlan
    moves: Mapping[Mode, Move]
    before: float
    after: float
    gain: float
    error: float
    curves: Mapping[Mode, Curve]
    coverage: Coverage
    seconds: float
    evaluate: Callable[[], Evaluation]
    summary: str = ""
    evidence: Evidence | None = None

    @cached_property
    def _evaluation(self) -> Evaluation:
        return self.evaluate()

    @property
    def moved(self) -> bool:
        """Whether any vector moved."""
        return bool(self.moves)

    @property
    def validation(self) -> Outcome | None:
        """Outcome of the validation questions, as the search of `plan` ranks passages."""
        return self._evaluation.validation

    @property
    def test(self) -> Outcome | None:
        """Outcome of the test questions, as the search of `plan` ranks passages."""
        return self._evaluation.test

    @property
    def held_out_topics(self) -> Outcome | None:
        """Outcome of training questions after a nudge by the other topics alone: the effect on new topics."""
        return self._evaluation.held_out_topics

    @property
    def unseen(self) -> Outcome | None:
        """Outcome of the test questions, or of the validation questions without a test."""
        return self.test or self.validation

    def metric_curves(self, mode: Mode) -> dict[str, Curve]:
        """Return metrics over gamma by name, beginning with the one that was maximized."""
        return {self.metric: self.curves[mode], **self._evaluation.other_curves.get(mode, {})}

    def added(self, mode: Mode) -> float:
        """Return the gain by the nudge of one mode, with everything else as chosen."""
        move, curve = self.moves.get(mode), self.curves[mode]
        if move is None:
            return 0.0
        position = int(np.searchsorted(curve.edges, move.gamma, "right" if in_steps(curve) else "left"))
        return float(curve.levels[position - 1 if in_steps(curve) else position] - curve.levels[0])

    @property
    def headline(self) -> Headline:
        """The result in one sentence around one number."""
        learned, unseen = f"After learning from {self.coverage.queries} questions, ", self.unseen
        if not self.moved:
            return Headline(
                "Nothing was moved: no gain from ", str(self.coverage.queries), " questions was significant."
            )
        if unseen is None:
            start = f"{learned}{self.metric} on held-out questions is "
            return Headline(start, f"{self.after:.3f}", f", and {self.before:.3f} before.")
        before, after = (f"{fraction:.0%}" for fraction in (unseen.first_before, unseen.first_after))
        rose = "up from" if unseen.first_after > unseen.first_before else "before"
        start = f"{learned}the right answer comes first for "
        return Headline(start, after, f" of {len(unseen.queries)} new questions, {rose} {before}.")

    @cached_property
    def warnings(self) -> list[str]:
        """Reasons to distrust the nudge, as sentences."""
        return [*self._coverage_warnings(), *self._label_warnings(), *self._gain_warnings()]

    def _label_warnings(self) -> list[str]:
        if self.evidence is None or self.evidence.agreement >= AGREEMENT:
            return []
        return [
            "the answers contradict the ranking before: it finds them no better than answers of other questions; check "
            "that questions and answers belong together"
        ]

    def _coverage_warnings(self) -> list[str]:
        warnings, coverage = [], self.coverage
        if coverage.share < LOW_COVERAGE:
            warnings.append(
                f"coverage is low: training questions name {coverage.answered} of {coverage.passages} passages; the "
                "others follow their neighbors at best. Add questions, for instance generated ones"
            )
        if coverage.concentration > CONCENTRATED and coverage.answered > FEW_POPULAR:
            warnings.append(
                f"{coverage.concentration:.0%} of the training questions name one of {FEW_POPULAR} passages; if these "
                "were clicked because they are popular, leave such clicks out"
            )
        if coverage.indiscriminate:
            warnings.append(
                f"{coverage.indiscriminate} passages are named by many questions that have nothing in common, so "
                "these answers were left out; clicks on what is popular or comes first are no answers"
            )
        if coverage.unknown:
            warnings.append(f"{coverage.unknown} answers name passages that are not in the index; they were ignored")
        if coverage.unanswered:
            warnings.append(f"{coverage.unanswered} training questions have no answer in the index; they were ignored")
        if coverage.repeated:
            warnings.append(
                f"{coverage.repeated} questions are in training and in validation or test, which inflates the "
                "figures; split with m3_integrations.data.split_by_text"
            )
        return warnings

    def _gain_warnings(self) -> list[str]:
        if not self.moves:
            return ["nothing was moved: no gain was significant on held-out questions"]
        warnings, unseen, topics = [], self.unseen, self.held_out_topics
        if unseen is not None and unseen.interval[0] <= 0 <= unseen.interval[1]:
            low, high = unseen.interval
            warnings.append(f"the gain is within noise: {unseen.gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")
        if self.validation is not None and self.after - self.validation.after > CANDIDATE_LOSS:
            warnings.append(
                f"the search misses candidates that the nudge ranks high: {self.metric} on validation is "
                f"{self.validation.after:.3f}, and {self.after:.3f} on short lists that hold them; give Nudger a plan "
                f"with more than {self.plan.candidates} candidates, and search with it"
            )
        if topics is not None and topics.interval[1] < 0:
            warnings.append(
                f"questions unlike the training questions lose: {topics.before:.3f} to {topics.after:.3f}; "
                "if you expect such questions, add some of them, or revert the nudge"
            )
        return warnings
