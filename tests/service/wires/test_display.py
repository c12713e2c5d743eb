"""`POST /v1/drafts` with a trigger: drafts are withheld, tidied, and must fit the text after the cursor."""

import json
import math
from dataclasses import replace

import pytest
from starlette.testclient import TestClient
from support import editors
from support.sse import parsed

from superdraft.decoding.outputs import DraftOutput, DraftSnapshot, Replaced, Snapshot, kept
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.fim import Gap
from superdraft.evaluation.measures.looks import best_of, effect_of
from superdraft.evaluation.runs.display_tuning import looks_of_events
from superdraft.server.app import create_app
from superdraft.server.display import Display
from superdraft.server.settings import Settings
from superdraft.server.wires.native.mapping import INSIDE_A_LINE, drafts_snapshot

PATH = "/v1/drafts"
FIM = {"<|fim_prefix|>": 200, "<|fim_suffix|>": 201, "<|fim_middle|>": 202}


@pytest.fixture
def drafts_of(engine, monkeypatch):
    """Sets the engine's drafts: (tokens, probability) or (tokens, probability, finish reason)."""
    made = []

    def output_of(job):
        drafts = tuple(
            DraftOutput(i, "".join(tokens), tuple(range(len(tokens))), tuple(tokens), math.log(p), (-1.0,), reason)
            for i, (tokens, p, reason) in enumerate(made if job.params.max_tokens else [])
        )
        return replace(type(engine).output_of(engine, job), drafts=drafts)

    monkeypatch.setattr(engine, "output_of", output_of, raising=False)
    return lambda *drafts: made.extend((*draft, "length")[:3] for draft in drafts)


def ask(client, prompt="Thank you", **fields):
    response = client.post(PATH, json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer):
    assert [draft["index"] for draft in answer["drafts"]] == list(range(len(answer["drafts"])))
    return [draft["text"] for draft in answer["drafts"]]


def test_without_a_trigger_all_drafts_are_as_decoded(client, drafts_of):
    drafts_of(([" for", " the"], 0.5), (["."], 0.001))
    assert texts(ask(client)) == [" for the", "."]


