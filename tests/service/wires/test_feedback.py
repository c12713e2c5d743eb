"""What users do with drafts: matched to the draft that was shown, and counted once."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from superdraft.server import feedback as feedback_module

KEYS = {"ann": "ann-0123456789-0123456789", "bob": "bob-0123456789-0123456789"}
API_KEYS = ",".join(f"{name}={key}" for name, key in KEYS.items())
SECRET = "Zanzibar"


def as_(name):
    return {"authorization": f"Bearer {KEYS[name]}"}


def drafts(client, **body):
    response = client.post("/v1/drafts", json={"prompt": "hi", "max_tokens": 2, **body}, headers=as_("ann"))
    assert response.status_code == 200, response.text
    return response.json()["id"]


def send(client, completion_id, event="accepted", name="ann", **body):
    body = {"completion_id": completion_id, "event": event, **body}
    return client.post("/v1/feedback", json=body, headers=as_(name))


def counted(client):
    found = re.findall(
        r'superdraft_draft_events_total\{event="(\w+)",rank="(\w+)"\} (\d+)', client.get("/metrics").text
    )
    return {(event, int(rank)): int(count) for event, rank, count in found}


def test_an_event_counts_under_the_rank_of_its_draft_and_once(client):
    name = drafts(client)
    for event, index in (("shown", 0), ("shown", 2), ("accepted", 2), ("dismissed", 1)):
        answer = send(client, name, event, index=index, elapsed_ms=250).json()
        assert answer == {
            "object": "feedback",
            "completion_id": name,
            "event": event,
            "rank": index,
            "counted": True,
        }
        assert send(client, name, event, index=index).json()["counted"] is False
    assert counted(client) == {("shown", 0): 1, ("shown", 2): 1, ("accepted", 2): 1, ("dismissed", 1): 1}
    assert 'superdraft_draft_event_seconds_sum{event="shown"} 0.5' in client.get("/metrics").text


def test_every_answer_that_has_an_id_can_be_told_of(client):
    completion = {"prompt": ["hi", "ho"], "n": 2, "best_of": 3, "max_tokens": 2}
    answer = client.post("/v1/completions", json=completion).json()
    ranks = [send(client, answer["id"], index=choice["index"]).json()["rank"] for choice in answer["choices"]]
    assert ranks == [0, 1, 0, 1]  # the third draft of each was not shown
    assert send(client, answer["id"], index=4).status_code == 400
    fim = client.post("/v1/fim/completions", json={"prompt": "hi", "max_tokens": 2}).json()
    assert send(client, fim["id"]).json()["rank"] == 0
    assert send(client, fim["id"], index=1).status_code == 400


@pytest.mark.parametrize(("path", "prefix"), [("/v1/drafts", "drafts-"), ("/v1/completions", "cmpl-")])
def test_streamed_answers_can_be_told_of(client, path, prefix):
    body = {"prompt": "hi", "max_tokens": 3, "stream": True, **({"n": 2} if prefix == "cmpl-" else {})}
    events = client.post(path, json=body).text.splitlines()
    ids = {json.loads(line[6:])["id"] for line in events if line.startswith('data: {"')}
    (name,) = ids
    assert name.startswith(prefix)
    assert send(client, name, index=1).json()["rank"] == 1


def test_a_fanned_out_draft_has_its_rank_in_the_run(client):
    client.app.state.service.fan_out._window_s = 60
    body = {"prompt": "hi", "max_tokens": 2}
    names = [client.post("/v1/completions", json=body).json()["id"] for _ in range(3)]
    assert [send(client, name).json()["rank"] for name in names] == [0, 1, 2]


def test_unknown_ids_are_404_and_nothing_is_counted(client):
    answer = send(client, "cmpl-none")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "completion_not_found"
    assert counted(client) == {}


def test_answers_are_forgotten_after_a_time_and_when_there_are_too_many(client, monkeypatch):
    names = [drafts(client) for _ in range(3)]
    monkeypatch.setattr(feedback_module, "MAX_COMPLETIONS", 2)
    assert [send(client, name).status_code for name in names] == [404, 200, 200]
    monkeypatch.setattr(feedback_module, "KEEP_S", 0.0)
    time.sleep(0.001)
    assert send(client, names[2], "shown").status_code == 404


def test_another_keys_answer_is_not_found_and_not_pushed_out(make_client, monkeypatch):
    client = make_client(api_keys=API_KEYS)
    name = drafts(client)
    monkeypatch.setattr(feedback_module, "MAX_COMPLETIONS", 1)
    body = {"prompt": "hi", "max_tokens": 1}
    assert client.post("/v1/drafts", json=body, headers=as_("bob")).status_code == 200
    stranger, nobody = send(client, name, name="bob"), send(client, "drafts-none", name="bob")
    assert stranger.status_code == 404
    assert stranger.json()["error"] == nobody.json()["error"]  # nor does it tell that there is one
    assert send(client, name).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"event": "hover"}, "event"),
        ({"event": None}, "event"),
        ({"completion_id": ""}, "completion_id"),
        ({"completion_id": "x" * 129}, "completion_id"),
        ({"index": -1}, "index"),
        ({"index": 3}, "index"),
        ({"index": True}, "index"),
        ({"elapsed_ms": -1}, "elapsed_ms"),
        ({"elapsed_ms": 1e12}, "elapsed_ms"),
        ({"rating": 5}, "rating"),
        ({"num_characters": 5}, "num_characters"),
    ],
)
def test_wrong_fields_are_refused_and_not_counted(client, body, param):
    response = client.post("/v1/feedback", json={"completion_id": drafts(client), "event": "shown", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert counted(client) == {}


def test_nothing_of_a_prompt_is_in_metrics_or_logs(client, capfd):
    name = drafts(client, prompt=SECRET)
    send(client, name)
    send(client, name, index=9)
    assert SECRET not in client.get("/metrics").text
    assert SECRET not in "".join(capfd.readouterr())


def test_events_at_once_are_counted_once_each(client):
    def accept(number):
        name = drafts(client, prompt=f"p{number:03}", max_tokens=1)
        return [send(client, name).json()["counted"] for _ in range(2)]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(accept, range(60)))
    assert answers == [[True, False]] * 60
    assert counted(client) == {("accepted", 0): 60}
