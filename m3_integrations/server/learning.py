"""Learning from the feedback of an index in the background, one run at a time."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from m3_integrations.core.errors import M3Error
from m3_integrations.encoders.base import Encoder
from m3_integrations.index import Index
from m3_integrations.nudging.feedback import Feedback, Learned
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.nudging.progress import Progress
from m3_integrations.nudging.report.html import page
from m3_integrations.nudging.report.report import NudgeReport

State = Literal["idle", "running", "done", "failed"]
_STOP_WAIT = 10.0  # seconds that a shutdown waits for a run to notice it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningStatus:
    """State of the last run.

    Attributes:
        state: "idle" before the first run.
        progress: 0 to 1.
        seconds_left: Estimated seconds until the end; None before there is an estimate.
        message: What is being done or was done, in plain sentences.
        report: Figures of the nudge; None if there is none.
        not_useful: Passages judged not useful among the first results, before and after.
        html: The report as a page.
    """

    state: State = "idle"
    progress: float = 0.0
    seconds_left: float | None = None
    message: str = "Nothing was learned yet."
    report: dict[str, Any] | None = None
    not_useful: dict[str, int] | None = None
    html: str | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the status without the page."""
        return {**asdict(replace(self, html=None)), "html": self.html is not None}


class _Stopped(Exception):
    """The server shuts down."""


class Learner:
    """Learns from the feedback of one index on a thread.

    Args:
        encoder: The encoder that filled the index.
        index: The index.
        feedback: Its feedback.
    """

    def __init__(self, encoder: Encoder, index: Index, feedback: Feedback) -> None:
        self._encoder, self._index, self._feedback = encoder, index, feedback
        self._lock = threading.Lock()
        self._status = LearningStatus()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> LearningStatus:
        """State of the last run."""
        return self._status

    def start(self) -> bool:
        """Start a run; return False if one is running."""
        with self._lock:
            if self._status.state == "running":
                return False
            self._status = LearningStatus("running", message="Learning from the feedback.")
            # A daemon: if a shutdown does not wait for it, the index holds either the old vectors or all new ones.
            self._thread = threading.Thread(target=self._run, name="m3-learning", daemon=True)
            self._thread.start()
            return True

    def undo(self) -> bool:
        """Restore the original vectors; return False if a run is going on."""
        with self._lock:
            if self._status.state == "running":
                return False
            with closing(Nudger(self._encoder, self._index)) as nudger:
                nudger.revert()
            self._status = LearningStatus(message="The original vectors are restored.")
            return True

    def stop(self) -> None:
        """Cancel a run, which then changes nothing, and wait for it for some seconds."""
        self._is_stopped = True
        if self._thread is not None:
            self._thread.join(_STOP_WAIT)

    def _run(self) -> None:
        try:
            learned = self._feedback.learn(on_progress=self._report_progress)
            self._status = self._finished(learned)
        except _Stopped:
            self._status = LearningStatus(message="Learning was stopped.")
        except M3Error as error:
            self._status = LearningStatus("failed", message=f"Learning failed: {error}")
        except Exception:
            _log.exception("error while learning")
            self._status = LearningStatus("failed", message="Learning failed; the log of the server has the details.")

    def _report_progress(self, progress: Progress) -> None:
        if self._is_stopped:
            raise _Stopped
        self._status = replace(self._status, progress=progress.done, seconds_left=progress.seconds_left)

    def _finished(self, learned: Learned) -> LearningStatus:
        report = None if learned.report is None else _report_to_json(learned.report)
        html = None if learned.report is None else page(learned.report, self._index)
        not_useful = None if learned.not_useful is None else learned.not_useful._asdict()
        return LearningStatus("done", 1.0, 0.0, learned.message, report, not_useful, html)


def _report_to_json(report: NudgeReport) -> dict[str, Any]:
    unseen = report.unseen
    before, after = (report.before, report.after) if unseen is None else (unseen.before, unseen.after)
    return {
        "version": report.version,
        "summary": report.summary,
        "headline": str(report.headline),
        "metric": report.metric,
        "before": before,
        "after": after,
        "questions": report.coverage.queries,
        "new_questions": 0 if unseen is None else len(unseen.queries),
        "moved": {mode: move.moved for mode, move in report.moves.items()},
        "passages": report.coverage.passages,
        "warnings": list(report.warnings),
        "seconds": report.seconds,
    }
