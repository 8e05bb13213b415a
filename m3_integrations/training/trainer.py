"""Training loop of a stage: transformers' Trainer with our batches, losses and caching."""

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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from m3_integrations.core.encoded import Mode
from m3_integrations.core.errors import TrainingDiverged
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.training.data.sampler import Sampler
from m3_integrations.training.monitoring import LexicalCollapseMonitor, RunningMeans, Validation
from m3_integrations.training.objective.collectives import broadcast
from m3_integrations.training.objective.grad_cache import GradientCache, Objective
from m3_integrations.training.objective.losses import Loss
from m3_integrations.training.objective.model import Representations, TokenBatch, TrainableM3
from m3_integrations.training.preparation import default_sub_batch
from m3_integrations.training.stages import Stage
from m3_integrations.training.step import BatchTokenizer, StageObjective, TokenizedBatch, WorkerBatches

# Not cuDNN, which compiles attention for each shape of a batch.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_ENCODER_PREFIX = "model.backbone."
_EVAL_PREFIX = "eval_"  # of validation metrics in transformers' log
_BEST_KEY = f"{_EVAL_PREFIX}best"
_NO_DECAY = ("bias", "LayerNorm.weight", "layer_norm.weight", "norm.weight", "token_prior")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Options of a run, without effect on a training step.

    Attributes:
        evaluate_every: Steps between evaluations, each followed by a checkpoint; None for a tenth of the steps.
        patience: Evaluations without improvement before training stops; None to run to the end.
        log_every: Steps between log entries.
        seed: Seed of torch, numpy and Python.
        device: "cpu", or None for transformers' choice.
        show_progress: Show progress bars and log entries on the terminal.
        report_to: Integrations of transformers that receive the log, such as ("tensorboard",).
    """

    evaluate_every: int | None = None
    patience: int | None = None
    log_every: int = 10
    seed: int = 0
    device: str | None = None
    show_progress: bool = False
    report_to: tuple[str, ...] = ()

    @property
    def use_cpu(self) -> bool:
        """Whether training runs on the CPU, on request or without an accelerator."""
        return self.device == "cpu" or not torch.accelerator.is_available()

    def to_training_arguments(self, stage: Stage, steps: int, folder: Path, *, validated: bool) -> TrainingArguments:
        """Convert to the arguments of transformers' Trainer for a stage of `steps` steps.

        Args:
            stage: The stage.
            steps: Number of optimizer steps.
            folder: Folder for checkpoints.
            validated: Whether the stage is evaluated on validation queries.

        Returns:
            The arguments.
        """
        interval = self.evaluate_every or max(1, -(-steps // 10))
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=1,  # each item is a whole batch
            learning_rate=stage.encoder_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(stage.warm_up * steps),
            max_grad_norm=1.0,
            bf16=stage.precision == "bfloat16",
            logging_steps=self.log_every,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if validated else "no",
            eval_steps=interval,
            save_strategy="steps",
            save_steps=interval,
            save_total_limit=2,
            load_best_model_at_end=validated,
            metric_for_best_model="best" if validated else None,
            greater_is_better=True if validated else None,
            # Also set without an accelerator: transformers rejects bf16 on a CPU unless use_cpu is True.
            use_cpu=self.use_cpu,
            seed=self.seed,
            disable_tqdm=not self.show_progress,
            report_to=list(self.report_to) or "none",
            remove_unused_columns=False,
            label_names=[],
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
        )


class M3Trainer(Trainer):
    """Trainer of one stage; its checkpoints hold the trained parts only."""

    def __init__(
        self,
        model: TrainableM3,
        checkpoint: Checkpoint,
        stage: Stage,
        sampler: Sampler,
        folder: Path,
        validation: Validation | None = None,
        config: TrainConfig | None = None,
    ) -> None:
        """Create a trainer.

        Args:
            model: Model whose trainable parameters are trained.
            checkpoint: Checkpoint of the model.
            stage: Options of the stage.
            sampler: Batches.
            folder: Folder of the trainer's checkpoints.
            validation: Evaluation that selects the best checkpoint; None to keep the last.
            config: Options of the run; None for the defaults.
        """
        config = config or TrainConfig()
        self._trainable = model
        self._folder = folder
        self._checkpoint = checkpoint
        self._stage = stage
        self._sampler = sampler
        self._validation = validation
        self._steps = stage.steps or sampler.steps(stage.epochs)
        self._modes: tuple[Mode, ...] = stage.modes or tuple(sorted(model.heads.modes))
        self._batch_tokenizer = BatchTokenizer(checkpoint, stage.sampling)
        self._means = RunningMeans()
        self._lexical_monitor = LexicalCollapseMonitor(model)
        if stage.checkpointing:
            model.enable_checkpointing()
        super().__init__(
            model,
            config.to_training_arguments(stage, self._steps, folder, validated=validation is not None),
            eval_dataset=None if validation is None else validation.collection.queries,
            callbacks=[EarlyStoppingCallback(config.patience)] if config.patience and validation else [],
            optimizers=(_make_optimizer(model, stage), None),
        )
        self.remove_callback(PrinterCallback)  # it prints every log entry
        self._initial = {name: tensor.clone() for name, tensor in self.trainable_parameters()}

    def trainable_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and value of every trainable parameter."""
        for name, parameter in self._trainable.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach()

    def run(self) -> StageResult:
        """Train from the folder's last complete checkpoint, if any, and load the best checkpoint.

        If no checkpoint is better than the initial weights, these are restored.
        """
        before = self.validate()
        self.train(resume_from_checkpoint=_last_complete_checkpoint(self._folder, self.args.world_size))
        after = self._best_metrics() or self.validate()
        kept = before is None or after is None or _last_value(after) >= _last_value(before)
        if not kept:
            self._trainable.load_state_dict(self._initial, strict=False)
        return StageResult(before, after, kept, [dict(entry) for entry in self.state.log_history])

    def _best_metrics(self) -> dict[str, float] | None:
        """Metrics of the best evaluation; None without one."""
        evaluations = [entry for entry in self.state.log_history if _BEST_KEY in entry]
        if not evaluations:
            return None
        best = max(evaluations, key=lambda entry: entry[_BEST_KEY])  # the first of equals, as in transformers
        return {
            name.removeprefix(_EVAL_PREFIX): best[name]
            for name in best
            if name.startswith(_EVAL_PREFIX) and name != _BEST_KEY
        }

    def validate(self) -> dict[str, float] | None:
        """Evaluate in the first process and broadcast the metrics; None without validation."""
        if self._validation is None:
            return None
        current = self._trainable.to_checkpoint(self._checkpoint)
        return broadcast(self._validation(current, self.args.device) if self.is_world_process_zero() else None)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load this rank's shards of the batches, in the order of the steps."""
        rank, workers = self.args.process_index, self.args.world_size
        batches = WorkerBatches(self._sampler, self._batch_tokenizer, self._steps, rank, workers)
        return DataLoader(batches, batch_size=1, shuffle=False, collate_fn=_only_batch)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Backpropagate one batch of any size; gradient caching bounds the memory.

        Raises:
            TrainingDiverged: If the loss is not finite.
        """
        model.train()
        if not self._trains_encoder:
            self._trainable.model.backbone.train(False)  # no dropout in the inputs of the heads
        tokenized: TokenizedBatch = inputs["batch"]
        local = tokenized.shard
        queries, passages = (each.to(self.args.device) for each in (tokenized.queries, tokenized.passages))
        sparse_score = self._checkpoint.conventions.sparse_score
        objective = StageObjective(self._stage, self._modes, self._weights, sparse_score, local)
        with self.compute_loss_context_manager(), sdpa_kernel(_ATTENTION):
            loss = self._backward(model, queries, passages, self._monitor(objective), local.scale)
        if not torch.isfinite(loss.total):
            raise TrainingDiverged(
                f"the loss is {float(loss.total)} at step {self.state.global_step} ({local.batch.source}); lower "
                f"learning_rate ({self._stage.encoder_rate}), raise temperature ({self._stage.temperature}), or train "
                "with precision='float32'"
            )
        self._means.add(loss.terms)
        return loss.total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Run the validation and log its metrics by search plan; the last one also as "best"."""
        values = self.validate() or {}
        metrics = {**{f"{_EVAL_PREFIX}{plan}": value for plan, value in values.items()}, _BEST_KEY: _last_value(values)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss and the lexical share to transformers' entries."""
        super().log({**logs, **self._means.pop()} if "loss" in logs else logs, start_time)

    def _backward(
        self, model: nn.Module, queries: TokenBatch, passages: TokenBatch, objective: Objective, scale: float
    ) -> Loss:
        texts, longest = (max(queries.ids.shape[side], passages.ids.shape[side]) for side in (0, 1))
        rows = max(1, self._sub_batch // longest) if self._trains_encoder else texts
        return GradientCache(model, rows, self._modes).backward(queries, passages, objective, scale)

    def _monitor(self, objective: StageObjective) -> Objective:
        def monitored(queries: Representations, passages: Representations) -> Loss:
            share = self._lexical_monitor(passages)
            if share is not None:
                self._means.add({"lexical_share": share})
            return objective(queries, passages)

        return monitored

    @cached_property
    def _sub_batch(self) -> int:
        return self._stage.sub_batch or default_sub_batch(self._trainable)

    @cached_property
    def _trains_encoder(self) -> bool:
        """Whether the encoder is trained; a frozen one needs no sub-batches."""
        return any(name.startswith(_ENCODER_PREFIX) for name, _ in self.trainable_parameters())

    @property
    def _weights(self) -> Mapping[Mode, float]:
        return self._stage.weights or self._checkpoint.conventions.weights

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.trainable_parameters()}, folder / SAFE_WEIGHTS_NAME
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Ignore the frozen parameters missing from a checkpoint."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """Result of a stage.

    Attributes:
        before: Validation metric by search plan before training; None without validation.
        after: Validation metric by search plan of the best checkpoint; None without validation.
        kept: False if no checkpoint was better than the initial weights, which were restored.
        log: Log entries, each with its "step".
    """

    before: Mapping[str, float] | None
    after: Mapping[str, float] | None
    kept: bool
    log: list[dict[str, float]]


def _last_complete_checkpoint(folder: Path, processes: int) -> str | None:
    """Path of the last complete checkpoint; None without one.

    transformers writes a checkpoint file by file, its state last, and by itself resumes from the highest number even if
    that checkpoint is incomplete.
    """
    complete = [
        (state["global_step"], str(each))
        for each in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (state := _read_state(each)) and len(list(each.glob("rng_state*.pth"))) >= processes
    ]
    return max(complete)[1] if complete else None


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return state


def _make_optimizer(model: TrainableM3, stage: Stage) -> torch.optim.AdamW:
    """AdamW with the heads' own learning rate and no weight decay of biases and norms."""
    rates = {True: stage.encoder_rate, False: stage.head_learning_rate}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name.endswith(_NO_DECAY) else stage.weight_decay
            groups.setdefault((rates[name.startswith(_ENCODER_PREFIX)], decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    )


def _only_batch(batches: list[dict[str, TokenizedBatch]]) -> dict[str, TokenizedBatch]:
    return batches[0]


def _last_value(metrics: Mapping[str, float]) -> float:
    return list(metrics.values())[-1]
