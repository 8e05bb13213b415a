"""transformers' Trainer over our batches, losses and gradient cache: it brings the loop, the schedule and resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.encoded import Mode
from m3_integrations.core.errors import TrainingDiverged
from m3_integrations.training.caching import GradientCache, Objective
from m3_integrations.training.losses import Loss
from m3_integrations.training.model import Representations, TokenBatch, TrainableM3
from m3_integrations.training.processes import told
from m3_integrations.training.sampling import Sampler
from m3_integrations.training.stages import Stage
from m3_integrations.training.steps import Asked, Reader, Share, Shares
from m3_integrations.training.watching import LexicalShare, Means, Validation

_ENCODER = "model.backbone."
_LOOK = "eval_"  # what transformers calls a figure of a look at the validation questions
_BEST = f"{_LOOK}best"
_UNDECAYED = ("bias", "LayerNorm.weight", "layer_norm.weight", "norm.weight", "token_prior")


@dataclass(frozen=True, slots=True)
class Loop:
    """How a stage is run and watched; nothing in it changes what a step learns.

    evaluate_every: steps between two looks at the validation questions, each of which keeps a checkpoint; None looks
    ten times. patience: looks without a better one before it stops; None goes on to the end. log_every: steps.
    device: None takes what transformers finds. show_progress: bars and logged lines on the terminal.
    report_to: where else figures go, such as ("tensorboard",), as transformers knows them.
    """

    evaluate_every: int | None = None
    patience: int | None = None
    log_every: int = 10
    seed: int = 0
    device: str | None = None
    show_progress: bool = False
    report_to: tuple[str, ...] = ()

    def arguments(self, stage: Stage, steps: int, folder: Path, *, validated: bool) -> TrainingArguments:
        """The same in transformers' words."""
        every = self.evaluate_every or max(1, -(-steps // 10))
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=1,  # of ours, each a whole batch
            learning_rate=stage.encoder_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(stage.warm_up * steps),
            max_grad_norm=1.0,
            bf16=stage.precision == "bfloat16",
            logging_steps=self.log_every,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if validated else "no",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=2,
            load_best_model_at_end=validated,
            metric_for_best_model="best" if validated else None,
            greater_is_better=True if validated else None,
            # Said where there is nothing else too: transformers refuses bf16 on a processor that it was not told of.
            use_cpu=self.device == "cpu" or not torch.accelerator.is_available(),
            seed=self.seed,
            disable_tqdm=not self.show_progress,
            report_to=list(self.report_to) or "none",
            remove_unused_columns=False,
            label_names=[],
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
        )


class M3Trainer(Trainer):
    """Runs one stage over a model of which some parts learn; only these are kept in its checkpoints."""

    def __init__(
        self,
        model: TrainableM3,
        checkpoint: Checkpoint,
        stage: Stage,
        sampler: Sampler,
        folder: Path,
        validation: Validation | None = None,
        loop: Loop | None = None,
    ) -> None:
        """checkpoint: what the model was made of. folder: where checkpoints go."""
        loop = loop or Loop()
        self._learner = model
        self._folder = folder
        self._checkpoint = checkpoint
        self._stage = stage
        self._sampler = sampler
        self._validation = validation
        self._steps = stage.steps or sampler.steps(stage.epochs)
        self._modes: tuple[Mode, ...] = stage.modes or tuple(sorted(model.heads.modes))
        self._reader = Reader(checkpoint, stage.sampling)
        self._means = Means()
        self._lexical = LexicalShare(model.silent)
        if stage.checkpointing:
            model.checkpoint_layers()
        super().__init__(
            model,
            loop.arguments(stage, self._steps, folder, validated=validation is not None),
            eval_dataset=None if validation is None else validation.collection.queries,
            callbacks=[EarlyStoppingCallback(loop.patience)] if loop.patience and validation else [],
            optimizers=(_optimizer(model, stage), None),
        )
        self.remove_callback(PrinterCallback)  # which prints every entry of the log
        self._start = {name: tensor.clone() for name, tensor in self.learned()}

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """The name and value of everything that learns."""
        for name, parameter in self._learner.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach()

    def run(self) -> Outcome:
        """Train, from the folder's last whole checkpoint if there is one, to the best model that was seen.

        Without a checkpoint that does better than the beginning, the model is left as it began.
        """
        before = self.validated()
        self.train(resume_from_checkpoint=_last_whole(self._folder, self.args.world_size))
        after = self._best() or self.validated()
        kept = before is None or after is None or _last(after) >= _last(before)
        if not kept:
            self._learner.load_state_dict(self._start, strict=False)
        return Outcome(before, after, kept, [dict(entry) for entry in self.state.log_history])

    def _best(self) -> dict[str, float] | None:
        """What the model that was gone back to found when it was looked at; None where nobody looked."""
        looks = [entry for entry in self.state.log_history if _BEST in entry]
        if not looks:
            return None
        best = max(looks, key=lambda entry: entry[_BEST])  # of equals the first, as transformers keeps it
        return {name.removeprefix(_LOOK): best[name] for name in best if name.startswith(_LOOK) and name != _BEST}

    def validated(self) -> dict[str, float] | None:
        """Plan -> metric, measured by the first process and told to the others; None without validation."""
        if self._validation is None:
            return None
        learned = self._learner.into(self._checkpoint)
        return told(self._validation(learned, self.args.device) if self.is_world_process_zero() else None)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Shares of batches in the order of their steps: what a process gets follows from its rank alone."""
        shares = Shares(self._sampler, self._steps, self.args.process_index, self.args.world_size)
        return DataLoader(shares, batch_size=1, shuffle=False, collate_fn=_alone)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One batch, of whatever size: the gradient cache bounds what it holds."""
        model.train()
        if not self._encoder_learns:
            self._learner.model.backbone.train(False)  # dropout would blur what the heads learn from
        share: Share = inputs["share"]
        queries, passages = (each.to(self.args.device) for each in self._reader.read(share.batch))
        asked = Asked(self._stage, self._modes, self._weights, share)
        with self.compute_loss_context_manager():
            loss = self._backward(model, queries, passages, self._watched(asked), share.scale)
        if not torch.isfinite(loss.total):
            raise TrainingDiverged(
                f"the loss is {float(loss.total)} at step {self.state.global_step} ({share.batch.source}): lower "
                f"learning_rate ({self._stage.encoder_rate}), raise temperature ({self._stage.temperature}), or train "
                "with precision='float32'"
            )
        self._means.note(loss.terms)
        return loss.total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation questions, logged by plan; the last plan's value as "best" too."""
        found = self.validated() or {}
        metrics = {**{f"{_LOOK}{plan}": value for plan, value in found.items()}, _BEST: _last(found)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Every term of the loss and the lexical share beside what transformers logs."""
        super().log({**logs, **self._means.take()} if "loss" in logs else logs, start_time)

    def _backward(
        self, model: nn.Module, queries: TokenBatch, passages: TokenBatch, objective: Objective, scale: float
    ) -> Loss:
        texts, longest = (max(queries.ids.shape[side], passages.ids.shape[side]) for side in (0, 1))
        rows = max(1, self._stage.sub_batch // longest) if self._encoder_learns else texts
        return GradientCache(model, rows, self._modes).backward(queries, passages, objective, scale)

    def _watched(self, asked: Asked) -> Objective:
        def objective(queries: Representations, passages: Representations) -> Loss:
            share = self._lexical(passages)
            if share is not None:
                self._means.note({"lexical_share": share})
            return asked(queries, passages)

        return objective

    @cached_property
    def _encoder_learns(self) -> bool:
        """An encoder that rests keeps nothing for the backward pass, so that no batch is too large for it."""
        return any(name.startswith(_ENCODER) for name, _ in self.learned())

    @property
    def _weights(self) -> Mapping[Mode, float]:
        return self._stage.weights or self._checkpoint.conventions.weights

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.learned()}, folder / SAFE_WEIGHTS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """What does not learn is not in a checkpoint, and not missed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage went.

    before, after: plan -> metric on the validation questions; None without them. kept: False where nothing did better
    than the beginning, which was gone back to. log: what was logged, entry by entry, each with its "step".
    """

    before: Mapping[str, float] | None
    after: Mapping[str, float] | None
    kept: bool
    log: list[dict[str, float]]


def _last_whole(folder: Path, processes: int) -> str | None:
    """The last checkpoint that was written to its end: of one that a kill cut short, the state is not there yet.

    transformers writes a checkpoint file by file, the state last of all, and goes on from the highest number that it
    finds, whole or not.
    """
    whole = [
        (state["global_step"], str(each))
        for each in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (state := _state(each)) and len(list(each.glob("rng_state*.pth"))) >= processes
    ]
    return max(whole)[1] if whole else None


def _state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return state


def _optimizer(model: TrainableM3, stage: Stage) -> torch.optim.AdamW:
    """AdamW over what learns: heads at their own rate, no decay of biases and norms."""
    rates = {True: stage.encoder_rate, False: stage.head_learning_rate}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name.endswith(_UNDECAYED) else stage.weight_decay
            groups.setdefault((rates[name.startswith(_ENCODER)], decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    )


def _alone(batches: list[dict[str, Share]]) -> dict[str, Share]:
    return batches[0]


def _last(metrics: Mapping[str, float]) -> float:
    return list(metrics.values())[-1]
