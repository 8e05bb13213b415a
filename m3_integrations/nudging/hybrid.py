"""nudge_modes(): dense, sparse and late interaction moved together, as far as the ranking that they make says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode
from m3_integrations.core.errors import MissingMode
from m3_integrations.nudging.choose import loses
from m3_integrations.nudging.corpus import Corpus, EncodedCorpus, with_rows
from m3_integrations.nudging.dense import Curve, moved_rows
from m3_integrations.nudging.fused import REST, Board, Chosen, Setting, Strength
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.ladders import (
    Curved,
    Ladder,
    Pairs,
    PulledBy,
    blocks,
    dense_ladders,
    dense_pulls,
    late_ladders,
    sparse_curves,
    sparse_pulls,
)
from m3_integrations.nudging.late import MovedVectors, turned
from m3_integrations.nudging.panels import Panels, answers_of_alike
from m3_integrations.nudging.plans import LATE_CENTRES, SPARSE_CENTRES, WAYS, Method, Plan, plans, require_known
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.spread import Spread

TURNS = np.array([0, 0.03, 0.07, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 0.9, 1.2])  # angles of late interaction, radians
PUSHES = np.array([0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2])  # of a typical sparse row's length
CANDIDATES = 50  # that a judge ranks of each proposing mode: metrics look at the first few
LATE: Method = "n"
SPARSE: Method = "m"


@dataclass(frozen=True, eq=False)
class Moved:
    """What a nudge moved in one mode. rows: (moved,) ascending.

    values: where they are then: (moved, dim) dense, a csr_array (moved, vocab), or MovedVectors of late interaction.
    spread, centre: as in `Nudged`; of sparse rows the power by which terms that many queries say are passed over.
    """

    rows: Ints
    values: Array | scipy.sparse.csr_array | MovedVectors
    method: Method
    gamma: float
    spread: Spread | None
    centre: float


@dataclass(frozen=True, eq=False)
class NudgedModes:
    """Passages after a nudge in several modes: what moved, and the weights of the modes that go with it.

    before, after: the metric of the fused ranking on the validation queries, or where there are none on the folds of
    the training queries. curves: by mode, the metric over its gamma, all else as chosen; points, not steps.
    choice: the setting with its cross-validated gain. judges, panels: who judged.
    """

    start: Corpus
    moved: Mapping[Mode, Moved]
    weights: Mapping[Mode, float]
    metric: str
    before: float
    after: float
    curves: Mapping[Mode, Curve]
    choice: Chosen
    panels: Panels

    @property
    def passages(self) -> Encoded:
        """All passages, assembled anew at each call. Raises ValueError for those of an index, which it holds itself."""
        if not isinstance(self.start, EncodedCorpus):
            raise ValueError("these passages are in an index; ask it: index.vectors(ids)")
        return put(self.start.encoded, self.moved)


class Race(NamedTuple):
    """What a nudge over several modes is to do.

    modes: to be moved. weights: of the ranking that judges; weigh: whether they are chosen too. propose, candidates: of
    the plan whose ranking it is. method, spread: of the dense vectors; late interaction turns, sparse rows are pushed.
    """

    modes: Collection[Mode]
    weights: Mapping[Mode, float]
    weigh: bool
    propose: Sequence[Mode] = ("dense", "sparse")
    candidates: int = 100
    metric: str = "ndcg@10"
    method: Literal["auto", "n", "m"] = "auto"
    spread: Literal["auto", "neighbours"] | None = "auto"


def nudge_modes(corpus: Corpus, train: Judged, validation: Judged, race: Race) -> NudgedModes:
    """Move passages in several modes towards the queries that they answer, each as far as the fused ranking says.

    Every strength, and the weights where they are free, is chosen by coordinate ascent on the validation queries, and
    where they are few on folds of the training queries too; where the cross-validated gain does not stand out from
    chance and method is "auto", nothing moves. Raises MissingMode for a mode that the corpus or the queries lack,
    ValueError where no query judges.
    """
    require_known(race.method, race.spread)
    _require_modes(corpus, train, race)
    panels = Panels.crossed(train.answered(), validation.answered())
    if not len(panels.judges):
        raise ValueError(f"{len(train)} training queries and no validation query: give more, or queries to validate by")
    scene = _Scene(corpus, panels, race)
    return scene.nudged()


class _Scene:
    """One corpus, its panels and what is to be done."""

    def __init__(self, corpus: Corpus, panels: Panels, race: Race) -> None:
        self.corpus, self.panels, self.race = corpus, panels, race
        self.plans = plans(race.method, race.spread, None, len(corpus)) if "dense" in race.modes else []
        self.pairs = shortlist(corpus, panels, race)
        ladders = {mode: self._ladders(mode) for mode in MODES if race.weights.get(mode)}
        self.board = Board(panels.judges, self.pairs, ladders, RankMetric.of(race.metric))

    def nudged(self) -> NudgedModes:
        start = Setting.resting({mode: weight for mode in MODES if (weight := self.race.weights.get(mode))})
        choice = self.board.choose(start, weigh=self.race.weigh)
        seats = self.panels.seated(0)
        who = seats if len(seats) else np.arange(len(self.panels.judges))
        gains = (self.board.metrics(choice.setting) - self.board.metrics(start))[seats]
        vetoed = loses(gains, self.panels.judges.weights[seats])
        moves = self.race.method != "auto" or (choice.convinces and not vetoed)
        setting = choice.setting if moves else start
        strengths = {mode: each for mode, each in setting.strengths if each.gamma}
        return NudgedModes(
            start=self.corpus,
            moved={mode: self._moved(mode, strength) for mode, strength in strengths.items()},
            weights={mode: weight for mode, weight in setting.weights if weight},
            metric=self.race.metric,
            before=self.board.mean(start, who),
            after=self.board.mean(setting, who),
            curves={mode: self._curve(mode, choice.setting, who) for mode in self.race.modes},
            choice=choice,
            panels=self.panels,
        )

    def _ladders(self, mode: Mode) -> list[Ladder]:
        moves = mode in self.race.modes
        if mode == "dense":
            tried = self.plans if moves else [Plan("m", None, 0.0)]
            traced = dense_ladders(self.corpus.dense, self.panels, self.pairs, tried)
            gammas = [plan.gammas if moves else plan.gammas[:1] for plan in tried]
            return [Curved(curves, plan.way, g) for curves, plan, g in zip(traced, tried, gammas, strict=True)]
        if mode == "sparse":
            gammas_ = PUSHES * _typical_length(self.corpus.sparse) if moves else PUSHES[:1]
            centres = SPARSE_CENTRES if moves else SPARSE_CENTRES[:1]
            lines = sparse_curves(self.corpus, self.panels, self.pairs, centres)
            return [Curved(each, WAYS["m"], gammas_) for each in lines]
        angles = TURNS if moves else TURNS[:1]
        chords = 4 * np.sin(angles / 2) ** 2
        return [
            *late_ladders(self.corpus, self.panels, self.pairs, chords, LATE_CENTRES if moves else LATE_CENTRES[:1])
        ]

    def _curve(self, mode: Mode, setting: Setting, who: Ints) -> Curve:
        ladder = dict(setting.strengths).get(mode, REST).ladder
        gammas = self.board.ladders[mode][ladder].gammas
        levels = [self.board.mean(setting.with_strength(mode, Strength(ladder, g)), who) for g in gammas.tolist()]
        return Curve(gammas, np.array(levels))

    def _moved(self, mode: Mode, strength: Strength) -> Moved:
        if mode == "dense":
            return dense_move(self.corpus, self.panels.train, self.plans[strength.ladder], strength.gamma)
        if mode == "sparse":
            return sparse_move(self.corpus, self.panels.train, strength.gamma, SPARSE_CENTRES[strength.ladder])
        return late_move(self.corpus, self.panels.train, strength.gamma, LATE_CENTRES[strength.ladder])


def dense_move(corpus: Corpus, train: Judged, plan: Plan, gamma: float) -> Moved:
    """Move dense vectors by the plan."""
    rows, vectors = moved_rows(corpus.dense, dense_pulls(corpus.dense, train, plan), plan.way, gamma)
    return Moved(rows, np.asarray(vectors, np.float32), plan.method, gamma, plan.spread, plan.centre)


def sparse_move(corpus: Corpus, train: Judged, gamma: float, centre: float = 0.0) -> Moved:
    """Push sparse rows along their pulls by a length of gamma (NUDGE-M in the space of tokens)."""
    rows, pulls = sparse_pulls(train, centre)
    moves = np.diff(pulls.indptr) > 0
    rows, pulls = rows[moves], pulls[np.flatnonzero(moves)]
    pushed = scipy.sparse.csr_array(corpus.sparse[rows] + pulls * np.float32(gamma))
    pushed.sort_indices()
    return Moved(rows, pushed, SPARSE, gamma, None, centre)


def late_move(corpus: Corpus, train: Judged, gamma: float, centre: float) -> Moved:
    """Turn every vector that a training query's vector matches towards what matched it."""
    pulled = PulledBy(train)
    moved: list[tuple[int, Ints, Array]] = []
    for block in blocks(np.unique(pulled.rows)):
        for row, passage in zip(block.tolist(), corpus.multi_vector(block), strict=True):
            pulling = pulled.by(row, passage)
            if pulling is not None:
                matched = pulling.matching.pulls(None, centre)
                moved.append((row, matched.places, turned(passage, matched, gamma)))
    values = MovedVectors.of(moved, pulled.vectors.width)
    return Moved(values.rows, values, LATE, gamma, None, centre)