@pytest.mark.parametrize("fields", [{}, {"trigger": "automatic"}, {"trigger": "invoked"}, {"suffix": "\n)"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_draft_without_text_is_no_draft(client, drafts_of, fields, stream):
    # Trimming left nothing of a word that a limit cut, or the text ended at once.
    drafts_of(([], 0.9, "improbable"), ([], 0.8, "length"), ([], 0.7, "stop"))
    response = client.post(PATH, json={"prompt": "x = ", **fields, "stream": stream})
    assert response.status_code == 200
    answer = parsed(response.content)[-1] if stream else response.json()
    assert texts(answer) == []


@pytest.mark.parametrize("trigger", [{}, {"trigger": "automatic"}])
def test_a_request_out_of_time_before_its_first_token_has_no_drafts(client, trigger):
    # The engine of this test has no drafts then, and a suffix takes the way of editors, who always get one.
    assert texts(ask(client, suffix="\n)", max_tokens=0, **trigger)) == []


def test_an_automatic_trigger_withholds_what_is_less_probable_than_the_servers_minimum(make_client, drafts_of):
    client = make_client(min_probability_shown=0.3)
    drafts_of(([" very", " much"], 0.3001), ([" for", " coming"], 0.2999))
    assert texts(ask(client, trigger="automatic")) == [" very much"]
    assert texts(ask(client, trigger="invoked")) == [" very much", " for coming"]


@pytest.mark.parametrize("trigger", [{}, {"trigger": "automatic"}, {"trigger": "invoked"}])
def test_the_requests_minimum_wins(client, drafts_of, trigger):
    drafts_of(([" very", " much"], 0.9), ([" for", " coming"], 0.01))
    assert texts(ask(client, min_probability_shown=0.95, **trigger)) == []
    assert len(texts(ask(client, min_probability_shown=0, **trigger))) == 2


def test_scores_that_are_no_probabilities_withhold_nothing(client, drafts_of):
    drafts_of(([" very", " much"], 0.01))
    answer = ask(client, trigger="automatic", selection="paper", min_probability_shown=0.5)
    assert texts(answer) == [" very much"]
    assert any("min_probability_shown has no effect" in warning for warning in answer["warnings"])
    assert ask(client, trigger="automatic", selection="paper")["warnings"] == []


def test_drafts_are_tidied_and_each_text_is_shown_once(client, drafts_of):
    drafts_of(([" very", " much", " for"], 0.5), ([" very", " much", "."], 0.4), ([" very", " much"], 0.3))
    answer = ask(client, trigger="automatic")
    assert texts(answer) == [" very much", " very much."]
    assert answer["drafts"][0]["tokens"] == [" very", " much", " for"]


def test_indices_in_feedback_are_those_of_the_drafts_shown(client, drafts_of):
    drafts_of(([")"], 0.5), ([" very", " much"], 0.4))
    answer = ask(client, trigger="automatic")
    assert texts(answer) == [" very much"]
    event = {"completion_id": answer["id"], "event": "accepted", "index": 0}
    assert client.post("/v1/feedback", json=event).status_code == 200
    assert client.post("/v1/feedback", json={**event, "index": 1}).status_code == 400


def test_events_are_recorded_without_texts_and_tune_the_minimum(make_client, drafts_of, tmp_path):
    file = tmp_path / "events.jsonl"
    client = make_client(feedback_file=file)
    drafts_of(([" very", " much"], 0.5), ([" for", " coming"], 0.25))
    answer = ask(client, trigger="automatic")
    for event, index in (("shown", 0), ("accepted", 0), ("accepted", 0), ("dismissed", 1)):
        client.post("/v1/feedback", json={"completion_id": answer["id"], "event": event, "index": index})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["event"], row["index"], row["num_characters"]) for row in rows] == [
        ("shown", 0, 10),
        ("accepted", 0, 10),  # once
        ("dismissed", 1, 11),
    ]
    assert [row["probability"] for row in rows] == pytest.approx([0.5, 0.5, 0.25])
    assert "very" not in file.read_text()
    looks = [look for (look,) in looks_of_events(file)["all"]]
    assert [look.keys_saved for look in looks] == [9, 0]
    assert (
        best_of([effect_of(minimum, [[look] for look in looks], 1.0) for minimum in (0, 0.3, 0.6)]).probability == 0.3
    )


def test_a_file_that_cannot_be_written_costs_no_event(make_client, drafts_of, tmp_path):
    client = make_client(feedback_file=tmp_path)
    drafts_of(([" very", " much"], 0.5))
    answer = ask(client, trigger="automatic")
    event = {"completion_id": answer["id"], "event": "shown"}
    assert client.post("/v1/feedback", json=event).json()["counted"]


def test_a_stream_withholds_in_its_snapshots_too(client, engine, kept_up_with):
    body = {"prompt": "Thank you", "max_tokens": 3, "stream": True, "trigger": "automatic"}
    *snapshots, answer = parsed(client.post(PATH, json=body).content)
    assert [len(snapshot["drafts"]) for snapshot in snapshots] == [1, 1]  # the others have no probability yet
    assert [draft["text"] for draft in answer["drafts"]] == [" red0 red1 red2", " green0 green1 green2"]
    silent = parsed(client.post(PATH, json={**body, "min_probability_shown": 0.9}).content)
    assert len(silent) == 3
    assert all(event["drafts"] == [] and event.get("stable_text", "") == "" for event in silent)


# Editors, which do not say what triggered a request

TABBY = {"segments": {"prefix": "Thank you"}}
ROUTES = {
    "/infill": ({"input_prefix": "Thank you", "input_suffix": ""}, lambda answer: answer["content"]),
    "/completion": ({"prompt": "Thank you"}, lambda answer: answer["content"]),
    "/v1/fim/completions": ({"prompt": "Thank you"}, lambda answer: answer["choices"][0]["message"]["content"]),
    "tabby": (TABBY, lambda answer: answer["choices"][0]["text"]),
}
editors_routes = pytest.mark.parametrize("route", ROUTES)


def suggested(client, route, **fields):
    body, read = ROUTES[route]
    response = client.post("/v1/completions" if route == "tabby" else route, json={**body, **fields})
    assert response.status_code == 200, response.text
    return read(response.json())


@editors_routes
def test_an_editor_gets_a_draft_however_improbable_unless_the_operator_sets_a_minimum(make_client, drafts_of, route):
    drafts_of(([" very", " much"], 0.2999), ([" for", " coming"], 0.01))
    assert suggested(make_client(min_probability_shown=0.3), route) == " very much"
    assert suggested(make_client(editor_min_probability_shown=0.3), route) == ""
    assert suggested(make_client(editor_min_probability_shown=0.2), route) == " very much"


@editors_routes
def test_an_editors_own_minimum_wins(make_client, drafts_of, route):
    drafts_of(([" very", " much"], 0.5))
    client = make_client(editor_min_probability_shown=0.9)
    assert suggested(client, route, min_probability_shown=0) == " very much"
    assert suggested(client, route, min_probability_shown=None) == ""
    assert suggested(make_client(), route, min_probability_shown=0.6) == ""


@editors_routes
def test_a_minimum_that_is_no_probability_is_refused(client, route):
    body, _ = ROUTES[route]
    path = "/v1/completions" if route == "tabby" else route
    assert client.post(path, json={**body, "min_probability_shown": 1.5}).status_code == 400


def test_editors_can_read_an_answer_without_a_suggestion(make_client, drafts_of):
    client = make_client(editor_min_probability_shown=0.3)
    drafts_of(([" very", " much"], 0.2), ([" for", " coming"], 0.1), (["."], 0.05))
    assert editors.LlamaVimAnswer.read(client.post("/infill", json=editors.LLAMA_VIM).text).content == ""
    answer = client.post("/infill", json=editors.LLAMA_VSCODE).json()
    assert editors.LlamaVscode.read(answer, "array").contents == [""]
    assert answer[0]["stop_type"] == "eos"
    events = editors.continue_events(client.post("/v1/fim/completions", json=editors.CONTINUE_FIM).text)
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["", ""]
    tabby = editors.TabbyAnswer.model_validate_json(client.post("/v1/completions", json=editors.TABBY).text)
    assert [choice.text for choice in tabby.choices] == [""]


def test_several_suggestions_lose_the_improbable_ones(make_client, drafts_of):
    drafts_of(([" very", " much"], 0.5), ([" for", " coming"], 0.1), ([" so", " much"], 0.4))
    answer = make_client(editor_min_probability_shown=0.3).post("/infill", json=editors.LLAMA_VSCODE).json()
    assert editors.LlamaVscode.read(answer, "array").contents == [" very much", " so much"]
    assert [one["index"] for one in answer] == [0, 1]


def test_openais_wire_withholds_only_for_those_who_ask(make_client, drafts_of):
    client = make_client(editor_min_probability_shown=0.9, min_probability_shown=0.9)
    drafts_of(([" very", " much"], 0.5), ([" for", " coming"], 0.1))
    body = {"prompt": "Thank you", "n": 2}

    def choices(**fields):
        return client.post("/v1/completions", json={**body, **fields}).json()["choices"]

    assert [choice["text"] for choice in choices()] == [" very much", " for coming"]
    assert [choice["text"] for choice in choices(min_probability_shown=0.3)] == [" very much"]
    (empty,) = choices(min_probability_shown=0.6)
    assert (empty["text"], empty["finish_reason"]) == ("", "stop")
    answer = client.post("/v1/completions", json={**body, "selection": "paper", "min_probability_shown": 0.6}).json()
    assert [choice["text"] for choice in answer["choices"]] == [" very much", " for coming"]
    assert any("min_probability_shown has no effect" in warning for warning in answer["warnings"])


def test_openais_stream_sends_nothing_that_is_withheld_later(client, kept_up_with):
    body = {"prompt": "Thank you", "max_tokens": 3, "stream": True}
    sent = editors.continue_events(client.post("/v1/completions", json=body).text)
    assert len(sent) > 1
    (event,) = editors.continue_events(
        client.post("/v1/completions", json={**body, "min_probability_shown": 0.99}).text
    )
    assert (event["choices"][0]["text"], event["choices"][0]["finish_reason"]) == ("", "stop")


# Text after the cursor


def test_inside_a_line_nothing_is_suggested_without_fill_in_the_middle(client, engine, drafts_of):
    drafts_of(([" very", " much"], 0.9))
    answer = ask(client, trigger="automatic", suffix=" for your mail.\n")
    assert texts(answer) == []
    assert answer["warnings"] == [INSIDE_A_LINE]
    assert engine.seen[-1].params.max_tokens == 0
    for suffix in ("", "\n", "\nBest regards", ")\n", '";\n'):
        assert texts(ask(client, trigger="automatic", suffix=suffix)) == [" very much"]


def test_who_asks_gets_drafts_inside_a_line_that_end_at_the_text_after_it(client, drafts_of):
    drafts_of(([" very", " much", " for", " your", " mail"], 0.9), ([" so", " much"], 0.8))
    answer = ask(client, trigger="invoked", suffix=" for your mail.\n")
    assert texts(answer) == [" very much"]  # the other one has not come so far
    assert any("has not seen" in warning for warning in answer["warnings"])


def test_a_model_with_fill_in_the_middle_suggests_inside_a_line_what_joins(make_client, engine, drafts_of):
    engine.tokenizer.vocabulary = {**engine.tokenizer.vocabulary, **FIM}
    client = make_client()
    drafts_of(
        ([" very", " much"], 0.9, "stop"),
        ([" a", " lot"], 0.8, "length"),  # it may go on
        ([" for", " all"], 0.7, "improbable"),
        ([" indeed", "."], 0.6, "stop"),  # a small letter follows
        ([" so", " "], 0.5, "length"),  # its end is in the text after it already
        ([" well", "\n"], 0.4, "length"),  # it would begin a new line
        ([" often", " for your mail.", "\n"], 0.3, "length"),
    )
    assert texts(ask(client, trigger="automatic", suffix=" for your mail.\n")) == [" very much", " so", " often"]
    assert len(texts(ask(client, suffix=" for your mail.\n"))) == 7
    assert engine.seen[-1].token_ids[0] == FIM["<|fim_prefix|>"]


def test_token_ids_have_no_suffix(client):
    response = client.post(PATH, json={"prompt": [1, 2], "suffix": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert client.post(PATH, json={"prompt": [1, 2], "trigger": "automatic"}).status_code == 200


# Corrections


@pytest.mark.parametrize(
    ("fields", "is_allowed"),
    [
        ({"corrections": "on"}, True),
        ({"corrections": "on", "path": "notes/today.md"}, True),
        ({"corrections": "on", "suffix": "\nBest regards"}, True),
        ({"corrections": "on", "path": "main.py"}, False),
        ({"corrections": "on", "path": "Makefile"}, False),
        ({"corrections": "on", "suffix": " then."}, False),
        ({"corrections": "off"}, False),
        ({}, False),
    ],
)
def test_corrections_are_for_prose_at_the_end_of_a_line_that_asks_for_them(client, engine, fields, is_allowed):
    ask(client, "See you tomorow", **fields)
    assert engine.seen[-1].params.corrections is is_allowed


def test_no_corrections_for_token_ids_or_with_a_model_for_code(client, engine, monkeypatch):
    ask(client, [1, 2, 3], corrections="on")
    assert not engine.seen[-1].params.corrections
    monkeypatch.setattr(engine.tokenizer, "vocabulary", engine.tokenizer.vocabulary | FIM)
    for_code = create_app(Settings(), engine, model_name="tiny")
    with TestClient(for_code) as other:
        ask(other, "See you tomorow", corrections="on")
    assert not engine.seen[-1].params.corrections


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/fim/completions", "/infill", "/completion"])
def test_wires_that_can_only_insert_get_none(client, engine, route):
    body = {"input_prefix": "See you tomorow", "input_suffix": ""} if route == "/infill" else {}
    response = client.post(route, json={"prompt": "See you tomorow", "n_predict": 4, "max_tokens": 4, **body})
    assert response.status_code == 200, response.text
    assert not engine.seen[-1].params.corrections


@pytest.mark.parametrize("fields", [{}, {"trigger": "automatic"}, {"trigger": "invoked"}])
def test_a_draft_says_what_it_replaces(client, engine, monkeypatch, fields):
    replaces = Replaced("tomorow")
    drafts = (
        DraftOutput(0, "tomorrow at", (0, 1), ("tomorrow", " at"), -0.1, (-0.1, -0.2), "stop", None, replaces),
        DraftOutput(1, " at noon", (0, 1), (" at", " noon"), -1.0, (-0.1, -0.2), "stop"),
    )
    monkeypatch.setattr(
        engine, "output_of", lambda job: replace(type(engine).output_of(engine, job), drafts=drafts), raising=False
    )
    answer = ask(client, "See you tomorow", corrections="on", **fields)
    assert [(draft["text"], draft["replaces"]) for draft in answer["drafts"]] == [
        ("tomorrow at", {"characters": 7, "text": "tomorow"}),
        (" at noon", None),
    ]


def test_snapshots_say_what_they_replace():
    snapshot = Snapshot(1, (DraftSnapshot("tomorrow", -0.1, Replaced("tomorow")), DraftSnapshot(" at", -1.0)), "")
    sent = drafts_snapshot("drafts-1", snapshot).model_dump()
    assert [draft["replaces"] for draft in sent["drafts"]] == [{"characters": 7, "text": "tomorow"}, None]


def test_a_correction_is_tidied_after_the_text_that_stays():
    """What it replaces is not before it: the draft would seem to repeat it."""
    draft = DraftSnapshot("again and again", -0.1, Replaced("agian"))
    display = Display(Gap("We tried agian"), is_tidy=True)
    (shown,) = display.shown_so_far(Snapshot(1, (draft,), ""), GenerationParams(selection="distinct")).drafts
    assert shown.text == "again and again"
    assert kept("We tried agian", draft.replaces) == "We tried "
