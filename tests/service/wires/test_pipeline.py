"""What the pipeline does for every wire: the cases that no wire's own tests reach."""

from dataclasses import dataclass, replace

import pytest
from starlette.testclient import TestClient
from support.engine import FakeEngine
from support.sse import parsed

from superdraft.decoding.errors import InvalidRequestError
from superdraft.server.app import create_app
from superdraft.server.settings import Settings


@dataclass
class RepeatingEngine(FakeEngine):
    """A fake engine whose drafts repeat the text after the gap."""

    def _draft(self, index, job):
        return replace(super()._draft(index, job), text=f"x{index})\ny")


def stream(client, path="/v1/completions", **body):
    return parsed(client.post(path, json={"prompt": "hi", "max_tokens": 2, "stream": True, **body}).content)


def rank_of(client, completion_id):
    return client.post("/v1/feedback", json={"completion_id": completion_id, "event": "shown"}).json()["rank"]


def test_streaming_twins_have_the_ranks_of_their_drafts(client):
    client.app.state.service.fan_out._window_s = 60
    names = [stream(client)[0]["id"] for _ in range(3)]
    assert [rank_of(client, name) for name in names] == [0, 1, 2]


@pytest.mark.parametrize("body", [{"n": 2}, {"prompt": ["f(", "g("]}, {}], ids=["two drafts", "two prompts", "one"])
def test_streamed_drafts_keep_out_of_the_text_after_the_gap(body):
    with TestClient(create_app(Settings(), RepeatingEngine(), model_name="tiny")) as client:
        events = stream(client, **{"prompt": "f(", "suffix": ")\n", **body})
    texts = {}
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    expected = {0: "x0"} if not body else {0: "x0", 1: "x1" if "n" in body else "x0"}
    assert texts == expected


def test_answers_without_an_id_are_not_remembered(client):
    client.post("/completion", json={"prompt": "hi", "n_predict": 2})
    assert client.app.state.service.feedback._callers == {}
    stream(client)
    assert client.app.state.service.feedback._callers != {}


@pytest.mark.parametrize("path", ["/v1/drafts", "/v1/completions"])
def test_a_fault_while_a_request_is_queued_ends_it_and_is_not_told(client, engine, monkeypatch, path):
    def fail(request):
        raise KeyError("secret")

    monkeypatch.setattr(engine, "add_request", fail)
    for body in ({}, {"stream": True}):
        answer = client.post(path, json={"prompt": "hi", "max_tokens": 2, **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "sequence_failed")
        assert "secret" not in answer.text

    def refuse(request):
        raise InvalidRequestError("prompt is wrong.", param="prompt")

    monkeypatch.setattr(engine, "add_request", refuse)
    for body in ({}, {"stream": True}):
        assert client.post(path, json={"prompt": "hi", "max_tokens": 2, **body}).status_code == 400
