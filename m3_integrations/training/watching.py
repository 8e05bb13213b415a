"""What is looked at while a model learns: how well it finds, and whether its lexical head still speaks."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.encoder import M3Encoder
from m3_integrations.core.errors import LexicalCollapse
from m3_integrations.core.metrics import Metric
from m3_integrations.evaluation.beir import Collection
from m3_integrations.evaluation.judging import judge, plans_of
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.training.model import Representations, speaking

_COLLAPSED = 0.5  # of the share that spoke at first


class Validation:
    """Judged questions that a model is asked between steps.

    metric: as in `m3_integrations.core.metrics`, such as "ndcg@10". Every mode is measured alone, and all together as
    the checkpoint weighs them: the last plan's value is what the best model is chosen by.
    """

    def __init__(self, collection: Collection, metric: str = "ndcg@10") -> None:
        self.collection = collection
        self.metric = metric
        self._k = Metric.parse(metric).k

    def __call__(self, checkpoint: Checkpoint, device: torch.device) -> dict[str, float]:
        """Plan -> the metric's mean over the questions; the plan that counts comes last."""
        encoder = M3Encoder(checkpoint, device=device)
        passages = self.collection.passages
        with MemoryIndex() as index:
            index.add(passages, encoder.encode_passages([passage.text for passage in passages]))
            found = judge(encoder, index, self.collection.queries, plans_of(encoder.weights), [self.metric], self._k)
        return {plan: values[self.metric] for plan, values in found.items()}


class LexicalShare:
    """The share of tokens with a lexical weight above 0, step by step, and an alarm where it leaves its start behind.

    A relu that gives 0 to every token learns nothing any more: the head is dead, and sparse search finds nothing.
    """

    def __init__(self, silent: Tensor) -> None:
        self._silent = silent
        self._start: float | None = None
        self._warned = False

    def __call__(self, passages: Representations) -> float | None:
        """The share in these texts; None where they have no lexical weights. Warns LexicalCollapse, once."""
        if passages.sparse is None:
            return None
        speaks = speaking(passages.ids, passages.kept, self._silent)
        share = float(((passages.sparse.detach() > 0) & speaks).sum() / speaks.sum().clamp(min=1))
        self._start = share if self._start is None else self._start
        if share < _COLLAPSED * self._start and not self._warned:
            self._warned = True
            warnings.warn(
                f"the lexical head gives a weight to {share:.0%} of tokens, and gave one to {self._start:.0%} at "
                "first; it is about to fall silent: lower head_learning_rate, or begin with a warm_up stage",
                LexicalCollapse,
                stacklevel=2,
            )
        return share


class Means:
    """Means of what was noted since they were last taken."""

    def __init__(self) -> None:
        self._noted: dict[str, list[float]] = defaultdict(list)

    def note(self, values: Mapping[str, float | Tensor]) -> None:
        for name, value in values.items():
            self._noted[name].append(float(value))

    def take(self) -> dict[str, float]:
        noted, self._noted = self._noted, defaultdict(list)
        return {name: sum(values) / len(values) for name, values in noted.items()}
