"""Training stages, and presets of the papers' stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from m3_integrations.core.encoded import Mode
from m3_integrations.training.data.examples import Example
from m3_integrations.training.data.sampler import Sampling
from m3_integrations.training.objective.losses import LossVariant
from m3_integrations.training.objective.model import PARTS, Part

Sources: TypeAlias = Mapping[str, Sequence[Example]]
ObjectiveName: TypeAlias = Literal["m3", "gte"]
_RATE, _LOW_RANK_RATE = 1e-5, 2e-4
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training.

    Attributes:
        sources: Examples by name of their source.
        steps: Batches to train on; None for `epochs` epochs of all sources.
        epochs: Epochs if steps is None; default 1.
        modes: Modes to train; None for all modes of the model.
        parts: Parts of the model to train; those unused by the modes stay frozen. "layers" is the encoder without its
            token embeddings, which are most of a small multilingual model: their gradient and AdamW state need more
            memory than those of the layers.
        low_rank: Rank of a LoRA update (arXiv 2106.09685) trained instead of the encoder's weights; None for none.
        objective: "m3" (arXiv 2402.03216) or "gte" (arXiv 2308.03281).
        variant: Weights of the "m3" objective: "code" as in FlagEmbedding, "paper" as in the paper's first version.
        self_distillation: Distill the summed score into each mode; "m3" with several modes only.
        weights: Weights of the modes in the summed score; None for the checkpoint's recommended weights.
        temperature: Temperature of the softmax over scores; default 0.02.
        learning_rate: Peak learning rate of the encoder; None for 1e-5, or 2e-4 with `low_rank`.
        head_learning_rate: Peak learning rate of the heads; default 1e-3.
        weight_decay: AdamW's weight decay, except for biases, norms and the token prior.
        warm_up: Share of the steps with a rising learning rate, which then falls linearly to 0; from 0 to below 1.
        dropout: Dropout probability; None for the checkpoint's.
        precision: Precision of the forward pass.
        sub_batch: Padded tokens encoded at once with a graph; the gradient is that of the whole batch (GradCache). None
            for 8192, or as many as fit into half of the free memory of a GPU.
        checkpointing: Recompute activations in the backward pass, to save memory.
        sampling: Options of batch sampling.

    Raises:
        ValueError: If a value is out of range.
    """

    sources: Sources
    steps: int | None = None
    epochs: int = 1
    modes: tuple[Mode, ...] | None = None
    parts: tuple[Part, ...] = ("encoder", "sparse", "multi_vector")
    low_rank: int | None = None
    objective: ObjectiveName = "m3"
    variant: LossVariant = "code"
    self_distillation: bool = True
    weights: Mapping[Mode, float] | None = None
    temperature: float = 0.02
    learning_rate: float | None = None
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.1
    dropout: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    sub_batch: int | None = None
    checkpointing: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, got {self.objective!r}")
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts must be some of {PARTS}, got {self.parts!r}")
        for name in ("steps", "epochs", "low_rank", "sub_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("temperature", "learning_rate", "head_learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be from 0 to below 1, got {self.warm_up}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be None or from 0 to below 1, got {self.dropout}")

    @property
    def encoder_rate(self) -> float:
        """Peak learning rate of the encoder, or of its low-rank update."""
        return self.learning_rate or (_RATE if self.low_rank is None else _LOW_RANK_RATE)


def warm_up(sources: Sources, **options: Any) -> Stage:
    """Build a stage to train new heads on a frozen encoder.

    Args:
        sources: Examples by name of their source.
        options: Further options of `Stage`; they override the preset.

    Returns:
        The stage.
    """
    return Stage(sources, **{"parts": ("sparse", "multi_vector"), **options})


def contrastive(sources: Sources, **options: Any) -> Stage:
    """Build the first stage of M3 and GTE: dense only, on pairs without hard negatives.

    Args:
        sources: Examples by name of their source.
        options: Further options of `Stage`; they override the preset.

    Returns:
        The stage.
    """
    sampling = Sampling(negatives=0)
    return Stage(
        sources,
        **{"modes": ("dense",), "parts": ("encoder",), "objective": "gte", "sampling": sampling, **options},
    )


def unified(sources: Sources, **options: Any) -> Stage:
    """Build the second stage of M3: all modes, self-distillation, hard negatives.

    Args:
        sources: Examples by name of their source.
        options: Further options of `Stage`.

    Returns:
        The stage.
    """
    return Stage(sources, **options)
