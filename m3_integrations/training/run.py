"""Resumable training runs: a checkpoint and stages in, a model folder out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from m3_integrations.core.encoded import MODES
from m3_integrations.core.files import replace_text
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.models.conventions import Pooling
from m3_integrations.models.tokenization import SequenceTokenizer
from m3_integrations.training.data.sampler import Sampler
from m3_integrations.training.monitoring import Validation
from m3_integrations.training.objective.model import TrainableM3
from m3_integrations.training.preparation import ENCODER_PARTS, LoRA, add_heads, select_parts, set_dropout
from m3_integrations.training.stages import Stage
from m3_integrations.training.trainer import M3Trainer, StageResult, TrainConfig

LOG_FILE = "training_log.jsonl"
MODEL_FOLDER = "model"
RUN_FILE = "asked.json"  # the arguments of an unfinished run


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Result of training: the folder of the model, and the result of each stage."""

    folder: Path
    stages: tuple[StageResult, ...]

    def __str__(self) -> str:
        lines = [f"Model saved in {self.folder}"]
        for number, stage in enumerate(self.stages, start=1):
            if stage.before is not None and stage.after is not None:
                metrics = (f"{plan} {stage.before[plan]:.3f} -> {stage.after[plan]:.3f}" for plan in stage.after)
                restored = "" if stage.kept else "; no improvement, initial weights restored"
                lines.append(f"stage {number}: {', '.join(metrics)}{restored}")
        return "\n".join(lines)


def train(
    model: str,
    stages: Sequence[Stage],
    folder: str | Path,
    *,
    validation: Validation | None = None,
    config: TrainConfig | None = None,
    multi_vector_dim: int | None = None,
    pooling: Pooling | None = None,
    revision: str | None = None,
) -> TrainingReport:
    """Train a model stage by stage and save it as a folder.

    `M3Encoder.from_pretrained` and FlagEmbedding load the folder. An interrupted run resumes from its last checkpoint
    if it is called again with the same arguments. Checkpoints are in <folder>.training, which is removed at the end.
    Under `torchrun`, all processes call this function and share each batch.

    Args:
        model: "m3-mini", a folder, or a hub id. Heads that it lacks and a stage needs are added.
        stages: At least one stage.
        folder: New folder for the model.
        validation: Evaluation before, during and after each stage, which selects its best checkpoint; None to keep the
            last.
        config: Options of the run; None for the defaults.
        multi_vector_dim: Dimensions of an added multi-vector head; None for the model's hidden size.
        pooling: Pooling of the dense vector, as in `M3Encoder.from_pretrained`.
        revision: Revision of a hub id.

    Returns:
        The folder of the model, and the results of the stages.

    Raises:
        ValueError: If there is no stage, nothing to train, or <folder>.training belongs to a different run.
        FileExistsError: If the folder holds a model.
        TrainingDiverged: If a loss is not finite.
    """
    config, target = config or TrainConfig(), Path(folder)
    if not stages:
        raise ValueError("stages is empty; pass [unified({'name': examples})]")
    if (target / checkpoints.OWN_FILE).is_file():
        raise FileExistsError(f"{target} holds a model; choose a new folder")
    work = target.with_name(f"{target.name}.training")
    PartialState(cpu=config.use_cpu)  # joins the processes of torchrun before one of them is asked to be the main one
    current = checkpoints.read(model, revision=revision, pooling=pooling)
    results: list[StageResult] = []
    for number, stage in enumerate(stages, start=1):
        stage_folder = work / f"stage-{number}"
        arguments = {"model": model, "seed": config.seed, "width": multi_vector_dim, **_describe_stage(stage)}
        _check_same_run(stage_folder / RUN_FILE, arguments)
        finished = _read_finished(stage_folder)
        current, result = finished or _run_stage(current, stage, stage_folder, validation, config, multi_vector_dim)
        results.append(result)
        with _main_process_first() as is_main:
            if is_main and not (stage_folder / MODEL_FOLDER).is_dir():
                _save(current, stage_folder / MODEL_FOLDER, results)
    with _main_process_first() as is_main:
        if is_main:
            (stage_folder / MODEL_FOLDER).rename(target)
            for number in range(1, len(stages) + 1):
                shutil.rmtree(work / f"stage-{number}")
            work.rmdir()
    return TrainingReport(target, tuple(results))


