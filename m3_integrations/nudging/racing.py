"""The quick look before the exact one: many ways to nudge, side by side on short lists of passages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_integrations.nudging.fused import Board, Chosen, Setting
from m3_integrations.nudging.judged import Floats
from m3_integrations.nudging.ladders import Curved, Pairs, dense_ladders
from m3_integrations.nudging.panels import Panels, answers_of_alike
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.still import Still
from m3_integrations.nudging.ways import Curves

SHORT = 50  # passages of a judge's list, besides the answers of questions like it


def favourite(
    passages: Floats, panels: Panels, best: Still, plans: Sequence[Plan], metric: RankMetric, total: int | None = None
) -> tuple[Plan, Chosen]:
    """The plan that ranks best, and how much of its gain the judges confirm on what they did not choose by.

    best: of each judge, the best at rest among the passages, and among what does not move, which has rows beyond them.
    total: how many passages there are in all, where these are a part.
    """
    n = len(passages)
    every = _pairs(panels, best, n)
    still = every.rows >= n
    traced = dense_ladders(passages, panels, Pairs(every.askers[~still], every.rows[~still]), plans, total)
    levels = _levels(best, every, still)
    ladders = [
        Curved(_among(curves, still, levels), plan.way, plan.gammas) for curves, plan in zip(traced, plans, strict=True)
    ]
    chosen = Board(panels.judges, every, {"dense": ladders}, metric).choose(
        Setting.resting({"dense": 1.0}), weigh=False
    )
    ((_, strength),) = chosen.setting.strengths
    return plans[strength.ladder], chosen


def _pairs(panels: Panels, best: Still, n: int) -> Pairs:
    width = 1 + max(n, int(best.rows.max(initial=0)))
    askers, places = np.nonzero(best.rows >= 0)
    keys = [askers * width + best.rows[askers, places]]
    keys += [answers_of_alike(panels, panel, width) for panel in range(len(panels.silent))]
    every = np.unique(np.concatenate(keys))
    return Pairs(every // width, every % width)


def _levels(best: Still, every: Pairs, still: np.ndarray) -> Floats:
    """The scores of the pairs that do not move."""
    places = (best.rows[every.askers[still]] == every.rows[still, None]).argmax(axis=1)
    return np.asarray(best.scores[every.askers[still], places])


def _among(curves: Curves, still: np.ndarray, levels: Floats) -> Curves:
    """The curves of all pairs, from those that move and the levels of those that do not."""
    every = Curves(*np.zeros((3, len(still))))
    for mine, theirs in zip(every, curves, strict=True):
        mine[~still] = theirs
    every.a[still] = levels
    return every
