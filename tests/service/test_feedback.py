"""What users do with drafts: joined to the draft that was shown, counted once, and learned where that is allowed."""

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.engine import FakeEngine

from superdraft.ngram_models.scoring.accepted_texts import AcceptedTexts
from superdraft.ngram_models.scoring.in_context import InContextScorer
from superdraft.ngram_models.scoring.mixture import UniformScorer
from superdraft.server import feedback as feedback_module
from superdraft.server.app import create_app
from superdraft.server.errors import SettingsError
from superdraft.server.ngrams.registry import NgramModels
from superdraft.server.settings import Settings

KEYS = {"ann": "ann-0123456789-0123456789", "bob": "bob-0123456789-0123456789"}
API_KEYS = ",".join(f"{name}={key}" for name, key in KEYS.items())
SECRET = "Zanzibar"
TESTS = Path(__file__).parents[1]


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


def remembered(client, name="ann", **query):
    response = client.get("/v1/personal_model", params=query, headers=as_(name))
    assert response.status_code == 200, response.text
    return [(text["before"], text["text"]) for text in response.json()["texts"]]


@pytest.fixture
def personal(make_client, tmp_path):
    return make_client(api_keys=API_KEYS, personal_ngrams=True, home=tmp_path)


# Joining and counting


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
            "learned": False,
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


def test_texts_are_bounded_by_their_length_too(personal, monkeypatch):
    monkeypatch.setattr(feedback_module, "MAX_CHARACTERS", 100)
    names = [drafts(personal, max_tokens=4) for _ in range(3)]  # about 70 characters each
    assert [send(personal, name).status_code for name in names] == [404, 404, 200]


