"""A real uvicorn on a real socket: OpenAI's own SDK, our client, and clients that leave."""

import json
import socket
import threading
import time

import httpx
import openai
import pytest
from support.serving import eventually, serving

from superdraft.client import Superdraft
from superdraft.server.app import create_app
from superdraft.server.settings import Settings


@pytest.fixture
def sdk(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_sdk_gets_its_choices(sdk):
    completion = sdk.completions.create(
        model="tiny", prompt="hi", n=3, max_tokens=2, logprobs=2, extra_body={"top_k": 5}
    )
    assert [choice.text for choice in completion.choices] == [" red0 red1", " green0 green1", " blue0 blue1"]
    assert completion.choices[0].logprobs.tokens == [" red0", " red1"]
    assert completion.usage.total_tokens == 8
    assert completion.usage.prompt_tokens_details.cached_tokens == 2
    assert completion._request_id.startswith("req-")


def test_openai_sdk_gets_its_errors(sdk):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="tiny", prompt="hi", n=0)
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="tiny", prompt="hi", stream=True)
    assert caught.value.param == "stream"
    with pytest.raises(openai.NotFoundError):
        sdk.completions.create(model="gpt-4", prompt="hi")


def test_openai_sdk_lists_models(sdk):
    assert [model.id for model in sdk.models.list()] == ["tiny", "superdraft"]
    assert sdk.models.retrieve("tiny").id == "tiny"


def test_our_client(url):
    with Superdraft(url) as client:
        completion = client.complete("hi", num_drafts=2, max_tokens=1)
    assert [draft.text for draft in completion.drafts] == [" red0", " green0"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/drafts"])
def test_client_that_leaves_cancels_its_request(url, engine, path):
    engine.on_step = lambda: time.sleep(0.02)  # a second, for fifty tokens
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "hi", "max_tokens": 50}).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: len(engine.seen) == 1)
    assert eventually(lambda: engine.cancelled == [engine.seen[0].request_id])
    assert engine.jobs == {}
    with Superdraft(url) as client:
        assert client.complete("hi").drafts


def test_requests_at_the_same_time_get_their_own_answers(url):
    texts = {}

    def ask(i):
        with Superdraft(url) as client:
            texts[i] = client.complete("hi", max_tokens=i).drafts[0].text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert texts == {i: "".join(f" red{j}" for j in range(i)) for i in range(1, 9)}


def test_shutdown_gives_time_and_then_answers_with_a_retry_hint(engine):
    engine.on_step = lambda: time.sleep(0.02)
    answers = {}

    def ask(url, max_tokens):
        answers[max_tokens] = httpx.post(
            f"{url}/v1/drafts", json={"prompt": "hi", "max_tokens": max_tokens}, timeout=10
        )

    with serving(create_app(Settings(shutdown_grace_s=0.3), engine, model_name="tiny")) as url:
        threads = [threading.Thread(target=ask, args=(url, max_tokens)) for max_tokens in (5, 50)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: len(engine.seen) == 2)
    for thread in threads:
        thread.join(5)
    assert answers[5].status_code == 200
    assert answers[50].status_code == 503
    assert answers[50].json()["error"]["code"] == "shutting_down"
    assert (answers[50].headers["retry-after-ms"], answers[50].headers["retry-after"]) == ("1000", "1")
    assert engine.jobs == {}


def test_openai_sdk_does_not_retry_a_superseded_request(url, engine):
    engine.on_step = lambda: time.sleep(0.02)
    caught = []

    def older():
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client:
            try:
                client.post("/drafts", body={"prompt": "hi", "session_id": "me", "max_tokens": 50}, cast_to=object)
            except openai.APIStatusError as error:
                caught.append(error.status_code)

    thread = threading.Thread(target=older)
    thread.start()
    assert eventually(lambda: len(engine.seen) == 1)
    with Superdraft(url) as client:
        assert client.complete("hi", max_tokens=1, session_id="me").drafts
    thread.join(5)
    assert caught == [499]
    assert len(engine.seen) == 2


def test_openai_sdk_chooses_the_strategy(sdk, engine):
    completion = sdk.completions.create(
        model="tiny", prompt="hi", n=2, temperature=0.5, seed=3, extra_body={"strategy": "sample"}
    )
    assert len(completion.choices) == 2
    assert engine.seen[0].params.strategy == "sample"
