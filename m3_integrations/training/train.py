"""Training from end to end: a checkpoint, stages of examples, a folder with the model that came of it."""

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

from m3_integrations.core import checkpoint as checkpoints
from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.model import Pooling
from m3_integrations.core.sequences import Sequencer
from m3_integrations.training.model import TrainableM3
from m3_integrations.training.parts import ENCODERS, LowRank, parts_of, set_dropout, with_heads
from m3_integrations.training.sampling import Sampler
from m3_integrations.training.stages import Stage
from m3_integrations.training.trainer import Loop, M3Trainer, Outcome
from m3_integrations.training.watching import Validation

LOG = "training_log.jsonl"
MODEL = "model"
ASKED = "asked.json"  # what a run that was stopped was asked for


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of training: the folder with the model, and how each stage went."""

    folder: Path
    stages: tuple[Outcome, ...]

    def __str__(self) -> str:
        lines = [f"The model is in {self.folder}"]
        for number, stage in enumerate(self.stages, start=1):
            if stage.before is not None and stage.after is not None:
                moved = ", ".join(f"{plan} {stage.before[plan]:.3f} -> {stage.after[plan]:.3f}" for plan in stage.after)
                lines.append(
                    f"stage {number}: {moved}" + ("" if stage.kept else "; left as it began, which was better")
                )
        return "\n".join(lines)


def train(
    model: str,
    stages: Sequence[Stage],
    folder: str | Path,
    *,
    validation: Validation | None = None,
    loop: Loop | None = None,
    width: int | None = None,
    pooling: Pooling | None = None,
    revision: str | None = None,
) -> Trained:
    """Train a model stage by stage, and save it as a folder that `M3Encoder.from_pretrained` and FlagEmbedding load.

    model: "m3-mini", a folder, or a hub id; heads that it lacks and a stage needs are made. width: of a multi-vector
    head that is made; None is the model's own. pooling, revision: as in `M3Encoder.from_pretrained`.
    validation: questions that pick the best model of a stage, measured before, in between and after.
    Called again with the same arguments after it was stopped, it goes on from the last checkpoint, in FOLDER.training,
    which goes when all is done. Under `torchrun` every process calls it, and the batch is shared between them.
    Raises ValueError without stages, where nothing would learn, and where FOLDER.training is of another run;
    FileExistsError where the folder holds a model; TrainingDiverged where a loss is no number.
    """
    loop, target = loop or Loop(), Path(folder)
    if not stages:
        raise ValueError("there is no stage; pass [unified({'name': examples})]")
    if (target / checkpoints.OWN_FILE).is_file():
        raise FileExistsError(f"{target} holds a model already; name a new folder")
    work = target.with_name(f"{target.name}.training")
    current = checkpoints.read(model, revision=revision, pooling=pooling)
    outcomes: list[Outcome] = []
    for number, stage in enumerate(stages, start=1):
        place = work / f"stage-{number}"
        _require_same(place / ASKED, {"model": model, "seed": loop.seed, "width": width, **_asked(stage)})
        current, outcome = _finished(place) or _staged(current, stage, place, validation, loop, width)
        outcomes.append(outcome)
        with _by_the_first() as mine:
            if mine and not (place / MODEL).is_dir():
                _save(current, place / MODEL, outcomes)
    with _by_the_first() as mine:
        if mine:
            (place / MODEL).rename(target)
            for number in range(1, len(stages) + 1):
                shutil.rmtree(work / f"stage-{number}")
            work.rmdir()
    return Trained(target, tuple(outcomes))


def _staged(
    checkpoint: Checkpoint, stage: Stage, place: Path, validation: Validation | None, loop: Loop, width: int | None
) -> tuple[Checkpoint, Outcome]:
    """The checkpoint after one stage, whose own checkpoints stand in `place`."""
    set_seed(loop.seed)
    needed = with_heads(checkpoint, width) if _wants_heads(stage) else checkpoint
    model = TrainableM3.of(needed)
    parts = parts_of(stage.modes or tuple(model.heads.modes), stage.parts, model)
    low_rank = stage.low_rank if ENCODERS & set(parts) else None
    model.train_only([part for part in parts if part not in ENCODERS or low_rank is None])
    update = LowRank(model, low_rank) if low_rank else None
    set_dropout(model, stage.dropout)
    trainer = M3Trainer(model, needed, stage, _sampler(needed, stage), place, validation, loop)
    outcome = trainer.run()
    if update is not None:
        update.merge()
    model.to("cpu").train_only(())
    return model.into(needed), outcome


@contextmanager
def _by_the_first() -> Iterator[bool]:
    """Whether this process is the first, which the others wait for."""
    state = PartialState()
    with state.main_process_first():
        yield state.is_main_process


def _asked(stage: Stage) -> dict[str, Any]:
    """All that a stage learns from and by, as JSON has it; of its examples, how many there are."""
    fields = {name: value for name, value in asdict(replace(stage, sources={})).items() if name != "sources"}
    sizes = {name: len(examples) for name, examples in stage.sources.items()}
    said: dict[str, Any] = json.loads(json.dumps({**fields, "sources": sizes}))
    return said


def _require_same(path: Path, asked: Mapping[str, Any]) -> None:
    if not PartialState().is_main_process:
        return
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asked), encoding="utf-8")
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if begun != asked:
        others = sorted(name for name in {*begun, *asked} if begun.get(name) != asked.get(name))
        raise ValueError(
            f"{path.parent.parent} is of a run that was stopped, and that was asked for other {', '.join(others)}; "
            "repeat it as it was to go on, or remove that folder to begin anew"
        )


def _wants_heads(stage: Stage) -> bool:
    modes = {"dense", "sparse", "multi_vector"} if stage.modes is None else set(stage.modes)
    return bool(modes & {"sparse", "multi_vector"} & set(stage.parts))


def _sampler(checkpoint: Checkpoint, stage: Stage) -> Sampler:
    conventions = checkpoint.conventions
    sequencer = Sequencer(checkpoint.tokenizer, checkpoint.special, conventions.max_length)

    def token_count(texts: Sequence[str]) -> list[int]:
        return sequencer.count(texts, conventions.passage_prefix)

    query, passage = stage.sampling.longest(conventions.max_length)
    return Sampler(stage.sources, token_count, replace(stage.sampling, longest_query=query, longest_passage=passage))


def _save(checkpoint: Checkpoint, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """A whole folder or none: written beside its place and renamed."""
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    checkpoints.save(checkpoint, unfinished, checkpoint.conventions)
    lines = [json.dumps({"stage": number, **asdict(each)}) for number, each in enumerate(outcomes, start=1)]
    (unfinished / LOG).write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.rename(folder)


def _finished(place: Path) -> tuple[Checkpoint, Outcome] | None:
    """What a stage left that was done before training was stopped."""
    folder = place / MODEL
    if not folder.is_dir():
        return None
    *_, latest = (folder / LOG).read_text(encoding="utf-8").splitlines()  # those before it are earlier stages'
    said = json.loads(latest)
    said.pop("stage")
    return checkpoints.read(str(folder)), Outcome(**said)