def test_another_keys_answer_is_not_found_and_not_pushed_out(personal, monkeypatch):
    name = drafts(personal)
    monkeypatch.setattr(feedback_module, "MAX_COMPLETIONS", 1)
    body = {"prompt": "hi", "max_tokens": 1}
    assert personal.post("/v1/drafts", json=body, headers=as_("bob")).status_code == 200
    stranger, nobody = send(personal, name, name="bob"), send(personal, "drafts-none", name="bob")
    assert stranger.status_code == 404
    assert stranger.json()["error"] == nobody.json()["error"]  # nor does it tell that there is one
    assert send(personal, name).status_code == 200


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
        ({"num_characters": 0}, "num_characters"),
        ({"rating": 5}, "rating"),
    ],
)
def test_wrong_fields_are_refused_and_not_counted(client, body, param):
    response = client.post("/v1/feedback", json={"completion_id": drafts(client), "event": "shown", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert counted(client) == {}


def test_feedback_can_be_switched_off(make_client):
    client = make_client(feedback=False)
    answer = send(client, drafts(client))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "feedback_off")
    event = {"type": "view", "completion_id": "cmpl-1", "choice_index": 0}
    assert client.post("/v1/events", json=event).status_code == 200
    assert counted(client) == {}


# Learning


def test_only_what_was_accepted_is_learned_with_the_end_of_its_prompt(personal):
    name = drafts(personal, prompt="Dear sir, " + "x" * 40, num_drafts=3)
    assert send(personal, name, "shown", index=0).json()["learned"] is False
    assert send(personal, name, "dismissed", index=0).json()["learned"] is False
    assert send(personal, name, "accepted", index=1).json()["learned"] is True
    assert send(personal, name, "accepted", index=1).json()["learned"] is True  # it is, but not twice
    assert remembered(personal) == [("Dear sir, " + "x" * 40, " green0 green1")]
    card = personal.get("/v1/personal_model", headers=as_("ann")).json()
    assert (card["num_tokens"], card["max_tokens"], card["weight"]) == (len(" green0 green1"), 8192, 0.3)


def test_a_part_that_was_accepted_is_learned_alone(personal):
    assert send(personal, drafts(personal), num_characters=5).json()["learned"] is True
    assert remembered(personal) == [("hi", " red0")]


def test_every_wire_learns(personal):
    completion = {"prompt": [[104, 105], [104, 111]], "max_tokens": 1, "user": "u"}
    answer = personal.post("/v1/completions", json=completion, headers=as_("ann")).json()
    send(personal, answer["id"], index=1)
    tabby = {"segments": {"prefix": "ha", "suffix": "!"}, "user": "u"}
    answer = personal.post("/v1/completions", json=tabby, headers=as_("ann")).json()
    event = {"type": "select", "completion_id": answer["id"], "choice_index": 0}
    personal.post("/v1/events", json=event, headers=as_("ann"))
    text = answer["choices"][0]["text"]
    assert remembered(personal, user="u") == [("ho", " red0"), ("ha", text)]
    fim = personal.post("/v1/fim/completions", json={"prompt": "he", "max_tokens": 1}, headers=as_("ann")).json()
    send(personal, fim["id"])
    assert remembered(personal) == [("he", " red0")]


def test_models_belong_to_a_key_and_a_user(personal):
    send(personal, drafts(personal, user="one"))
    assert remembered(personal, user="one") != []
    assert remembered(personal) == remembered(personal, user="two") == remembered(personal, "bob", user="one") == []
    assert personal.delete("/v1/personal_model", params={"user": "one"}, headers=as_("bob")).json()["deleted"] is False
    assert remembered(personal, user="one") != []


def test_what_was_accepted_has_a_say_in_the_next_request_of_that_user_alone(make_client, engine, tmp_path):
    background = UniformScorer(128)
    models = NgramModels({"own": background}, "own")
    client = make_client(models, api_keys=API_KEYS, personal_ngrams=True, personal_weight=0.5, home=tmp_path)
    drafts(client, user="one")
    assert engine.seen[-1].scorer is background
    send(client, drafts(client, user="one"))
    drafts(client, user="one")
    scorer = engine.seen[-1].scorer
    assert isinstance(scorer, InContextScorer)
    (row,) = scorer.score([scorer.initial_state([ord("h"), ord("i")])], [[ord(" "), ord("z")]])
    assert math.exp(row[0]) > 0.2 > 0.01 > math.exp(row[1])
    for path, body in (
        ("/v1/completions", {"prompt": "hi", "user": "one"}),
        ("/v1/completions", {"prompt": "hi", "user": "one", "stream": True}),
        ("/v1/completions", {"prompt": "hi", "user": "one", "n": 2}),
        ("/v1/completions", {"segments": {"prefix": "hi"}, "user": "one"}),
    ):
        client.post(path, json={"max_tokens": 1, **body}, headers=as_("ann"))
        assert isinstance(engine.seen[-1].scorer, InContextScorer), body
    for body in ({"user": "two"}, {}, {"user": "one", "ngram_model": "own"}, {"user": "one", "ngram_model": None}):
        drafts(client, **body)
        assert not isinstance(engine.seen[-1].scorer, InContextScorer), body


def test_without_a_default_model_the_personal_one_stands_over_a_flat_one(personal, engine):
    send(personal, drafts(personal))
    drafts(personal)
    scorer = engine.seen[-1].scorer
    (row,) = scorer.score([scorer.initial_state([ord("h"), ord("i")])], [[ord(" "), ord("z")]])
    assert row[1] == pytest.approx(-math.log(128), abs=0.5)
    assert row[0] > row[1] + 2


def test_models_that_are_not_allowed_do_not_exist(make_client, tmp_path):
    off = make_client(api_keys=API_KEYS, home=tmp_path)
    assert send(off, drafts(off)).json()["learned"] is False
    for method in ("GET", "DELETE"):
        answer = off.request(method, "/v1/personal_model", headers=as_("ann"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "personal_models_off")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="--personal-anonymous"):
        make_client(personal_ngrams=True, home=tmp_path)
    anonymous = make_client(personal_ngrams=True, personal_anonymous=True, home=tmp_path)
    assert send(anonymous, drafts(anonymous)).json()["learned"] is True


def test_personal_models_need_feedback_and_switch_it_on(make_client, tmp_path):
    client = make_client(api_keys=API_KEYS, personal_ngrams=True, feedback=False, home=tmp_path)
    assert send(client, drafts(client)).json()["learned"] is True


def test_nothing_of_a_text_is_in_names_logs_metrics_or_errors(personal, tmp_path, capfd):
    name = drafts(personal, prompt=SECRET, user=f"u-{SECRET}")
    send(personal, name)
    send(personal, name, index=9)
    files = list((tmp_path / "personal").rglob("*.jsonl"))
    assert len(files) == 1
    assert SECRET in files[0].read_text()
    assert all(re.fullmatch(r"[0-9a-f]{64}", part) for part in (files[0].stem, files[0].parent.name))
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert SECRET not in personal.get("/metrics").text
    assert SECRET not in "".join(capfd.readouterr())


# The disk


def test_an_accept_that_cannot_be_written_is_not_acknowledged_and_can_be_sent_again(personal, monkeypatch):
    name = drafts(personal)

    def fail(file, text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(AcceptedTexts, "append", fail)
        assert send(personal, name).status_code == 500
    assert counted(personal) == {}
    assert remembered(personal) == []
    assert send(personal, name).json() | {"completion_id": ""} == {
        "object": "feedback",
        "completion_id": "",
        "event": "accepted",
        "rank": 0,
        "counted": True,
        "learned": True,
    }


def test_a_model_that_cannot_be_read_stops_nobody(make_client, tmp_path, monkeypatch, engine):
    def fail(file):
        raise OSError(5, "I/O error")

    monkeypatch.setattr(AcceptedTexts, "read", fail)
    drafts(make_client(api_keys=API_KEYS, personal_ngrams=True, home=tmp_path))
    assert engine.seen[-1].scorer is None


def test_the_file_is_written_anew_when_most_of_it_is_forgotten(make_client, tmp_path, monkeypatch):
    monkeypatch.setattr("superdraft.server.ngrams.personal_models._MAX_OLD_LINES", 4)
    engine_settings = {"api_keys": API_KEYS, "personal_ngrams": True, "max_personal_tokens": 1024, "home": tmp_path}
    client = make_client(**engine_settings)
    for _ in range(60):
        send(client, drafts(client, max_tokens=20))  # 20 words of 5 or 6 characters: 10 of these texts fit
    (file,) = (tmp_path / "personal").rglob("*.jsonl")
    texts = remembered(client)
    assert 5 <= len(texts) <= 10
    assert len(file.read_text().splitlines()) <= 2 * len(texts) + 5
    assert [tuple(text) for text in AcceptedTexts(file).read()[-len(texts) :]] == texts


def test_the_user_who_was_not_fed_for_longest_makes_room(make_client, tmp_path):
    client = make_client(api_keys=API_KEYS, personal_ngrams=True, max_personal_users=2, home=tmp_path)
    bob = client.post("/v1/drafts", json={"prompt": "hi", "max_tokens": 1}, headers=as_("bob")).json()["id"]
    send(client, bob, name="bob")
    for user in ("one", "two", "one", "three"):
        send(client, drafts(client, user=user))
        time.sleep(0.02)  # the disk's clock is coarse
    assert [len(remembered(client, user=user)) for user in ("one", "two", "three")] == [2, 0, 1]
    assert len(remembered(client, "bob")) == 1  # another key's users are not in question


def test_deleting_forgets_in_memory_and_on_disk(personal, engine, tmp_path):
    send(personal, drafts(personal, user="one"))
    delete = lambda: personal.delete("/v1/personal_model", params={"user": "one"}, headers=as_("ann")).json()  # noqa: E731
    assert delete() == {"object": "personal_model.deleted", "user": "one", "deleted": True}
    assert delete()["deleted"] is False
    assert list((tmp_path / "personal").rglob("*.jsonl")) == []
    drafts(personal, user="one")
    assert engine.seen[-1].scorer is None
    send(personal, drafts(personal, user="one"))
    assert len(remembered(personal, user="one")) == 1


def test_two_servers_do_not_share_a_folder(personal, tmp_path):
    settings = Settings(api_keys=API_KEYS, personal_ngrams=True, home=tmp_path)
    with pytest.raises(SettingsError, match="Another server"):
        create_app(settings, FakeEngine(), model_name="tiny")


def test_events_and_requests_of_one_user_at_once_lose_nothing(personal):
    def accept(number):
        name = drafts(personal, prompt=f"p{number:03}", max_tokens=1)
        return [send(personal, name).json()["counted"] for _ in range(2)]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(accept, range(60)))
    assert answers == [[True, False]] * 60
    assert sorted(remembered(personal)) == [(f"p{number:03}", " red0") for number in range(60)]


def test_what_was_acknowledged_survives_a_killed_server(make_client, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "support/personal_server.py"), str(tmp_path), API_KEYS]
    acknowledged, sent, enough = [], [], threading.Event()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"

        def accept(worker):
            with httpx.Client(base_url=url, timeout=10) as client:
                for number in range(1000):
                    prompt = f"w{worker} {number}"
                    sent.append(prompt)
                    try:
                        answer = send(client, drafts(client, prompt=prompt, max_tokens=1)).json()
                    except httpx.HTTPError:
                        return
                    assert answer["learned"]
                    acknowledged.append(prompt)
                    if len(acknowledged) >= 40:
                        enough.set()

        threads = [threading.Thread(target=accept, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        assert enough.wait(30)
        server.kill()
        for thread in threads:
            thread.join(10)
    client = make_client(api_keys=API_KEYS, personal_ngrams=True, home=tmp_path)
    found = [before for before, _ in remembered(client)]
    assert len(acknowledged) >= 40
    assert set(acknowledged) <= set(found) <= set(sent)
    assert len(found) == len(set(found))
