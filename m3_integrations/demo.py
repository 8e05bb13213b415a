"""The `m3 demo` command's content: multilingual text searched by each mode and by all, then nudged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from m3_integrations.core.encoded import MODES
from m3_integrations.core.titles import title_of
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.data.beir import JudgedCollection, read_beir
from m3_integrations.encoders.explain import Explanation
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.evaluation.compare import default_plans, evaluate_plans
from m3_integrations.index.base import Index
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.nudging.report.html import OutcomeRow, ReportPage, environment, language_of, name_of, write_page
from m3_integrations.nudging.report.report import NudgeReport
from m3_integrations.retrieval.highlighting import (
    HighlightedText,
    WordPair,
    excerpt_segments,
    shares,
    split_at_words,
    styled_words,
    word_pairs,
    word_segments,
)
from m3_integrations.retrieval.ingestion import IngestReport, ingest
from m3_integrations.retrieval.retriever import Match, Retriever


class DemoQuestion(NamedTuple):
    """A question to show and its language (ISO 639-1)."""

    text: str
    language: str


QUESTIONS = (
    DemoQuestion("26 milyon tuğladan yapılmış köprü hangisidir?", "tr"),
    DemoQuestion("Afro-Brazilian fight that looks like a dance", "en"),
    DemoQuestion("How do I leave a loop early?", "en"),
    DemoQuestion("Telmatobius culeus", "la"),
    DemoQuestion("من هي العالمة التي نالت جائزة نوبل في علمين مختلفين؟", "ar"),
    DemoQuestion("¿Qué hace la palabra yield dentro de una función?", "es"),
    DemoQuestion("モスクワからウラジオストクまで何日かかる？", "ja"),
    DemoQuestion("__getattr__", "en"),
)
METRIC_NAMES = {"accuracy@1": "right answer first", "recall@10": "answers in the first ten", "ndcg@10": "nDCG@10"}
METRICS = tuple(METRIC_NAMES)
_PASSAGE_CHARACTERS = 900
_PASSAGES_A_TOPIC = 3


class HeatSegment(NamedTuple):
    """A span of a passage and the strength of its match, 0 to 1."""

    text: str
    heat: float


@dataclass(frozen=True)
class Answer:
    """A question with the best passage of each plan, and the hybrid results with explanations."""

    question: DemoQuestion
    best_by_plan: Mapping[str, Passage | None]
    matches: Sequence[Match]
    explanations: Sequence[Explanation]

    @property
    def alone(self) -> dict[str, bool]:
        """Whether each mode alone finds the first result of all modes first, by mode."""
        first = self.matches[0].passage if self.matches else None
        return {mode: self.best_by_plan[mode] == first for mode in MODES if mode in self.best_by_plan}

    @property
    def pairs(self) -> list[WordPair]:
        """The words of the question with the words of the first passage that they matched, in order."""
        return word_pairs(self.explanations[0]) if self.explanations else []

    @property
    def question_segments(self) -> list[HighlightedText]:
        """The question, split at its matched words."""
        if not self.explanations:
            return [HighlightedText(self.question.text, "")]
        styles = {match.query_at: style for match, style in styled_words(self.explanations[0])}
        return split_at_words(self.question.text, styles)


@dataclass(frozen=True)
class Demo:
    """Results of the demo; `render` writes them as HTML pages.

    Attributes:
        model: Name of the encoder.
        ingested: Result of filling the index.
        answers: Results for the example questions.
        metrics: Metrics on the test questions before the nudge, by plan and metric.
        judged: Number of test questions.
        nudge: Report of the nudge.
        after: Metrics after the nudge, by plan and metric.
    """

    model: str
    ingested: IngestReport
    answers: Sequence[Answer]
    metrics: Mapping[str, Mapping[str, float]]
    judged: int
    nudge: NudgeReport
    after: Mapping[str, Mapping[str, float]]

    @property
    def metric(self) -> str:
        """The metric that the picture shows, the first of the table."""
        return next(iter(next(iter(self.after.values()))))

    @property
    def rows(self) -> list[OutcomeRow]:
        """The metric of the picture by plan."""
        metric = self.metric
        return [
            OutcomeRow(plan, 0, self.metrics[plan][metric], values[metric], 0.0, 0.0)
            for plan, values in self.after.items()
        ]

    @property
    def comparison(self) -> str:
        """A sentence that compares all modes, the default, with the best of the other plans after the nudge."""
        *others, default = self.rows
        if not others:
            return ""
        best = max(others, key=lambda row: row.after)
        if default.after >= best.after:
            return f"Searching with {name_of(default.name)}, the default, ranks best."
        return (
            f"{name_of(best.name).capitalize()} alone ranks best on these questions, most in another language "
            "than their answer; the default also weighs shared words, which find names, codes and numbers."
        )

    @property
    def remarks(self) -> list[str]:
        """Modes and plans that did not gain from the nudge, as sentences."""
        remarks = [
            f"{mode}: its nudge adds nothing to the fused ranking on the questions used to choose it"
            for mode in self.nudge.moves
            if self.nudge.added(mode) <= 0
        ]
        for plan, values in self.after.items():
            before, after = self.metrics[plan]["ndcg@10"], values["ndcg@10"]
            if after <= before:
                remarks.append(f"{plan} did not gain: nDCG@10 {before:.3f} before, {after:.3f} after")
        return remarks

    def render(self, folder: Path, index: Index | None = None) -> None:
        """Write index.html and nudge.html; the texts of passages come from the index."""
        pages = environment()
        pages.filters |= {each.__name__: each for each in _FILTERS}
        page = ReportPage.of(self.nudge, index)
        write_page(folder / "index.html", pages.get_template("demo.html").render(demo=self, page=page))
        write_page(folder / "nudge.html", pages.get_template("nudge.html").render(page=page))


def world(split: str = "test") -> JudgedCollection:
    """Read the multilingual corpus examples/world with the questions of one split: train, dev or test."""
    packaged = Path(str(files("m3_integrations"))) / "examples" / "world"
    checkout = Path(__file__).parents[1] / "examples" / "world"
    return read_beir(packaged if packaged.is_dir() else checkout, split)


def python_topics() -> Iterator[Passage]:
    """Yield the first paragraphs of each topic of Python's built-in help."""
    for name, text in sorted(topics.items()):
        title, _, rest = text.strip().partition("\n")
        paragraphs = _paragraphs(rest.lstrip("*").strip())
        metadata = {"title": title, "topic": name, "language": "en", "source": "pydoc"}
        for part, paragraph in zip(range(_PASSAGES_A_TOPIC), paragraphs, strict=False):
            yield Passage(f"python/{name}/{part}", f"{title}\n{paragraph}", metadata)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield whole paragraphs, joined to passages of similar length; long ones are split between lines."""
    passage = ""
    for part in _parts(text):
        if passage and len(passage) + len(part) > _PASSAGE_CHARACTERS:
            yield passage.strip()
            passage = ""
        passage += part
    if passage.strip():
        yield passage.strip()


def _parts(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text, and the lines of those longer than a passage."""
    for paragraph in re.split(r"\n\s*\n", text):
        long = len(paragraph) > _PASSAGE_CHARACTERS
        yield from (f"{line}\n" for line in paragraph.splitlines()) if long else [paragraph.strip()]
        yield "\n\n"


