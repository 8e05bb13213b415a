"""Feedback over HTTP: judgements, learning from them, undoing it, and fields for filters."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import numpy as np
import pytest

from m3_integrations import LocalIndex, Passage
from m3_integrations.nudging.feedback import LEAST_QUESTIONS, Feedback, Learned
from m3_integrations.nudging.ledger import FILE_NAME, Judgement
from m3_integrations.server import ServerSettings, create_app
from m3_integrations.server.http.feedback import FeedbackEndpoints
from m3_integrations.server.http.schemas import FeedbackRequest
from m3_integrations.server.learning import Learner
from m3_integrations.testing import HashEncoder
from tests.server.conftest import running

ENCODER = HashEncoder(16, 8, 128)
TEXTS = [f"topic{i % 8} word{i}" for i in range(16)]
QUESTIONS = [(f"ask{i % 8} topic{i % 8} nr{i}", f"p{i % 8}") for i in range(60)]


@pytest.fixture
def served(tmp_path):
    """A folder of 16 passages and a client of its server."""
    settings = ServerSettings(port=0)
    with LocalIndex.open(tmp_path / "notes", ENCODER) as index:
        index.add([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)], ENCODER.encode_passages(TEXTS))
        app = create_app(ENCODER, {"notes": index}, settings)
        with running(app, settings) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield index, client


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def learn(client):
    post(client, "/learn")
    while (status := client.get("/learn").json())["state"] == "running":
        assert 0 <= status["progress"] <= 1
        time.sleep(0.05)
    return status


def test_a_judgement_is_in_the_ledger_when_it_is_acknowledged(served):
    index, client = served
    counted = post(client, "/feedback", query="ask", id="p1", useful=True)
    assert counted == {
        **{"index": "notes", "judged": 1, "useful": 1, "not_useful": 0, "questions": 1},
        "wanted": LEAST_QUESTIONS,
    }
    post(client, "/feedback", query="ask", id="p2", useful=False)
    post(client, "/feedback", query="Ask?", id="p2", useful=True)  # the last one counts
    assert client.get("/feedback", params={"index": "notes"}).json()["useful"] == 2
    with LocalIndex.open(index.folder, ENCODER) as again:
        judged = Feedback(ENCODER, again).judgements()
    assert [(each.query, each.passage, each.is_useful) for each in judged] == [
        ("ask", "p1", True),
        ("ask", "p2", False),
        ("Ask?", "p2", True),
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"query": "ask", "id": "none", "useful": True}, 404),
        ({"query": " ", "id": "p1", "useful": True}, 422),
        ({"query": "ask", "id": "p1"}, 422),
        ({"query": "ask", "id": "p1", "useful": True, "index": "other"}, 404),
    ],
)
def test_a_wrong_judgement_is_refused_and_not_recorded(served, body, status):
    index, client = served
    assert client.post("/feedback", json=body).status_code == status
    assert not (index.folder / FILE_NAME).exists()


def test_ten_judgements_are_not_enough_and_nothing_moves(served):
    index, client = served
    for query, passage in QUESTIONS[:10]:
        post(client, "/feedback", query=query, id=passage, useful=True)
    status = learn(client)
    assert (status["state"], status["report"], status["html"]) == ("done", None, False)
    assert status["message"].startswith("Not enough evidence yet, nothing moved: 10 questions have a useful passage.")
    assert f"at least {LEAST_QUESTIONS} questions" in status["message"]
    assert client.get("/learn/report").status_code == 404
    assert np.array_equal(index.vectors([f"p{i}" for i in range(16)]).dense, ENCODER.encode_passages(TEXTS).dense)


def test_learning_moves_vectors_with_a_report_and_undo_restores_them(served):
    index, client = served
    assert client.get("/learn").json()["state"] == "idle"
    feedback = Feedback(ENCODER, index)
    for query, passage in QUESTIONS:
        feedback.add(query, passage, True)
    for i in range(4):
        feedback.add(f"ask{i} topic{i} nr{i}", f"p{i + 8}", False)
    status = learn(client)
    assert status["state"] == "done", status
    report = status["report"]
    assert report["moved"]
    assert report["after"] > report["before"]
    assert report["summary"] in status["message"]
    assert status["not_useful"]["judged"] == 4
    page = client.get("/learn/report")
    assert page.headers["content-type"].startswith("text/html")
    assert "script" not in page.headers["content-security-policy"]
    ids = [f"p{i}" for i in range(16)]
    assert not np.array_equal(index.vectors(ids).dense, ENCODER.encode_passages(TEXTS).dense)
    assert post(client, "/undo")["message"] == "The original vectors are restored."
    assert np.array_equal(index.vectors(ids).dense, ENCODER.encode_passages(TEXTS).dense)


async def test_old_judgements_are_forgotten_when_a_server_starts_and_texts_can_be_left_out(tmp_path):
    settings = ServerSettings(keeps_queries=False, forget_after=30)
    with LocalIndex.open(tmp_path / "notes", ENCODER) as index:
        index.add([Passage("p0", "topic0")], ENCODER.encode_passages(["topic0"]))
        feedback = Feedback(ENCODER, index)
        feedback.extend([Judgement("old", "p0", True, "2020-01-01T00:00:00+00:00")])
        feedback.add("new", "p0", True)
        endpoints = FeedbackEndpoints(ENCODER, {"notes": index}, settings)
        async with endpoints.running():
            while [each.query for each in feedback.judgements()] != ["new"]:
                await asyncio.sleep(0.01)
            await endpoints.record(FeedbackRequest(query="a secret", id="p0", useful=True))
        assert [each.query for each in feedback.judgements()] == ["new", None]


def test_a_second_run_and_an_undo_wait_for_the_first_run(served):
    index, _ = served

    class Learning(Feedback):
        def learn(self, **options):
            entered.set()
            assert go_on.wait(60)
            return Learned("done", None, None)

    entered, go_on = threading.Event(), threading.Event()
    learner = Learner(ENCODER, index, Learning(ENCODER, index))
    assert learner.start()
    assert entered.wait(60)
    assert not learner.start()
    assert not learner.undo()
    go_on.set()
    learner.stop()
    assert learner.status.state == "done"


def test_fields_are_listed_with_their_values_for_filters(client):
    fields = {field["name"]: field for field in client.get("/fields").json()["fields"]}
    year = fields["year"]
    assert (year["kind"], year["min"], year["max"], year["passages"], year["has_more"]) == (
        "number",
        1901,
        2020,
        3,
        False,
    )
    assert [each["value"] for each in year["values"]] == [1901, 1950, 2020]
    assert fields["title"]["values"] == [{"value": "Bridges", "passages": 1}]
    (first, *_) = client.get("/fields", params={"values": 1}).json()["fields"]
    assert (len(first["values"]), first["has_more"]) == (1, True)
    assert client.get("/fields", params={"values": 0}).status_code == 422
    paths = client.get("/openapi.json").json()["paths"]
    assert [each["name"] for each in paths["/fields"]["get"]["parameters"]] == ["index", "values"]
    assert set(paths["/learn"]) == {"get", "post"}
