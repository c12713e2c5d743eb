"""`POST /v1/completions` with `stream`: the deltas of every index are the text of the same request at once."""

import concurrent.futures
import json
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from support.decoding import HashScorer, tiny_engine
from support.ngram_folders import NamedScorers
from support.rounded import nearly
from support.serving import num_commands, num_twins, raw_request, read_to_end, serving
from support.sse import parsed
from support.waiting import eventually

from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.settings import Settings
from superdraft.server.wires import streaming
from superdraft.server.wires.openai import mapping

DRAFTING = DraftingDefaults(alpha=0.3, tau=0.8)

PATH = "/v1/completions"
CHUNK = {"id", "object", "created", "model", "choices", "system_fingerprint", "warnings"}


def ask(client, **body):
    response = client.post(PATH, json={"prompt": "hi", "max_tokens": 3, "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    return response


def read(content, with_usage=False):
    """Check what holds for every stream; its choices joined, by index, and the usage."""
    events = parsed(content)
    usage = events.pop()["usage"] if with_usage else None
    joined = {}
    for event in events:
        assert set(event) == CHUNK | ({"usage"} if with_usage else set())
        assert event.get("usage") is None
        assert event["object"] == "text_completion"
        assert {key: event[key] for key in ("id", "created", "model")} == {
            key: events[0][key] for key in ("id", "created", "model")
        }
        (choice,) = event["choices"]
        whole = joined.setdefault(choice["index"], {"text": "", "finish_reason": None})
        assert whole["finish_reason"] is None  # nothing comes after a choice's end
        assert choice["finish_reason"] in (None, "stop", "length")
        assert choice["text"] or choice["finish_reason"]
        joined[choice["index"]] = {**choice, "text": whole["text"] + choice["text"]}
    assert all(choice["finish_reason"] for choice in joined.values())
    return [joined[index] for index in sorted(joined)], usage


@pytest.fixture(scope="module")
def tiny_client():
    engine, _ = tiny_engine()
    ngrams = NamedScorers({"hash": HashScorer()}, default="hash")
    app = create_app(Settings(fan_out=1), engine, model_name="tiny", ngram_models=ngrams, drafting=DRAFTING)
    with TestClient(app) as client:
        client.forget_prompts = engine.forget_prompts  # while nothing runs
        yield client


# Pieces of what the tiny model writes, alone and as beginnings and ends of one another.
STOPS = st.sampled_from(["e", "er", "he", " a", "th", "ing", "o t", ".", "it", "\n", "é", "ed\n", "a\u2028b"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.sampled_from(["Thank you", "def add(a", "We're at the ca", "café — ", "x\n", ""]), min_size=1),
    one_text=st.booleans(),
    n=st.integers(1, 4),
    more=st.integers(0, 2),
    max_tokens=st.integers(0, 14),
    stop=st.lists(STOPS, max_size=3),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "single_line": st.booleans(),
            "echo": st.booleans(),
            "token_healing": st.booleans(),
            "logprobs": st.integers(0, 2),
            "strategy": st.sampled_from(["sample", "greedy", "sample+superposed"]),
            "frequency_penalty": st.just(1.5),
            "logit_bias": st.just({"0": 4, "260": 6, "12": 5}),
        },
    ),
)
def test_joined_deltas_are_the_unary_answer(tiny_client, prompt, one_text, n, more, max_tokens, stop, fields):
    body = {
        "prompt": prompt[0] if one_text else prompt[:4],
        "n": n,
        "best_of": min(n + more, 4),
        "max_tokens": max_tokens,
        "stop": stop,
        "seed": 3,
        **fields,
    }
    tiny_client.forget_prompts()  # both answers are computed in the same way: the model is near a tie very often
    response = ask(tiny_client, **body, stream_options={"include_usage": True})
    streamed, usage = read(response.content, with_usage=True)
    tiny_client.forget_prompts()
    unary = tiny_client.post(PATH, json=body).json()
    assert nearly(streamed) == nearly(unary["choices"])
    for answered in (usage, unary["usage"]):
        del answered["prompt_tokens_details"]  # prompts of one request may find one another's beginnings, or not
    assert usage == unary["usage"]


