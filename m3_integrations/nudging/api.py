"""nudge(): vectors in, moved vectors out; plain arrays, or texts encoded in several modes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import overload

from m3_integrations.core.encoded import MODES, Encoded, Mode, Modes, check_modes
from m3_integrations.core.types import SearchPlan
from m3_integrations.nudging.corpus import EncodedCorpus
from m3_integrations.nudging.judged import Floats, Judged
from m3_integrations.nudging.method.variants import MethodChoice, Propagate
from m3_integrations.nudging.optimize.dense import Nudged, NudgeOptions, nudge_dense
from m3_integrations.nudging.optimize.hybrid import NudgeConfig, NudgedModes, nudge_modes


@overload
def nudge(
    passages: Floats,
    train: Judged,
    validation: Judged,
    *,
    method: MethodChoice = "auto",
    metric: str = "ndcg@10",
    propagate: Propagate = "auto",
    center: float | None = None,
    gamma: float | None = None,
    background: Floats | Iterable[Floats] | None = None,
) -> Nudged: ...


@overload
def nudge(
    passages: Encoded,
    train: Judged,
    validation: Judged,
    *,
    modes: Modes | None = None,
    weights: Mapping[Mode, float] | None = None,
    method: MethodChoice = "auto",
    metric: str = "ndcg@10",
    propagate: Propagate = "auto",
) -> NudgedModes: ...


def nudge(
    passages: Floats | Encoded,
    train: Judged,
    validation: Judged,
    *,
    modes: Modes | None = None,
    weights: Mapping[Mode, float] | None = None,
    method: MethodChoice = "auto",
    metric: str = "ndcg@10",
    propagate: Propagate = "auto",
    center: float | None = None,
    gamma: float | None = None,
    background: Floats | Iterable[Floats] | None = None,
) -> Nudged | NudgedModes:
    """Move passages towards the queries that they answer, by the step size that is best on held-out queries.

    Copies of a query count as one, and the order of the queries does not matter.

    Args:
        passages: Unit vectors of shape (n, dim), an array or a memory map ("nudge-m" takes any length); the answers of
            both query sets are their rows. Or an Encoded, with queries that are encoded too (`Judged.of(encoded,
            answers)`): then dense vectors, sparse rows and multi-vectors move, evaluated on their fused ranking. There
            is no index, so the sparse score "idf" counts as "mean"; `Nudger` uses the idf of its index.
        train: Queries that pull the passages answering them.
        validation: Queries that choose the variant and the step size.
        modes: Modes of an Encoded to nudge; all by default.
        weights: Mode weights of the fused ranking; by default chosen together with the step sizes, starting at 1.
        method: "nudge-n" keeps lengths; "nudge-m" does not and needs an index that compares by dot product; "auto"
            takes the better of the two, or moves nothing if the gain on held-out queries, less that of the same queries
            with each other's answers, is not significant, or validation itself loses. With few validation queries,
            cross-fitted folds of the training queries are held out too. Sparse rows are always
            translated (NUDGE-M), multi-vectors always rotated (NUDGE-N).
        metric: Ranking metric to maximize, such as "ndcg@10".
        propagate: Whether pulls propagate to neighbors of the pulled passages: "auto" tries both, "neighbors" always
            propagates, None never does.
        center: Fraction of the mean query that is subtracted from each query first, 0 to 1. None: 0, as in the paper,
            if the method is named; the best of a few values if it is "auto".
        gamma: Step size: a squared chord length for "nudge-n" (0 to 4), a length for "nudge-m". None: the best one.
        background: More passages, shape (any, dim) or blocks of that shape, which answer no query and do not move.

    Returns:
        Nudged for an array, NudgedModes for an Encoded. Source: NUDGE, arXiv 2409.02343.

    Raises:
        WrongDimension: If queries and passages differ in dimension.
        NonFiniteVector: If a vector holds NaN or infinity.
        MissingMode: If a mode is not in the Encoded.
        ValueError: If an option is out of range or does not apply, or a passage is not a unit vector for "nudge-n".
    """
    if isinstance(passages, Encoded):
        _refuse("for plain dense arrays; pass encoded.dense", gamma=gamma, center=center, background=background)
        return nudge_modes(
            EncodedCorpus(passages), train, validation, _config(passages, modes, weights, metric, method, propagate)
        )
    _refuse("for texts in several modes; pass an Encoded", modes=modes, weights=weights)
    options = NudgeOptions(method, metric, propagate, center, gamma)
    return nudge_dense(passages, train, validation, options, background)


def _refuse(meant: str, **options: object) -> None:
    for name, given in options.items():
        if given is not None:
            raise ValueError(f"{name} is {meant}, or leave it out")


def _config(
    passages: Encoded,
    modes: Modes | None,
    weights: Mapping[Mode, float] | None,
    metric: str,
    method: MethodChoice,
    propagate: Propagate,
) -> NudgeConfig:
    chosen = check_modes(passages.modes if modes is None else modes, passages.modes)
    moving = tuple(mode for mode in MODES if mode in chosen)
    cheap = tuple(mode for mode in SearchPlan().propose if mode in passages.modes)
    return NudgeConfig(
        modes=moving,
        weights=dict.fromkeys(moving, 1.0) if weights is None else weights,
        tune_weights=weights is None and len(moving) > 1,
        propose=(moving if moving in (("dense",), ("sparse",)) else cheap) or moving,
        metric=metric,
        method=method,
        propagate=propagate,
    )
