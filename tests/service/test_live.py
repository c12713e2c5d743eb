"""A real uvicorn on a real socket: OpenAI's own SDK, our client, and clients that leave."""

import json
import socket
import threading
import time

import openai
import pytest
from support.serving import eventually

from superdraft.client import Superdraft


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