@pytest.mark.usefixtures("kept_up_with")
def test_one_draft_streams_as_it_grows(make_client):
    events = parsed(ask(make_client(fan_out=1)).content)
    choices = [event["choices"][0] for event in events]
    assert [choice["text"] for choice in choices] == [" red0", " red1", " red2"]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert [choice["score"] for choice in choices] == [None, None, -0.5]


@pytest.mark.usefixtures("kept_up_with")
def test_several_drafts_stream_what_they_agree_on_then_each_rest(client):
    choices = [event["choices"][0] for event in parsed(ask(client, n=2, max_tokens=2).content)]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (0, " "),  # all begin with it
        (0, "red0 red1"),
        (1, " green0 green1"),
    ]


def test_usage_comes_last_and_only_on_demand(client):
    *chunks, last = parsed(ask(client, n=2, stream_options={"include_usage": True}).content)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (2, 6)
    assert all(chunk["usage"] is None for chunk in chunks)
    for options in (None, {}, {"include_usage": False}, {"include_usage": None, "include_obfuscation": True}):
        events = parsed(ask(client, stream_options=options).content)
        assert all("usage" not in event and event["choices"] for event in events)


def test_warnings_are_in_the_header_and_the_last_choice(client, engine):
    engine.warnings = ("The prompt was cut.",)
    response = ask(client, prompt=["a", "b"], seed=1)
    vain = "seed has no effect with strategy superposed."
    assert response.headers["x-superdraft-warnings"] == vain
    *others, last = [event["warnings"] for event in parsed(response.content)]
    assert last == [vain, "The prompt was cut."]
    assert not any(others)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"n": 0}, 400, "n"),
        ({"prompt": ["fine", "x" * 100, "fine"]}, 400, "prompt"),
        ({"model": "other"}, 404, "model"),
        ({"stream_options": {"include_usage": "yes"}}, 400, "stream_options"),
    ],
)
def test_refusals_are_ordinary_errors_and_leave_nothing_behind(client, engine, body, status, param):
    engine.on_step = engine.never_end
    response = client.post(PATH, json={"prompt": "hi", "stream": True, **body})
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert eventually(lambda: not engine.jobs)
    assert engine.seen == [] or set(engine.cancelled) == {job.request_id for job in engine.seen}


@pytest.mark.usefixtures("kept_up_with")
def test_error_of_one_prompt_ends_the_stream_and_the_other_prompts(client, engine):
    keep_up = engine.on_step

    def fail_second_prompt():
        keep_up()
        for job in engine.jobs.values():
            if job.request_id.endswith("-1") and job.num_steps == 2:
                engine.fail[job.request_id] = SequenceFailedError("No numbers.")

    engine.on_step = fail_second_prompt
    *chunks, last = parsed(ask(client, prompt=["a", "b"], max_tokens=50).content)
    assert last == {
        "error": {"message": "No numbers.", "type": "server_error", "param": None, "code": "sequence_failed"}
    }
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert eventually(lambda: [name[-2:] for name in engine.cancelled] == ["-0"] and not engine.jobs)