def _run_stage(
    checkpoint: Checkpoint,
    stage: Stage,
    folder: Path,
    validation: Validation | None,
    config: TrainConfig,
    multi_vector_dim: int | None,
) -> tuple[Checkpoint, StageResult]:
    """Train one stage, with its checkpoints in `folder`."""
    set_seed(config.seed)
    if _needs_heads(stage):
        checkpoint = add_heads(checkpoint, multi_vector_dim, stage.modes or MODES)
    model = TrainableM3.from_checkpoint(checkpoint)
    parts = select_parts(stage.modes or tuple(model.heads.modes), stage.parts, model)
    low_rank = stage.low_rank if ENCODER_PARTS & set(parts) else None
    model.train_only([part for part in parts if part not in ENCODER_PARTS or low_rank is None])
    update = LoRA(model, low_rank) if low_rank else None
    set_dropout(model, stage.dropout)
    trainer = M3Trainer(model, checkpoint, stage, make_sampler(checkpoint, stage), folder, validation, config)
    result = trainer.run()
    if update is not None:
        update.merge()
    model.to("cpu").train_only(())
    return model.to_checkpoint(checkpoint), result


@contextmanager
def _main_process_first() -> Iterator[bool]:
    """Run the block in the main process first; yield whether this process is the main one."""
    state = PartialState()
    with state.main_process_first():
        yield state.is_main_process


def _describe_stage(stage: Stage) -> dict[str, Any]:
    """The stage's options as JSON values, with the number of examples of each source."""
    fields = {name: value for name, value in asdict(replace(stage, sources={})).items() if name != "sources"}
    sizes = {name: len(examples) for name, examples in stage.sources.items()}
    description: dict[str, Any] = json.loads(json.dumps({**fields, "sources": sizes}))
    return description


def _check_same_run(path: Path, arguments: Mapping[str, Any]) -> None:
    if not PartialState().is_main_process:
        return
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(arguments))
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    names = {*earlier, *arguments} - {"sub_batch"}  # which bounds memory and leaves the gradient as it is
    changed = sorted(name for name in names if earlier.get(name) != arguments.get(name))
    if changed:
        raise ValueError(
            f"{path.parent.parent} holds an unfinished run with different {', '.join(changed)}; pass the same values "
            "to resume it, or choose a new folder"
        )


def _needs_heads(stage: Stage) -> bool:
    modes = {"dense", "sparse", "multi_vector"} if stage.modes is None else set(stage.modes)
    return bool(modes & {"sparse", "multi_vector"} & set(stage.parts))


def make_sampler(checkpoint: Checkpoint, stage: Stage) -> Sampler:
    """Build the sampler of a stage for a checkpoint's tokenizer and length limits."""
    conventions = checkpoint.conventions
    tokenizer = SequenceTokenizer(checkpoint.tokenizer, checkpoint.special, conventions.max_length)

    def token_count(texts: Sequence[str]) -> list[int]:
        return tokenizer.count(texts, conventions.passage_prefix)

    query, passage = stage.sampling.max_lengths(conventions.max_length)
    return Sampler(stage.sources, token_count, replace(stage.sampling, longest_query=query, longest_passage=passage))


def _save(checkpoint: Checkpoint, folder: Path, results: Sequence[StageResult]) -> None:
    """Save a checkpoint and the log to a temporary neighbor of the folder, then rename it."""
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    checkpoints.save(checkpoint, temporary, checkpoint.conventions)
    lines = [json.dumps({"stage": number, **asdict(each)}) for number, each in enumerate(results, start=1)]
    (temporary / LOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.rename(folder)


def _read_finished(stage_folder: Path) -> tuple[Checkpoint, StageResult] | None:
    """The checkpoint and result of a stage finished earlier; None if it is unfinished."""
    folder = stage_folder / MODEL_FOLDER
    if not folder.is_dir():
        return None
    *_, latest = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()  # preceded by those of earlier stages
    values = json.loads(latest)
    values.pop("stage")
    return checkpoints.read(str(folder)), StageResult(**values)
