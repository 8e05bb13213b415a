"""Monitoring of training: validation, lexical collapse, running means of logged values."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from m3_integrations.core.errors import LexicalCollapse
from m3_integrations.data.beir import JudgedCollection
from m3_integrations.encoders.base import EncoderConfig
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.evaluation.compare import default_plans, evaluate_plans
from m3_integrations.evaluation.metrics import Metric
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.training.objective.model import Representations, TrainableM3, has_lexical_weight

_COLLAPSE_RATIO = 0.5  # of the initial share of weighted tokens


class Validation:
    """Evaluation of a checkpoint on judged queries.

    Each mode is measured on its own and all modes with the checkpoint's weights. The last value, that of all modes,
    selects the best checkpoint.
    """

    def __init__(self, collection: JudgedCollection, metric: str = "ndcg@10") -> None:
        """Create a validation.

        Args:
            collection: Passages and judged queries.
            metric: Metric of `m3_integrations.evaluation`, such as "ndcg@10".
        """
        self.collection = collection
        self.metric = metric
        self._k = Metric.parse(metric).k

    def __call__(self, checkpoint: Checkpoint, device: torch.device) -> dict[str, float]:
        """Compute the mean metric of each search plan; the selecting plan comes last."""
        encoder = M3Encoder(checkpoint, EncoderConfig(device=device))
        passages = self.collection.passages
        with MemoryIndex() as index:
            index.add(passages, encoder.encode_passages([passage.text for passage in passages]))
            metrics = evaluate_plans(
                encoder, index, self.collection.queries, default_plans(encoder.weights), [self.metric], self._k
            )
        return {plan: values[self.metric] for plan, values in metrics.items()}


class LexicalCollapseMonitor:
    """Share of tokens with a lexical weight above 0 per step, with a warning if it collapses.

    A ReLU that outputs 0 for every token has no gradient: the head is dead and sparse search finds nothing.
    """

    def __init__(self, model: TrainableM3) -> None:
        self._model = model  # its special ids move to the device with it
        self._start: float | None = None
        self._warned = False

    def __call__(self, passages: Representations) -> float | None:
        """Compute the share in these passages and warn once of a collapse; None without weights."""
        if passages.sparse is None:
            return None
        weighted = has_lexical_weight(passages.ids, passages.content, self._model.special_ids)
        share = float(((passages.sparse.detach() > 0) & weighted).sum() / weighted.sum().clamp(min=1))
        self._start = share if self._start is None else self._start
        if share < _COLLAPSE_RATIO * self._start and not self._warned:
            self._warned = True
            warnings.warn(
                f"the lexical head gives a weight to {share:.0%} of tokens, down from {self._start:.0%} at the start; "
                "lower head_learning_rate, or begin with a warm_up stage",
                LexicalCollapse,
                stacklevel=2,
            )
        return share


class RunningMeans:
    """Means of the values added since the last `pop`."""

    def __init__(self) -> None:
        self._values: dict[str, list[float | Tensor]] = defaultdict(list)

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Add one value per name; tensors stay on their device until `pop`."""
        for name, value in values.items():
            self._values[name].append(value.detach() if isinstance(value, Tensor) else value)

    def pop(self) -> dict[str, float]:
        """Return the means by name, and forget the values."""
        added, self._values = self._values, defaultdict(list)
        return {name: sum(map(float, values)) / len(values) for name, values in added.items()}
