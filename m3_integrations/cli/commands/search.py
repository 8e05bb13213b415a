"""`m3 search` and `m3 explain`: search an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.padding import Padding
from rich.text import Text

from m3_integrations.cli.opening import open_for_queries, open_index, require_index
from m3_integrations.cli.options import (
    Filter,
    Folder,
    IndexModel,
    Modes,
    Question,
    TopK,
    UsageError,
    check_k,
    check_question,
    parse_filter,
    parse_modes,
    prepare_output,
    read_questions,
)
from m3_integrations.cli.output import CommandResult, escape_controls, on_one_line, terminal

if TYPE_CHECKING:
    from m3_integrations import Encoder, LocalIndex, M3Encoder, Passage, Retriever, SearchPlan
    from m3_integrations.core.encoded import Mode
    from m3_integrations.core.types import ScoreCalibration
    from m3_integrations.encoders.explain import Explanation, MatchedSpans
    from m3_integrations.retrieval import Match

EXCERPT = 200  # characters of a passage in a pipe
INDENT = 3
HIGHLIGHTED = 0.3  # least heat of a word that is highlighted, of the strongest


def search(
    folder: Folder,
    question: Question,
    k: TopK = 5,
    mode: Modes = "",
    where: Filter = None,
    explain: Annotated[bool, typer.Option("--explain", "-e", help="Show the words that matched.")] = False,
    min_relevance: Annotated[
        str | None,
        typer.Option(help="Least probability of a match, such as 0.5, or auto: the threshold of m3 calibrate."),
    ] = None,
    model: IndexModel = None,
) -> None:
    """Search an index. The search plan is that of the index, such as the weights chosen with a nudge."""
    check_k(k)
    check_question(question)
    modes, condition, least = parse_modes(mode), parse_filter(where), _parse_relevance(min_relevance)
    require_index(folder)
    opened = open_index(folder, model) if explain else open_for_queries(folder, model)
    with _retriever(*opened, modes) as retriever:
        if least is not None:
            _require_calibration(folder, retriever)
        for each in read_questions(question):
            matches = _relevant(retriever, retriever.retrieve(each, k, condition), least)
            explanations = [_explain(retriever, each, match.passage) for match in matches] if explain else None
            terminal.show("search", _result(folder, each, matches, explanations, retriever))


@contextmanager
def _retriever(encoder: Encoder, opened: LocalIndex, modes: tuple[Mode, ...] | None) -> Iterator[Retriever]:
    """Search an open index by these modes, or by its own plan, and close it."""
    from m3_integrations import Retriever, SearchPlan

    with opened as index:
        own = index.plan or _plan_of_earlier_version(encoder, index)
        yield Retriever(encoder, index, SearchPlan(propose=modes, modes=modes) if modes else own)


def _parse_relevance(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return None if text is None else "auto"
    try:
        least = float(text)
    except ValueError:
        least = -1.0
    if not 0 <= least <= 1:
        raise UsageError(f"--min-relevance is a probability, such as 0.5, or auto, got {text!r}")
    return least


def _require_calibration(folder: Path, retriever: Retriever) -> ScoreCalibration:
    """Return the calibration of the plan.

    Raises:
        ValueError: If it has none.
    """
    if retriever.calibration is None:
        raise ValueError(
            f"--min-relevance needs the plan of a calibrated index; run: m3 calibrate {folder} JUDGED, and leave out "
            "--mode"
        )
    return retriever.calibration


def _relevant(retriever: Retriever, matches: Sequence[Match], least: float | Literal["auto"] | None) -> Sequence[Match]:
    """Return the matches that reach a probability."""
    calibration = retriever.calibration
    if least is None or calibration is None:
        return matches
    from m3_integrations.retrieval import match_probabilities  # it takes a while to import

    limit = calibration.threshold if least == "auto" else least
    found = match_probabilities(calibration, matches)
    return [match for match, probability in zip(matches, found, strict=True) if probability >= limit]


def _result(
    folder: Path,
    question: str,
    matches: Sequence[Match],
    explanations: Sequence[Explanation] | None,
    retriever: Retriever,
) -> CommandResult:
    found = [match_to_json(match) for match in matches]
    if retriever.calibration is not None:
        from m3_integrations.retrieval import match_probabilities

        for match, probability in zip(found, match_probabilities(retriever.calibration, matches), strict=True):
            match["relevance"] = probability
    for match, explanation in zip(found, explanations or (), strict=False):
        match["words"] = words_to_json(explanation)
    data = {"index": str(folder), "question": question, "weights": dict(retriever.weights), "matches": found}
    return CommandResult(data, lambda: print_matches(matches, explanations))


def explain(
    folder: Folder,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    id: Annotated[str | None, typer.Argument(metavar="ID", help="Passage; the best one by default.")] = None,
    mode: Modes = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write an HTML page with the words highlighted, by mode.")
    ] = None,
    model: IndexModel = None,
) -> CommandResult:
    """Explain a match. The score by mode, and the words that matched."""
    check_question(question)
    modes = parse_modes(mode)
    require_index(folder)
    prepare_output(out)
    if id is not None:
        _require_passage(folder, id)
    with _retriever(*open_index(folder, model), modes) as retriever:
        if id is None:
            matches = retriever.retrieve(question, 1)
            if not matches:
                raise ValueError(f"nothing is found for {question!r}, so that there is nothing to explain")
            passage = matches[0].passage
        else:
            (passage,) = retriever.index.passages([id])
        explanation = _explain(retriever, question, passage)
    scores = {"score": explanation.score, "by_mode": dict(explanation.by_mode)}
    lexical = [{"token": each.token, "score": each.score} for each in explanation.lexical]
    spans = {mode: _spans_to_json(found) for mode, found in explanation.spans.items()}
    details = {"words": words_to_json(explanation), "spans": spans, "tokens": lexical, "text": passage.text}
    if out is not None:
        _write_explanation(out, passage.id, explanation)
    data = {"index": str(folder), "question": question, "id": passage.id, **scores, **details}
    data["out"] = None if out is None else str(out)
    return CommandResult(data, lambda: _print_explanation(passage.id, explanation))


def _require_passage(folder: Path, id: str) -> None:
    """Check that an index has a passage.

    Raises:
        ValueError: If it has not.
    """
    from m3_integrations import LocalIndex

    with LocalIndex.open(folder) as index:
        if not index.content_hashes([id]):
            raise ValueError(f"the index has no passage {id!r}; m3 search prints ids, m3 export {folder} all of them")


def _explain(retriever: Retriever, question: str, passage: Passage) -> Explanation:
    encoder = cast("M3Encoder", retriever.encoder)
    idf = getattr(retriever.index, "idf", None)
    explanation = encoder.explain(question, passage.text, retriever.weights, retriever.sparse_score, idf)
    if retriever.fusion == "sum":
        return explanation
    # Ranks are those among the candidates, so that a text alone has none.
    matches = retriever.retrieve(question, retriever.plan.candidates)
    by_mode = next((dict(match.by_mode) for match in matches if match.passage.id == passage.id), {})
    return replace(explanation, score=sum(by_mode.values()), by_mode=by_mode)


def words_to_json(explanation: Explanation) -> list[dict[str, Any]]:
    """Return the words that matched, with their places in question and passage, as the JSON documents have them."""
    return [
        {
            "question": explanation.query[slice(*match.query_at)],
            "passage": explanation.passage[slice(*match.passage_at)],
            "question_span": list(match.query_at),
            "passage_span": list(match.passage_at),
            "strength": match.strength,
        }
        for match in explanation.words
    ]


def _spans_to_json(found: MatchedSpans) -> dict[str, list[list[float]]]:
    return {"question": [list(each) for each in found.query], "passage": [list(each) for each in found.passage]}


def _write_explanation(out: Path, id: str, explanation: Explanation) -> None:
    from m3_integrations.core.files import replace_text

    head = f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"/><title>{escape(id)}</title></head>\n'
    body = f"<body>\n<h1>{escape(id)}</h1>\n{explanation._repr_html_()}\n</body>\n</html>\n"
    replace_text(out, escape_controls(head + body))


def _print_explanation(id: str, explanation: Explanation) -> None:
    terminal.print(f"{explanation.score:.3f}  ", (on_one_line(id), "bold"))
    terminal.print((_describe_modes(explanation.by_mode), "dim"))
    terminal.print(_describe_words(explanation))
    if explanation.lexical:
        tokens = (f"{on_one_line(each.token)} {each.score:.3f}" for each in explanation.lexical)
        terminal.print("equal tokens: " + " · ".join(tokens))
    for mode, found in explanation.spans.items():
        words = dict.fromkeys(on_one_line(explanation.passage[mark.start : mark.stop]) for mark in found.passage)
        if words:
            terminal.print((f"{mode} words: ", "dim"), " · ".join(words))
    text = Text(explanation.passage)
    for start, stop, heat in explanation.passage_heat():
        if heat >= HIGHLIGHTED:
            text.stylize("bold yellow", start, stop)
    terminal.print(text)


def _describe_modes(by_mode: Mapping[Mode, float]) -> str:
    return " · ".join(f"{mode} {part:.3f}" for mode, part in by_mode.items())


def _describe_words(explanation: Explanation) -> str:
    from m3_integrations.retrieval.highlighting import word_pairs

    pairs = " · ".join(f"{on_one_line(pair.asked)} = {on_one_line(pair.found)}" for pair in word_pairs(explanation))
    return f"why: {pairs}" if pairs else "no words stand out"


def match_to_json(match: Match) -> dict[str, Any]:
    """Return a match as the JSON documents have it."""
    passage = match.passage
    scores = {"score": match.score, "by_mode": dict(match.by_mode)}
    return {"id": passage.id, **scores, "text": passage.text, "metadata": dict(passage.metadata)}


def print_matches(matches: Sequence[Match], explanations: Sequence[Explanation] | None = None) -> None:
    """Print each match: three lines on a terminal; score, id and beginning of the text in a pipe."""
    from m3_integrations.core.titles import first_words

    if not matches:
        terminal.note("nothing found")
    reasons = [None] * len(matches) if explanations is None else [_describe_words(each) for each in explanations]
    for rank, (match, reason) in enumerate(zip(matches, reasons, strict=True), 1):
        if terminal.out.is_terminal:
            _print_match(rank, match, reason)
        else:
            text = match.passage.text if terminal.verbose else first_words(match.passage.text, EXCERPT)
            terminal.print_row(f"{match.score:.3f}", match.passage.id, text, *([] if reason is None else [reason]))


def _print_match(rank: int, match: Match, reason: str | None) -> None:
    terminal.print((f"{rank:<{INDENT}}", "dim"), f"{match.score:.3f}  ", (on_one_line(match.passage.id), "bold"))
    text = Text(match.passage.text if terminal.verbose else " ".join(match.passage.text.split()))
    if not terminal.verbose:
        text.truncate(terminal.out.width - INDENT, overflow="ellipsis")
    terminal.print(Padding(text, (0, 0, 0, INDENT)))
    terminal.print((" " * INDENT + _describe_modes(match.by_mode), "dim"))
    if reason is not None:
        terminal.print(" " * INDENT + reason)


def _plan_of_earlier_version(encoder: Encoder, index: LocalIndex) -> SearchPlan | None:
    """Return the plan of an index that was nudged before plans were stored with the vectors."""
    from m3_integrations.index.local.ledger_file import ledger_file

    if not ledger_file(index.folder, encoder.fingerprint).is_file():  # opening a Nudger would create the ledger
        return None
    from m3_integrations import Nudger

    with closing(Nudger(encoder, index)) as nudger:
        return None if nudger.stores_plans else nudger.plan
