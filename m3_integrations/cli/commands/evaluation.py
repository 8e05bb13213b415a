"""`m3 eval`: how well an index answers judged questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from m3_integrations.cli.commands.index import update_index
from m3_integrations.cli.opening import load_encoder, require_index
from m3_integrations.cli.options import IndexModel, UsageError, split_commas
from m3_integrations.cli.output import CommandResult, table, terminal
from m3_integrations.cli.sources import read_sources

if TYPE_CHECKING:
    from m3_integrations import LocalIndex, M3Encoder, Query
    from m3_integrations.evaluation import Metric, PlanRun

OWN = "plan of the index"


def eval_(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="A BEIR folder; a file of queries and one of TREC or BEIR qrels; a click log (.jsonl, .csv, .tsv); or "
            "a question-answer dataset (.json).",
        ),
    ],
    index: Annotated[
        Path | None, typer.Option("--index", "-i", help="Index to search; by default the passages of the BEIR folder.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a BEIR folder.")] = "test",
    metrics: Annotated[
        str,
        typer.Option(help="ndcg@k, recall@k, mrr@k, precision@k, accuracy@k, ap@k; plans are compared by the first."),
    ] = "ndcg@10,recall@10,mrr@10",
    k: Annotated[int, typer.Option("--k", "-k", help="Passages per question, at least those of the metrics.")] = 10,
    baseline: Annotated[str | None, typer.Option(help="Plan to compare with; by default the first.")] = None,
    runs: Annotated[list[Path] | None, typer.Option("--run", help="TREC run file to compare; repeatable.")] = None,
    save_runs: Annotated[Path | None, typer.Option(help="Folder for a TREC run file of each plan.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="Fail if the default plan is below this, such as ndcg@10=0.80; repeatable."),
    ] = None,
    model: IndexModel = None,
) -> CommandResult:
    """Measure search on judged questions. Each mode, their sums and the plan of the index are compared."""
    from m3_integrations.data import load_queries

    limits = dict(map(_parse_limit, fail_under or ()))
    names = list(dict.fromkeys((*split_commas(metrics), *limits)))
    depth = max(k, *(_parse_metric(name).k for name in names))
    if index is not None:
        require_index(index)
    elif len(data) != 1 or not data[0].is_dir():
        raise UsageError("name an index with --index; only a BEIR folder brings its passages")
    queries, others = load_queries(data, split), _read_runs(runs or ())
    with _open(index, data[0], model) as (encoder, opened):
        own = _run_plans(encoder, opened, queries, depth)
        judged = {id for query in queries for id in query.relevant}
        missing = len(judged) - len(opened.content_hashes(judged))
    if save_runs is not None:
        _save_runs(save_runs, own)
    found = {**own, **others}
    default = OWN if OWN in own else list(own)[-1]
    figures = _figures(found, queries, names, _check_baseline(baseline, found))
    short = _shortfalls(figures["plans"][default]["metrics"], limits, default)
    counts = {"index": None if index is None else str(index), "questions": len(queries), "missing": missing}
    result = {"data": list(map(str, data)), **counts, "default": default, **figures, "shortfalls": short}
    return CommandResult(result, lambda: _show(result), failed=bool(short))


@contextmanager
def _open(index: Path | None, beir: Path, model: str | None) -> Iterator[tuple[M3Encoder, LocalIndex]]:
    """Open an index, or a temporary one of the passages of a BEIR folder."""
    from m3_integrations import LocalIndex

    with TemporaryDirectory() as temporary:
        folder = index or Path(temporary) / "index"
        found = None if index is not None else read_sources([str(beir)], folder)
        encoder = load_encoder(folder, model)
        with LocalIndex.open(folder, encoder) as opened:
            if found is not None:
                update_index(folder, opened, encoder, found)
            yield encoder, opened


def _run_plans(encoder: M3Encoder, index: LocalIndex, queries: Sequence[Query], k: int) -> dict[str, PlanRun]:
    """Search by each mode alone, dense + sparse, all modes, and the plan of the index if it has one."""
    from m3_integrations.evaluation import default_plans, run_plans

    plans = default_plans(encoder.weights_for(encoder.modes & index.modes))
    if index.plan is not None:
        plans[OWN] = index.plan
    return run_plans(encoder, index, queries, plans, k)


def _read_runs(files: Sequence[Path]) -> dict[str, PlanRun]:
    from m3_integrations.data import read_run
    from m3_integrations.evaluation import PlanRun

    return {file.name.partition(".")[0]: PlanRun(read_run(file)) for file in files}


def _save_runs(folder: Path, runs: Mapping[str, PlanRun]) -> None:
    from m3_integrations.data import write_run

    folder.mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        tag = name.replace(" + ", "+").replace(" ", "-")
        write_run(folder / f"{tag}.trec", run.hits, tag)


def _figures(
    runs: Mapping[str, PlanRun], queries: Sequence[Query], metrics: Sequence[str], base: str
) -> dict[str, Any]:
    """Return the means of each plan, and its gain over the baseline in the first metric with a 95 % interval."""
    from m3_integrations.evaluation import bootstrap_interval, evaluate, values_by_query

    first, reference = metrics[0], values_by_query(runs[base].ids, queries, metrics[0])
    plans = {}
    for name, run in runs.items():
        gains = values_by_query(run.ids, queries, first) - reference
        low, high = bootstrap_interval(gains)
        latency = 1000 * median(run.seconds) if run.seconds else None
        gain = {"gain": float(gains.mean()), "low": low, "high": high}
        plans[name] = {"metrics": evaluate(run.ids, queries, metrics), **gain, "latency_ms": latency}
    return {"baseline": base, "plans": plans}


def _show(result: Mapping[str, Any]) -> None:
    metrics = list(next(iter(result["plans"].values()))["metrics"])
    rows = table("plan", *(f"{name}>" for name in metrics), f"{metrics[0]} over {result['baseline']} [95 %]>", "ms>")
    for name, plan in result["plans"].items():
        gain = "" if name == result["baseline"] else f"{plan['gain']:+.3f} [{plan['low']:+.3f}, {plan['high']:+.3f}]"
        latency = "" if plan["latency_ms"] is None else f"{plan['latency_ms']:.1f}"
        values = (f"{plan['metrics'][metric]:.3f}" for metric in metrics)
        rows.add_row(escape(name), *values, escape(gain), latency)
    terminal.print(rows)
    terminal.print((f"{result['questions']} questions; searches use the {result['default']} plan by default", "dim"))
    if result["missing"]:
        terminal.warn(f"the index lacks {result['missing']} of the judged passages")
    for each in result["shortfalls"]:
        terminal.error(f"{each['metric']} of the default plan is {each['value']:.3f}, below {each['least']:g}")


def _parse_metric(name: str) -> Metric:
    from m3_integrations.evaluation import Metric

    try:
        return Metric.parse(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _parse_limit(text: str) -> tuple[str, float]:
    metric, _, least = text.partition("=")
    _parse_metric(metric)
    try:
        return metric, float(least)
    except ValueError:
        raise UsageError(f"--fail-under is a metric and a number, such as ndcg@10=0.80, got {text!r}") from None


def _check_baseline(baseline: str | None, runs: Mapping[str, PlanRun]) -> str:
    if baseline is not None and baseline not in runs:
        raise UsageError(f"--baseline is one of {', '.join(runs)}, got {baseline!r}")
    return baseline or next(iter(runs))


def _shortfalls(values: Mapping[str, float], limits: Mapping[str, float], default: str) -> list[dict[str, Any]]:
    return [
        {"metric": metric, "plan": default, "value": values[metric], "least": least}
        for metric, least in limits.items()
        if not values[metric] >= least
    ]
