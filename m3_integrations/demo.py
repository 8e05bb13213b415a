"""The demonstration behind `m3 demo`: real text in many languages, answered by each mode and by all, then nudged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from m3_integrations.core.encoded import Mode
from m3_integrations.core.encoder import M3Encoder
from m3_integrations.core.explain import Explanation
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Passage
from m3_integrations.evaluation.beir import Collection, read_beir
from m3_integrations.evaluation.judging import judge, plans_of
from m3_integrations.index.base import Index
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.nudging.page import Story, environment, write_page
from m3_integrations.nudging.report import NudgeReport
from m3_integrations.retrieval.ingestion import IngestReport, ingest
from m3_integrations.retrieval.retriever import Match, Retriever

QUESTIONS = (
    "How do I leave a loop early?",
    "Wie fange ich eine Ausnahme ab?",
    "¿Qué hace la palabra yield dentro de una función?",
    "__getattr__",
    "Telmatobius culeus",
    "26 milyon tuğladan yapılmış köprü hangisidir?",
    "モスクワからウラジオストクまで何日かかる？",
    "من هي العالمة التي نالت جائزة نوبل في علمين مختلفين؟",
    "lowest place on land, where you float",
)
_PASSAGE_CHARACTERS = 900
_PASSAGES_A_TOPIC = 3


class Segment(NamedTuple):
    """A stretch of a passage, and how strongly it matched, from 0 to 1."""

    text: str
    heat: float


@dataclass(frozen=True)
class Answer:
    """A question, the best passage id of each plan, and what the hybrid found, explained."""

    question: str
    best_by_plan: Mapping[str, str]
    matches: Sequence[Match]
    explanations: Sequence[Explanation]


@dataclass(frozen=True)
class Demo:
    """What the demonstration found; `render` writes it as HTML pages.

    metrics, after: by plan and metric, on the test questions before and after the nudge.
    """

    model: str
    ingested: IngestReport
    answers: Sequence[Answer]
    metrics: Mapping[str, Mapping[str, float]]
    judged: int
    nudge: NudgeReport
    after: Mapping[str, Mapping[str, float]]

    @property
    def remarks(self) -> list[str]:
        """Which modes and plans the nudge made worse or left alone, in sentences."""
        said = [
            f"{mode}: its nudge adds nothing to the ranking of all modes together, on the questions that chose"
            for mode in self.nudge.moves
            if self.nudge.added(mode) <= 0
        ]
        for plan, values in self.after.items():
            before, after = self.metrics[plan]["ndcg@10"], values["ndcg@10"]
            if after <= before:
                said.append(f"{plan} did not gain: nDCG@10 {before:.3f} before, {after:.3f} after")
        return said

    def render(self, folder: Path, index: Index | None = None) -> None:
        """Write index.html and nudge.html; the texts of passages come from the index, where one is given."""
        pages = environment()
        pages.filters |= {"segments": segments, "shares": shares}
        story = Story.of(self.nudge, index)
        write_page(folder / "index.html", pages.get_template("demo.html").render(demo=self, story=story))
        write_page(folder / "nudge.html", pages.get_template("nudge.html").render(story=story))


def world(split: str = "test") -> Collection:
    """The small multilingual corpus of examples/world, with the questions of one split: train, dev or test."""
    packaged = Path(str(files("m3_integrations"))) / "examples" / "world"
    checkout = Path(__file__).parents[1] / "examples" / "world"
    return read_beir(packaged if packaged.is_dir() else checkout, split)


def python_topics() -> Iterator[Passage]:
    """The first paragraphs of each topic of Python's own help, which is on every machine."""
    for name, text in sorted(topics.items()):
        paragraphs = _paragraphs(text)
        for part, paragraph in zip(range(_PASSAGES_A_TOPIC), paragraphs, strict=False):
            yield Passage(f"python/{name}/{part}", paragraph, {"topic": name, "language": "en", "source": "pydoc"})


def _paragraphs(text: str) -> Iterator[str]:
    """Whole paragraphs, joined to passages of about the same length."""
    held = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if held and len(held) + len(paragraph) > _PASSAGE_CHARACTERS:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph.strip()}".strip()
    if held:
        yield held


def run(encoder: M3Encoder, index: Index, questions: Sequence[str] = QUESTIONS, *, show_progress: bool = False) -> Demo:
    """Fill the index with both corpora, ask, explain, and judge every plan on the test questions of the small world.

    Then nudge the index by the other questions of that world, in every mode, and judge again.
    """
    collection = world()
    ingested = ingest(encoder, index, [*collection.passages, *python_topics()], show_progress=show_progress)
    plans = plans_of(encoder.weights)
    answers = [_answer(encoder, index, plans, question) for question in questions]
    before = judge(encoder, index, collection.queries, plans)
    nudger = Nudger(encoder, index)
    report = nudger.fit(world("train").queries, world("dev").queries, test=collection.queries, modes=encoder.modes)
    # Late interaction alone looks at every passage and is not asked again: the curves show what its nudge adds.
    cheap = {name: plan for name, plan in plans.items() if plan.propose != ("multi_vector",)}
    nudged = {**cheap, list(plans)[-1]: report.plan}  # of all modes together, as the nudge weighs them
    nudger.close()
    return Demo(
        model=encoder.name,
        ingested=ingested,
        answers=answers,
        metrics=before,
        judged=len(collection.queries),
        nudge=report,
        after=judge(encoder, index, collection.queries, nudged),
    )


def _answer(encoder: M3Encoder, index: Index, plans: Mapping[str, SearchPlan], question: str) -> Answer:
    asked = encoder.encode_queries([question])
    found = {name: Retriever(encoder, index, plan).retrieve_encoded(asked, k=3)[0] for name, plan in plans.items()}
    matches = list(found.values())[-1]  # of all modes together, or of the one there is
    return Answer(
        question=question,
        best_by_plan={name: _first(matches) for name, matches in found.items()},
        matches=matches,
        explanations=[encoder.explain(question, match.passage.text) for match in matches],
    )


def _first(matches: Sequence[Match]) -> str:
    return matches[0].passage.id if matches else "nothing: no shared token"


def shares(match: Match) -> dict[Mode, float]:
    """mode -> its part of the score, adding up to 1."""
    return {mode: part / match.score if match.score else 0.0 for mode, part in match.by_mode.items()}


def segments(explanation: Explanation) -> list[Segment]:
    """The passage cut where the heat changes, whole again when joined."""
    text, cut, at = explanation.passage, [], 0
    for start, stop, heat in explanation.passage_heat():
        start = max(start, at)
        if start < stop:
            cut += [Segment(text[at:start], 0.0), Segment(text[start:stop], heat)]
            at = stop
    return [segment for segment in [*cut, Segment(text[at:], 0.0)] if segment.text]
