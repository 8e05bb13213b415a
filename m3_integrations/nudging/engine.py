"""nudge(): vectors in, moved vectors out; plain arrays, or texts encoded in several modes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, overload

from m3_integrations.core.encoded import MODES, Encoded, Mode, check_modes
from m3_integrations.core.plan import SearchPlan
from m3_integrations.nudging.corpus import EncodedCorpus
from m3_integrations.nudging.dense import Nudged, nudge_dense
from m3_integrations.nudging.hybrid import NudgedModes, Race, nudge_modes
from m3_integrations.nudging.judged import Floats, Judged


@overload
def nudge(
    passages: Floats,
    train: Judged,
    validation: Judged,
    *,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Literal["auto", "neighbours"] | None = "auto",
    centre: float | None = None,
    gamma: float | None = None,
    background: Floats | Iterable[Floats] | None = None,
) -> Nudged: ...


@overload
def nudge(
    passages: Encoded,
    train: Judged,
    validation: Judged,
    *,
    modes: Collection[Mode] | None = None,
    weights: Mapping[Mode, float] | None = None,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Literal["auto", "neighbours"] | None = "auto",
) -> NudgedModes: ...


def nudge(
    passages: Floats | Encoded,
    train: Judged,
    validation: Judged,
    *,
    modes: Collection[Mode] | None = None,
    weights: Mapping[Mode, float] | None = None,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Literal["auto", "neighbours"] | None = "auto",
    centre: float | None = None,
    gamma: float | None = None,
    background: Floats | Iterable[Floats] | None = None,
) -> Nudged | NudgedModes:
    """Move passages towards the queries that they answer, as far as the metric on validation says (arXiv 2409.02343).

    passages: (n, dim), an array or a memory map, of length 1 for method "n"; the answers of both sets are rows of it.
    Or an Encoded, the queries of both sets being encoded too (`Judged.of(encoded, answers)`): then dense vectors,
    sparse rows and the vectors of late interaction move, those of `modes` (None: all), judged by their fused ranking.
    weights: of the modes in it; None: chosen along, from 1 each.
    background: more passages, (any, dim) or blocks of that, which answer nothing and do not move.
    method: "n" keeps lengths; "m" does not, and needs an index that compares by dot product; "auto" takes the better,
    or moves nothing where the gain does not stand out from chance or validation itself loses; on few validation
    queries it lets folds of the training queries judge too, each without its own pulls. Sparse rows are always pushed,
    late interaction is turned. spread: whether passages follow the pulls of their neighbours, those without queries
    most of all.
    centre: how much of the mean query is taken from each before it pulls, 0 to 1; None is 0, as in the paper, where the
    method is named, and the best of a few where it is "auto". gamma: None finds the best.
    Raises WrongDimension, NonFiniteVector, MissingMode or ValueError for what cannot be nudged, saying what can.
    """
    if isinstance(passages, Encoded):
        _refuse("for plain dense arrays; pass encoded.dense", gamma=gamma, centre=centre, background=background)
        return nudge_modes(
            EncodedCorpus(passages), train, validation, _race(passages, modes, weights, metric, method, spread)
        )
    _refuse("for texts in several modes; pass an Encoded", modes=modes, weights=weights)
    return nudge_dense(
        passages,
        train,
        validation,
        method=method,
        metric=metric,
        spread=spread,
        centre=centre,
        gamma=gamma,
        background=background,
    )


def _refuse(meant: str, **options: object) -> None:
    for name, given in options.items():
        if given is not None:
            raise ValueError(f"{name} is {meant}, or leave it out")


def _race(
    passages: Encoded,
    modes: Collection[Mode] | None,
    weights: Mapping[Mode, float] | None,
    metric: str,
    method: Literal["auto", "n", "m"],
    spread: Literal["auto", "neighbours"] | None,
) -> Race:
    chosen = check_modes(passages.modes if modes is None else modes, passages.modes)
    moving = tuple(mode for mode in MODES if mode in chosen)
    cheap = tuple(mode for mode in SearchPlan().propose if mode in passages.modes)
    return Race(
        modes=moving,
        weights=dict.fromkeys(moving, 1.0) if weights is None else weights,
        weigh=weights is None and len(moving) > 1,
        propose=(moving if moving in (("dense",), ("sparse",)) else cheap) or moving,
        metric=metric,
        method=method,
        spread=spread,
    )
