"""Tabby's wire over a fake engine: completions by `segments`, and what users did with them."""

import re

import pytest

PATH = "/v1/completions"


def ask(client, **body):
    response = client.post(PATH, json={"language": "python", "segments": {"prefix": "hi"}, **body})
    assert response.status_code == 200, response.text
    return response.json()


def counted(client):
    """The draft events so far: {(event, rank): count}."""
    found = re.findall(
        r'superdraft_draft_events_total\{event="(\w+)",rank="(\w+)"\} (\d+)', client.get("/metrics").text
    )
    return {(event, int(rank)): int(count) for event, rank, count in found}


def test_answer_is_the_best_draft_alone(make_client, engine):
    answer = ask(make_client(editor_max_tokens=2))
    assert re.fullmatch(r"cmpl-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.pop("id"))
    assert answer == {"choices": [{"index": 0, "text": " red0 red1"}], "warnings": []}
    assert engine.seen[0].params.max_tokens == 2


def test_context_comes_before_the_prefix_the_declarations_last(client, engine):
    segments = {
        "prefix": "hi",
        "suffix": None,
        "declarations": [{"filepath": "a", "body": "D"}],
        "relevant_snippets_from_changed_files": [{"filepath": "b", "body": "C", "score": 1.0}],
        "relevant_snippets_from_recently_opened_files": [{"filepath": "c", "body": "R"}],
        "clipboard": "no",
    }
    ask(client, segments=segments)
    assert "".join(map(chr, engine.seen[0].token_ids)) == "R\n\nC\n\nD\n\nhi"


def test_drafts_stop_before_the_suffix(make_client):
    client = make_client(editor_max_tokens=3)
    assert ask(client, segments={"prefix": "hi", "suffix": " red\nmore"})["choices"][0]["text"] == " red0 red1 red2"
    assert ask(client, segments={"prefix": "hi", "suffix": " red2\nmore"})["choices"][0]["text"] == " red0 red1"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"segments": {"suffix": "x"}}, "segments"),
        ({"segments": {"prefix": 3}}, "segments"),
        ({"segments": "hi"}, "segments"),
        ({"temperature": "hot"}, "temperature"),
        ({"user": "x" * 257}, "user"),
        ({"mode": "next_edit_suggestion"}, "mode"),
    ],
)
def test_wrong_fields_are_refused(client, body, param):
    response = client.post(PATH, json={"segments": {"prefix": "hi"}, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(("kind", "event"), [("view", "shown"), ("select", "accepted"), ("dismiss", "dismissed")])
def test_events_are_counted_by_rank(client, kind, event):
    body = {"type": kind, "completion_id": ask(client)["id"], "choice_index": 0, "elapsed": 300, "view_id": None}
    response = client.post("/v1/events?select_kind=line", json=body)
    assert (response.status_code, response.content) == (200, b"")
    assert counted(client) == {(event, 0): 1}


def test_edits_are_refused_in_words_and_completions_are_not(client):
    body = {"segments": {"prefix": "hi", "edit_history": {"original_code": "h"}}, "mode": "next_edit_suggestion"}
    assert 'must be "standard"' in client.post(PATH, json=body).json()["error"]["message"]
    assert ask(client, mode="standard", seed=1)["choices"] == ask(client, mode=None, seed=1)["choices"]


@pytest.mark.parametrize(("elapsed", "seconds"), [(1e308, 86_400.0), (-5, 0.0), (250, 0.25)])
def test_no_event_ruins_the_sum_of_all(client, elapsed, seconds):
    client.post("/v1/events", json={"type": "view", "completion_id": ask(client)["id"], "elapsed": elapsed})
    name = 'superdraft_draft_event_seconds_sum{event="shown"}'
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    assert float(line.split()[-1]) == seconds


def test_event_of_an_unknown_completion_is_let_pass(client):
    response = client.post("/v1/events", json={"type": "view", "completion_id": "cmpl-1", "choice_index": 0})
    assert (response.status_code, counted(client)) == (200, {})


def test_event_of_a_fanned_out_draft_has_its_rank_in_the_run(make_client, engine):
    client = make_client(editor_max_tokens=2)
    client.app.state.service.fan_out._window_s = 60
    answers = [ask(client, temperature=0.8) for _ in range(3)]
    assert [answer["choices"][0]["text"] for answer in answers] == [" red0 red1", " green0 green1", " blue0 blue1"]
    assert len(engine.seen) == 1
    client.post("/v1/events", json={"type": "select", "completion_id": answers[2]["id"], "choice_index": 0})
    assert counted(client) == {("accepted", 2): 1}


def test_fan_out_is_off_by_a_setting_and_with_a_seed(make_client):
    off = make_client(editor_max_tokens=2, fan_out=1)
    texts = [ask(off)["choices"][0]["text"] for _ in range(2)]
    on = make_client(editor_max_tokens=2)
    texts += [ask(on, seed=1)["choices"][0]["text"] for _ in range(2)]
    assert texts == [" red0 red1"] * 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"type": "hover"}, "type"),
        ({"type": None}, "type"),
        ({"completion_id": ""}, "completion_id"),
        ({"completion_id": "x" * 129}, "completion_id"),
        ({"choice_index": -1}, "choice_index"),
        ({"elapsed": "long"}, "elapsed"),
    ],
)
def test_wrong_events_are_refused_and_not_counted(client, body, param):
    response = client.post("/v1/events", json={"type": "view", "completion_id": "cmpl-1", "choice_index": 0, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert counted(client) == {}