def run(
    encoder: M3Encoder, index: Index, questions: Sequence[DemoQuestion] = QUESTIONS, *, show_progress: bool = False
) -> Demo:
    """Fill an index with both corpora, search, explain, evaluate every plan, nudge, and evaluate again."""
    collection = world()
    ingested = ingest(encoder, index, [*collection.passages, *python_topics()], show_progress=show_progress)
    # The corpus is small: every passage is scored in every mode.
    candidates = ingested.total
    plans = {name: replace(plan, candidates=candidates) for name, plan in default_plans(encoder.weights).items()}
    answers = [_answer(encoder, index, plans, question) for question in questions]
    before = evaluate_plans(encoder, index, collection.queries, plans, METRICS)
    nudger = Nudger(encoder, index, SearchPlan(candidates=candidates))
    report = nudger.fit(world("train").queries, world("dev").queries, test=collection.queries, modes=encoder.modes)
    nudged = {**plans, list(plans)[-1]: report.plan}  # all modes, with the weights of the nudge
    nudger.close()
    return Demo(
        model=encoder.name,
        ingested=ingested,
        answers=answers,
        metrics=before,
        judged=len(collection.queries),
        nudge=report,
        after=evaluate_plans(encoder, index, collection.queries, nudged, METRICS),
    )


def _answer(encoder: M3Encoder, index: Index, plans: Mapping[str, SearchPlan], question: DemoQuestion) -> Answer:
    query = encoder.encode_queries([question.text])
    results = {name: Retriever(encoder, index, plan).retrieve_encoded(query, k=3)[0] for name, plan in plans.items()}
    matches = list(results.values())[-1]  # of all modes, or of the only one
    return Answer(
        question=question,
        best_by_plan={name: found[0].passage if found else None for name, found in results.items()},
        matches=matches,
        explanations=[encoder.explain(question.text, match.passage.text) for match in matches],
    )


def segments(explanation: Explanation) -> list[HeatSegment]:
    """Split the passage where the heat changes; the joined segments are the passage."""
    text, cut, at = explanation.passage, [], 0
    for start, stop, heat in explanation.passage_heat():
        start = max(start, at)
        if start < stop:
            cut += [HeatSegment(text[at:start], 0.0), HeatSegment(text[start:stop], heat)]
            at = stop
    return [segment for segment in [*cut, HeatSegment(text[at:], 0.0)] if segment.text]


def metric_name(metric: str) -> str:
    """Return the name of a metric for people."""
    return METRIC_NAMES.get(metric, metric)


_FILTERS = (excerpt_segments, word_segments, shares, title_of, language_of, metric_name)