def test_keep_alive_while_nothing_is_settled(url, stepwise, monkeypatch):
    """Drafts that agree on nothing new are steps without an event; the connection must not look dead."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    body = {"prompt": "hi", "n": 2, "max_tokens": 20, "stream": True}
    with httpx.stream("POST", url + PATH, json=body) as response:
        lines = response.iter_lines()
        stepwise.release()
        while "data:" not in next(lines):  # what all begin with
            pass
        for _ in range(4):
            stepwise.release()
            while next(lines) != ": keep-alive":
                pass
        stepwise.release(100)
        rest = [line for line in lines if line.startswith("data: ")]
    assert [json.loads(line.removeprefix("data: "))["choices"][0]["index"] for line in rest[:-1]] == [0, 1]
    assert rest[-1] == "data: [DONE]"


@pytest.mark.parametrize("prompts", [["hi"], ["hi", "ho", "ha"]])
def test_reader_that_leaves_cancels_every_prompt(app, url, engine, stepwise, prompts):
    with raw_request(url, PATH, prompt=prompts, max_tokens=50, stream=True) as connection:
        said = b""
        while b"data:" not in said:
            stepwise.release()
            said += connection.recv(4096)
    # The engine may have leave for a step more, and take the commands before they are seen.
    assert eventually(lambda: num_commands(app) + len(engine.cancelled) == len(prompts))
    stepwise.release(100)
    assert eventually(lambda: len(engine.cancelled) == len(prompts))
    assert engine.jobs == {}


def test_reader_that_stops_reading_holds_nobody_and_misses_no_text(engine, monkeypatch):
    monkeypatch.setattr(mapping, "MAX_PROMPTS", 512)
    engine.max_model_len = 4096
    engine.on_step = lambda: time.sleep(0.0005)
    app = create_app(Settings(max_request_tokens=100_000), engine, model_name="tiny")
    prompts = ["h"] * 400
    with (
        serving(app) as url,
        raw_request(url, PATH, prompt=prompts, max_tokens=200, stream=True) as stalled,
    ):
        assert eventually(lambda: len(engine.seen) == len(prompts))
        assert eventually(lambda: not engine.jobs)  # 80,000 events for one who reads none of them
        assert engine.cancelled == []
        assert TestClient(app).get("/health").status_code == 200
        content = b""
        while not content.endswith(b"0\r\n\r\n"):
            content += stalled.recv(1 << 16)
    events = [line for line in content.split(b"\n") if line.startswith(b"data: ")]
    assert events.pop() == b"data: [DONE]"
    texts = [""] * len(prompts)
    for event in events:
        (choice,) = json.loads(event.removeprefix(b"data: "))["choices"]
        texts[choice["index"]] += choice["text"]
    assert set(texts) == {"".join(f" red{i}" for i in range(200))}
    assert len(events) < 40_000  # what the sockets could not hold was joined, not stored


def in_flight_together(count, app, url, stepwise):
    """The answers to twins that are all there before the engine's second step."""
    body = {"prompt": "hi", "max_tokens": 6, "stream": True}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = [pool.submit(httpx.post, url + PATH, json=body) for _ in range(count)]
        assert eventually(lambda: num_twins(app) == count)
        stepwise.release(100)
        return [answer.result() for answer in answers]


def test_twins_in_flight_stream_different_drafts_of_one_run(app, url, engine, stepwise):
    choices = [read(answer.content)[0] for answer in in_flight_together(3, app, url, stepwise)]
    assert sorted(choice["text"].split()[0] for (choice,) in choices) == ["blue0", "green0", "red0"]
    assert {choice["index"] for (choice,) in choices} == {0}
    assert len(engine.seen) == 1
    assert engine.seen[0].params.snapshots


def test_first_of_twins_leaves_and_the_second_is_served(app, url, engine, stepwise):
    body = {"prompt": "hi", "max_tokens": 30, "stream": True}
    with raw_request(url, PATH, **body) as first:
        stepwise.release()
        assert first.recv(4096)
        with raw_request(url, PATH, **body) as second:
            assert eventually(lambda: num_twins(app) == 2)
            first.close()
            assert eventually(lambda: num_twins(app) == 1)
            stepwise.release(100)
            content = read_to_end(second)
    assert b"[DONE]" in content
    assert engine.cancelled == []
    assert len(engine.seen) == 1


def test_twins_that_all_leave_cancel_the_run(app, url, engine, stepwise):
    with raw_request(url, PATH, prompt="hi", max_tokens=50, stream=True) as first:
        stepwise.release()
        assert first.recv(4096)
        with raw_request(url, PATH, prompt="hi", max_tokens=50, stream=True):
            assert eventually(lambda: num_twins(app) == 2)
    assert eventually(lambda: num_commands(app) == 1)
    stepwise.release(100)
    assert eventually(lambda: engine.cancelled == [engine.seen[0].request_id] and not engine.jobs)


def test_shared_run_that_fails_tells_every_twin(app, url, engine, stepwise):
    step = engine.on_step

    def fail():
        step()
        engine.fail.update(
            {name: SequenceFailedError("No numbers.") for name, job in engine.jobs.items() if job.num_steps > 1}
        )

    engine.on_step = fail
    answers = in_flight_together(2, app, url, stepwise)
    assert sorted(answer.status_code for answer in answers) == [200, 500]  # the twin had got nothing yet
    for answer in answers:
        error = parsed(answer.content)[-1] if answer.status_code == 200 else answer.json()
        assert error["error"]["code"] == "sequence_failed"
    assert len(engine.seen) == 1
