"""A stretch of training: what learns, from which examples, by which loss, how fast and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from m3_integrations.core.encoded import Mode
from m3_integrations.training.data import Example
from m3_integrations.training.losses import Variant
from m3_integrations.training.model import PARTS, Part
from m3_integrations.training.sampling import Sampling

Sources: TypeAlias = Mapping[str, Sequence[Example]]
Objective: TypeAlias = Literal["m3", "gte"]
_RATE, _LOW_RANK_RATE = 1e-5, 2e-4
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of training.

    sources: the examples by name. steps: batches to learn from; None takes `epochs` of all sources. modes: what is
    learned; None is all that the model has. parts: what of the model learns; of these, what the modes do not use rests.
    "layers" is the encoder without its table of tokens, which is most of a small multilingual model: its gradient and
    AdamW's state cost more than the layers' own.
    low_rank: the rank of an update that the encoder learns in the place of its own weights (LoRA, arXiv 2106.09685);
    None learns the weights. objective: "m3" (arXiv 2402.03216) or "gte" (arXiv 2308.03281). weights: of the summed
    score that teaches; None takes those that the checkpoint recommends.
    learning_rate: of the encoder at its highest; None is 1e-5, or 2e-4 of a low-rank update. head_learning_rate: of the
    heads. warm_up: the share of steps in which
    the rate rises, before it falls to 0. dropout: None leaves the checkpoint's. precision: of the forward pass.
    sub_batch: padded tokens that are encoded at a time with all that the backward pass needs; the gradient is the whole
    batch's. checkpointing: layers keep their input alone and compute again. sampling: how batches are drawn.
    """

    sources: Sources
    steps: int | None = None
    epochs: int = 1
    modes: tuple[Mode, ...] | None = None
    parts: tuple[Part, ...] = ("encoder", "sparse", "multi_vector")
    low_rank: int | None = None
    objective: Objective = "m3"
    variant: Variant = "code"
    self_distillation: bool = True
    weights: Mapping[Mode, float] | None = None
    temperature: float = 0.02
    learning_rate: float | None = None
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.1
    dropout: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    sub_batch: int = 8192
    checkpointing: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is one of {OBJECTIVES}, got {self.objective!r}")
        if not self.parts or (strange := set(self.parts) - set(PARTS)):
            raise ValueError(f"parts are some of {PARTS}, got {self.parts!r}" + (f": {strange}" if self.parts else ""))
        for name in ("steps", "epochs", "low_rank", "sub_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("temperature", "learning_rate", "head_learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up is a share of the steps from 0 to below 1, got {self.warm_up}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is from 0 to below 1, or None, got {self.dropout}")

    @property
    def encoder_rate(self) -> float:
        """The highest learning rate of the encoder, or of its low-rank update."""
        return self.learning_rate or (_RATE if self.low_rank is None else _LOW_RANK_RATE)


def warm_up(sources: Sources, **options: Any) -> Stage:
    """New heads learn alone, over an encoder that rests, before they may pull at it."""
    return Stage(sources, **{"parts": ("sparse", "multi_vector"), **options})


def contrastive(sources: Sources, **options: Any) -> Stage:
    """Stage one of both papers: dense alone, contrastive, on many pairs without hard negatives."""
    sampling = Sampling(negatives=0)
    return Stage(
        sources,
        **{"modes": ("dense",), "parts": ("encoder",), "objective": "gte", "sampling": sampling, **options},
    )


def unified(sources: Sources, **options: Any) -> Stage:
    """Stage two of M3: all modes with self-knowledge distillation, on labelled pairs with hard negatives."""
    return Stage(sources, **options)