def put(encoded: Encoded, moved: Mapping[Mode, Moved]) -> Encoded:
    """All passages in all modes, with what moved in its place."""
    corpus = EncodedCorpus(encoded)
    for mode, each in moved.items():
        if mode == "dense":
            vectors = np.array(corpus.dense)
            vectors[each.rows] = each.values
            encoded = encoded.with_dense(vectors)
        elif mode == "sparse":
            encoded = encoded.with_sparse(with_rows(corpus.sparse, each.rows, each.values))
        elif isinstance(each.values, MovedVectors):
            late = each.values.put_into(encoded.multi_vector, np.arange(len(encoded)))
            encoded = encoded.with_multi_vector(late)
    return encoded


def shortlist(corpus: Corpus, panels: Panels, race: Race) -> Pairs:
    """What each judge ranks: what the plan proposes at rest, and what a nudge may bring among it."""
    n, judges = len(corpus), panels.judges
    count = min(race.candidates, CANDIDATES, n)
    keys = [_top(corpus, judges, mode, count) for mode in race.propose if mode in corpus.modes]
    if set(race.propose) & set(race.modes):
        keys += [answers_of_alike(panels, panel, n) for panel in range(len(panels.silent))]
    every = np.unique(np.concatenate(keys))
    return Pairs(every // n, every % n)


def _top(corpus: Corpus, judges: Judged, mode: Mode, count: int) -> Ints:
    """judge * n + row of each judge's best at rest."""
    n, found = len(corpus), []
    for start in range(0, len(judges), 64):
        which = np.arange(start, min(start + 64, len(judges)))
        scores = _scores(corpus, judges.take(which), mode)
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        found.append((which[:, None] * n + best)[np.take_along_axis(scores, best, axis=1) > _FLOOR[mode]])
    return np.concatenate([*found, np.empty(0, np.int64)])


_FLOOR: Mapping[Mode, float] = {"dense": -np.inf, "sparse": 0.0, "multi_vector": -np.inf}


def _scores(corpus: Corpus, judges: Judged, mode: Mode) -> Floats:
    """(judges, n) at rest."""
    if mode == "dense":
        return np.asarray(judges.queries @ corpus.dense.T)
    if mode == "sparse":
        return np.asarray((judges.in_modes.sparse @ corpus.sparse.T).toarray())
    n = len(corpus)
    every = Pairs(np.repeat(np.arange(len(judges)), n), np.tile(np.arange(n), len(judges)))
    still = Panels(judges.take([]), judges, np.zeros(len(judges), np.int64), [np.empty(0, np.int64)])
    return late_ladders(corpus, still, every, np.zeros(1), LATE_CENTRES[:1])[0].at(0.0).reshape(len(judges), n)


def _typical_length(rows: scipy.sparse.csr_array) -> float:
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), np.float64)).ravel()
    return float(np.median(lengths[lengths > 0])) if (lengths > 0).any() else 1.0


def _require_modes(corpus: Corpus, train: Judged, race: Race) -> None:
    wanted = {*race.modes, *(mode for mode, weight in race.weights.items() if weight)}
    there = corpus.modes & train.in_modes.modes
    if wanted - there:
        raise MissingMode(
            f"a nudge over {sorted(wanted)} needs passages and queries in all of them; the passages are in "
            f"{sorted(corpus.modes)}, the queries in {sorted(train.in_modes.modes)}"
        )
