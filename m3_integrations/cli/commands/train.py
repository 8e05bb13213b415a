"""`m3 mine` and `m3 train`: hard negatives and fine-tuning."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from m3_integrations.cli.opening import require_index
from m3_integrations.cli.options import Model, prepare_output, split_commas
from m3_integrations.cli.output import CommandResult, terminal


def mine(
    source: Annotated[Path, typer.Argument(help="A BEIR folder, or a .jsonl, .json or .tsv file of examples.")],
    out: Annotated[Path, typer.Argument(help="File for the examples, such as mined.jsonl; .gz compresses it.")],
    index: Annotated[
        Path | None, typer.Option(help="Index to mine from; by default the passages of the source.")
    ] = None,
    negatives: Annotated[int, typer.Option(help="Negatives per question.")] = 7,
    first: Annotated[int, typer.Option(help="Best rank to take a negative from.")] = 1,
    last: Annotated[int, typer.Option(help="Worst rank to take a negative from.")] = 100,
    margin: Annotated[
        float | None, typer.Option(help="Skip passages scoring above (1 - margin) times the positive's score.")
    ] = None,
    flag_embedding: Annotated[
        bool, typer.Option("--flag-embedding", help="Write the field names of FlagEmbedding.")
    ] = False,
    model: Model = "m3-mini",
) -> CommandResult:
    """Mine hard negatives. They rank high for a question and do not answer it."""
    from m3_integrations import M3Encoder
    from m3_integrations.training import Margin, MiningOptions, load_examples, mine_each, open_retriever, write_mined

    if index is not None:
        require_index(index)
    prepare_output(out)
    mining = MiningOptions(negatives, first, last, None if margin is None else Margin(relative=margin))
    examples, encoder = load_examples(source), M3Encoder.from_pretrained(model)
    with open_retriever(encoder, source, examples, index) as retriever:
        fields: Any = "flag_embedding" if flag_embedding else "m3"
        report = write_mined(out, mine_each(examples, retriever, mining), fields)
    data = {"out": str(out), **asdict(report)}
    return CommandResult(data, lambda: terminal.print(str(report)))


def train(
    out: Annotated[Path, typer.Argument(help="New folder for the model.")],
    sources: Annotated[list[Path], typer.Argument(help="BEIR folders or files of examples, as `m3 mine` writes them.")],
    model: Model = "m3-mini",
    pairs: Annotated[
        list[Path] | None, typer.Option(help="Pairs for a first contrastive stage, dense only; repeatable.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="BEIR folder whose dev questions select the best checkpoint.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Batches per stage; overrides --epochs.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the examples.")] = 1,
    warm_up: Annotated[int, typer.Option(help="Steps that train the heads alone first.")] = 0,
    parts: Annotated[str, typer.Option(help="Parts to train.")] = "encoder,sparse,multi_vector",
    low_rank: Annotated[int | None, typer.Option(help="Train a low-rank update (LoRA) of this rank instead.")] = None,
    rows: Annotated[int | None, typer.Option(help="Maximum questions per batch.")] = 32,
    tokens: Annotated[int, typer.Option(help="Maximum tokens per batch.")] = 16384,
    negatives: Annotated[int, typer.Option(help="Maximum hard negatives per question.")] = 3,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the encoder; default 1e-5, or 2e-4 with --low-rank.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of the softmax over scores.")] = 0.02,
    metric: Annotated[str, typer.Option(help="Metric that selects the best checkpoint.")] = "ndcg@10",
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
) -> CommandResult:
    """Fine-tune a model in all modes. Run again to resume; for several GPUs use torchrun."""
    from m3_integrations.core.optional import import_optional

    import_optional("accelerate", extra="train")
    from m3_integrations import training
    from m3_integrations.data import read_beir

    labeled = {str(path): training.load_examples(path) for path in sources}
    sampling = training.Sampling(tokens=tokens, rows=rows, negatives=negatives, seed=seed)
    trained_parts: Any = tuple(split_commas(parts))
    common = {"temperature": temperature, "low_rank": low_rank, "learning_rate": learning_rate}
    stages = [training.unified(labeled, steps=steps, epochs=epochs, parts=trained_parts, sampling=sampling, **common)]
    if warm_up:
        stages.insert(0, training.warm_up(labeled, steps=warm_up, temperature=temperature, sampling=sampling))
    if pairs:
        pair_sampling = training.Sampling(tokens=tokens, rows=rows, negatives=0, seed=seed)
        unlabeled = {str(path): training.load_examples(path) for path in pairs}
        stages.insert(0, training.contrastive(unlabeled, steps=steps, epochs=epochs, sampling=pair_sampling, **common))
    held_out = None if validation is None else training.Validation(read_beir(validation, "dev"), metric)
    config = training.TrainConfig(seed=seed, show_progress=terminal.shows_progress)
    trained = training.train(model, stages, out, validation=held_out, config=config)
    results = [{"before": stage.before, "after": stage.after, "kept": stage.kept} for stage in trained.stages]
    return CommandResult({"model": str(trained.folder), "stages": results}, lambda: terminal.print(str(trained)))
