"""A nudge in two sentences: what was done, and whether to trust it."""

from __future__ import annotations

import math

from m3_integrations.nudging.selection.cross_validation import AGREEMENT, Evidence

CLEAR = 4.0  # standard errors of a gain that needs no check


def summarize(moved: int, passages: int, metric: str, levels: tuple[float, float], evidence: Evidence | None) -> str:
    """Say in two sentences what a nudge did, and whether to trust it.

    Args:
        moved: Number of passages that moved.
        passages: Number of passages.
        metric: Name of the metric.
        levels: The metric on held-out queries before and after.
        evidence: Evidence for the gain; None if the step size was given.
    """
    if moved:
        before, after = levels
        change = f"{metric} on held-out questions was {before:.3f} and is {after:.3f}"
        done = f"{moved} of {passages} passages moved; {change}."
    else:
        done = f"None of {passages} passages moved."
    return f"{done} {_trust(moved, evidence)}"


def _trust(moved: int, evidence: Evidence | None) -> str:
    if evidence is None:
        return "The step size was given, so whether it helps was not tested."
    gain = f"the cross-validated gain is {evidence.gain:+.3f}, with a standard error of {evidence.error:.3f}"
    if evidence.agreement < AGREEMENT:
        doubt = "The answers fit their questions no better than answers of other questions do"
        return f"{doubt}, so check the log: {gain}."
    if not evidence.is_significant:
        kept = "Do not rely on it" if moved else "The log does not show that a nudge would help"
        return f"{kept}: {gain}."
    if evidence.gain < CLEAR * evidence.error or not math.isfinite(evidence.required):
        return f"Test it on questions of your own: {gain}."
    return f"You can trust it: {gain}."
