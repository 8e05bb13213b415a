"""`m3 eval`: how well an index answers judged questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer
from rich.markup import escape
from rich.table import Table

from m3_integrations.cli.commands.index import update_index
from m3_integrations.cli.opening import load_encoder, require_index
from m3_integrations.cli.options import IndexModel, UsageError, check_k, prepare_folder, prepare_output, split_commas
from m3_integrations.cli.output import CommandResult, table, terminal
from m3_integrations.cli.progress import ingest_progress
from m3_integrations.cli.sources import read_sources
from m3_integrations.core.optional import import_optional

if TYPE_CHECKING:
    from m3_integrations import LocalIndex, M3Encoder, Query, SearchPlan
    from m3_integrations.evaluation import Metric, PlanRun

OWN, FLOOR = "plan of the index", "BM25"
CATALOG = "catalogue.sqlite"
LanguageTable: TypeAlias = Mapping[str, Mapping[str, float]]


DataFiles: TypeAlias = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA",
        help="A BEIR folder; a file of queries and one of TREC or BEIR qrels; a click log (.jsonl, .csv, .tsv); or "
        "a question-answer dataset (.json).",
    ),
]


def eval_(
    data: DataFiles,
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
    plans: Annotated[
        list[str] | None,
        typer.Option("--plan", help="Search plan to compare: NAME=FILE, or NAME={...}, as m3 info --json has it."),
    ] = None,
    versus: Annotated[
        list[str] | None,
        typer.Option(help="Another index, or a model to encode the same passages with; repeatable."),
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="Compare with BM25, as the baseline (extra eval).")] = False,
    languages: Annotated[
        bool, typer.Option("--languages", help="By language, and each language of questions in each of passages.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write an HTML page with the questions that gain and lose.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="Fail if the default plan is below this, such as ndcg@10=0.80; repeatable."),
    ] = None,
    model: IndexModel = None,
) -> CommandResult:
    """Measure search on judged questions. Modes, their combinations and plans are compared, also with other models."""
    from m3_integrations.data import load_queries

    limits = dict(map(_parse_limit, fail_under or ()))
    names = list(dict.fromkeys((*split_commas(metrics), *limits)))
    depth = max(check_k(k), *(_parse_metric(name).k for name in names))
    named = dict(map(_parse_plan, plans or ()))
    if bm25:
        import_optional("bm25s", extra="eval")
    if index is not None:
        require_index(index)
    elif len(data) != 1 or not data[0].is_dir():
        raise UsageError("name an index with --index; only a BEIR folder brings its passages")
    prepare_output(out)
    prepare_folder(save_runs)
    queries, others = load_queries(data, split), _read_runs(runs or ())
    asked = _Comparison(
        data, queries, names, depth, named, others, versus or (), bm25, languages, baseline, out, save_runs
    )
    with _open(index, data[0], model) as (encoder, opened):
        measured = _compare(encoder, opened, asked)
    short = _shortfalls(measured["plans"][measured["default"]]["metrics"], limits, measured["default"])
    counts = {"index": None if index is None else str(index), "questions": len(queries)}
    result = {"data": list(map(str, data)), **counts, **measured}
    last = {name: result.pop(name) for name in ("languages", "cross_lingual", "out")}
    result |= {"shortfalls": short, **last}
    return CommandResult(result, lambda: _show(result), failed=bool(short))


class _Comparison(NamedTuple):
    """What `m3 eval` compares, and where it writes."""

    data: Sequence[Path]
    queries: Sequence[Query]
    metrics: Sequence[str]
    depth: int
    plans: Mapping[str, SearchPlan]
    runs: Mapping[str, PlanRun]
    versus: Sequence[str]
    bm25: bool
    languages: bool
    baseline: str | None
    out: Path | None
    save_runs: Path | None


def _compare(encoder: M3Encoder, index: LocalIndex, asked: _Comparison) -> dict[str, Any]:
    """Search with every plan, and return the fields of the document that follow."""
    queries, depth = asked.queries, asked.depth
    floor = {FLOOR: _run_bm25(index, queries, depth)} if asked.bm25 else {}
    own = _run_plans(encoder, index, queries, asked.plans, depth)
    if asked.save_runs is not None:
        _save_runs(asked.save_runs, {**floor, **own})
    found = {**floor, **own, **asked.runs}
    for other in asked.versus:
        found |= _run_versus(other, index, queries, asked.plans, depth)
    default = OWN if OWN in own else list(own)[len(own) - 1 - len(asked.plans)]
    figures = _figures(found, queries, asked.metrics, _check_baseline(asked.baseline, found))
    tables: tuple[LanguageTable | None, LanguageTable | None] = (None, None)
    if asked.languages:
        tables = _language_tables(asked.data[0], encoder, index, queries, found, asked.metrics[0])
    if asked.out is not None:
        _write_page(asked, default, figures, found, tables, index)
    judged = {id for query in queries for id in query.relevant}
    missing = {"missing": len(judged) - len(index.content_hashes(judged)), "default": default}
    out = None if asked.out is None else str(asked.out)
    return {**missing, **figures, "languages": tables[0], "cross_lingual": tables[1], "out": out}


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


def _run_plans(
    encoder: M3Encoder, index: LocalIndex, queries: Sequence[Query], named: Mapping[str, SearchPlan], k: int
) -> dict[str, PlanRun]:
    """Search by each mode alone, every combination, the plan of the index if it has one, and the plans named."""
    from m3_integrations.evaluation import combined_plans, run_plans

    plans = combined_plans(encoder, index)
    if index.plan is not None:
        plans[OWN] = index.plan
    return run_plans(encoder, index, queries, {**plans, **named}, k)


def _run_versus(
    other: str, index: LocalIndex, queries: Sequence[Query], named: Mapping[str, SearchPlan], k: int
) -> dict[str, PlanRun]:
    """Search another index, or the same passages encoded with another model; names begin with it."""
    from m3_integrations import LocalIndex, M3Encoder, ingest

    with TemporaryDirectory() as temporary:
        if (Path(other) / CATALOG).is_file():
            require_index(Path(other))
            encoder, folder = load_encoder(Path(other), None), Path(other)
        else:
            encoder, folder = M3Encoder.from_pretrained(other), Path(temporary) / "index"
        with LocalIndex.open(folder, encoder) as opened:
            if not opened.modes:
                with ingest_progress(len(index)) as on_progress:
                    ingest(encoder, opened, index.passages(), on_progress=on_progress)
            found = _run_plans(encoder, opened, queries, named, k)
    return {f"{other}: {name}": run for name, run in found.items()}


def _run_bm25(index: LocalIndex, queries: Sequence[Query], k: int) -> PlanRun:
    from m3_integrations.evaluation import BM25, PlanRun

    searcher, hits, seconds = BM25(index.passages()), {}, []
    for query in queries:
        began = perf_counter()
        hits[query.id] = searcher.search(query.text, k)
        seconds.append(perf_counter() - began)
    return PlanRun(hits, seconds)


def _read_runs(files: Sequence[Path]) -> dict[str, PlanRun]:
    from m3_integrations.data import read_run
    from m3_integrations.evaluation import PlanRun

    return {file.name.partition(".")[0]: PlanRun(read_run(file)) for file in files}


def _language_tables(
    data: Path,
    encoder: M3Encoder,
    index: LocalIndex,
    queries: Sequence[Query],
    runs: Mapping[str, PlanRun],
    metric: str,
) -> tuple[LanguageTable, LanguageTable]:
    """Return the metric of each ranking by language, and that of the default plan by language of both sides."""
    from m3_integrations.data import read_languages
    from m3_integrations.evaluation import cross_lingual_matrix, metrics_by_language

    stated = read_languages(data) if data.is_dir() or ".jsonl" in data.name else {}
    if not stated:
        raise ValueError(f'the questions of {data} state no language; add "lang" to each line of its queries.jsonl')
    by_language = metrics_by_language({name: run.ids for name, run in runs.items()}, queries, stated, metric)
    return by_language, cross_lingual_matrix(encoder, index, queries, stated, metric)


def _write_page(
    asked: _Comparison,
    default: str,
    figures: Mapping[str, Any],
    runs: Mapping[str, PlanRun],
    tables: tuple[LanguageTable | None, LanguageTable | None],
    index: LocalIndex,
) -> None:
    from m3_integrations.core.files import replace_text
    from m3_integrations.evaluation import EvaluationPage, outcomes, texts_of

    out, metric = asked.out or Path("eval.html"), asked.metrics[0]
    found = outcomes(runs[figures["baseline"]].ids, runs[default].ids, asked.queries, metric)
    page = EvaluationPage(
        title=", ".join(map(str, asked.data)),
        metric=metric,
        baseline=figures["baseline"],
        default=default,
        plans=figures["plans"],
        languages=tables[0] or {},
        cross_lingual=tables[1] or {},
        outcomes=found,
        texts=texts_of(index, found),
    )
    replace_text(out, page.render())


def _save_runs(folder: Path, runs: Mapping[str, PlanRun]) -> None:
    from m3_integrations.data import write_run

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
    terminal.print((f"{result['questions']} questions; the default is: {result['default']}", "dim"))
    for name, heading in (("languages", "by language"), ("cross_lingual", "questions in passages")):
        if result[name]:
            terminal.print((f"{metrics[0]} {heading}", "bold"))
            terminal.print(_language_table(result[name]))
    if result["missing"]:
        terminal.warn(f"the index lacks {result['missing']} of the judged passages")
    for each in result["shortfalls"]:
        terminal.error(f"{each['metric']} of the default plan is {each['value']:.3f}, below {each['least']:g}")


def _language_table(values: LanguageTable) -> Table:
    columns = list(dict.fromkeys(name for row in values.values() for name in row))
    rows = table("", *(f"{escape(name)}>" for name in columns))
    for language, row in values.items():
        rows.add_row(escape(language), *(f"{row[name]:.3f}" if name in row else "" for name in columns))
    return rows


def _parse_plan(text: str) -> tuple[str, SearchPlan]:
    from m3_integrations import SearchPlan
    from m3_integrations.core.errors import M3Error

    name, _, value = text.partition("=")
    try:
        stored = json.loads(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
        return name, SearchPlan.from_json(stored.get("plan", stored))
    except (OSError, ValueError, TypeError, AttributeError, M3Error) as error:
        raise UsageError(f"--plan is NAME=FILE or NAME={{...}}, got {text!r} ({error})") from error


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
