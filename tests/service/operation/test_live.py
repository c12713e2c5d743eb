"""A real uvicorn on a real socket: our client, and clients that leave."""

import functools
import threading
import time

import httpx
import pytest
from support.serving import num_commands, raw_request, serving
from support.waiting import PATIENCE_S, eventually

from superdraft.client import Superdraft
from superdraft.server.app import create_app
from superdraft.server.settings import Settings


def test_our_client(url):
    with Superdraft(url) as client:
        completion = client.complete("hi", num_drafts=2, max_tokens=1)
    assert [draft.text for draft in completion.drafts] == [" red0", " green0"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/drafts"])
def test_client_that_leaves_cancels_its_request(app, url, engine, stepwise, path):
    with raw_request(url, path, prompt="hi", max_tokens=50):
        assert eventually(lambda: len(engine.seen) == 1)
    assert eventually(lambda: num_commands(app) == 1)
    stepwise.release(1000)
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
        thread.join(PATIENCE_S)
    assert texts == {i: "".join(f" red{j}" for j in range(i)) for i in range(1, 9)}


def test_shutdown_gives_time_and_then_answers_with_a_retry_hint(engine):
    app = create_app(Settings(shutdown_grace_s=0.3), engine, model_name="tiny")
    is_stopping = functools.partial(eventually, lambda: not app.state.service.engine.is_ready)
    # The short request has all steps that it needs in no time, the long one never.
    engine.on_step = lambda: is_stopping() and len(engine.jobs) == 1 and time.sleep(0.02)
    answers = {}

    def ask(url, max_tokens):
        answers[max_tokens] = httpx.post(f"{url}/v1/drafts", json={"prompt": "hi", "max_tokens": max_tokens})

    with serving(app) as url:
        threads = [threading.Thread(target=ask, args=(url, max_tokens)) for max_tokens in (5, 50)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: len(engine.seen) + num_commands(app) == 2)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers[5].status_code == 200
    assert answers[50].status_code == 503
    assert answers[50].json()["error"]["code"] == "shutting_down"
    headers = [answers[50].headers[name] for name in ("x-should-retry", "retry-after-ms", "retry-after")]
    assert headers == ["true", "1000", "1"]  # another server may be there by then
    assert engine.jobs == {}


def test_a_server_whose_engine_has_failed_answers_and_ends_by_itself(engine, app, url):
    is_broken = threading.Event()

    def crash_when_broken():
        is_broken.wait(PATIENCE_S)
        raise RuntimeError("broken")

    engine.on_step = crash_when_broken
    engine.cancel = lambda request_id: False
    answers = []

    def ask():
        answers.append(httpx.post(f"{url}/v1/drafts", json={"prompt": "hi"}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(engine.seen) + num_commands(app) == 5)
    is_broken.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(answers) == 5
    assert set(answers) <= {500, 503}  # 503: the engine had not taken the request

    def is_closed():
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return True
        return False

    assert eventually(is_closed)
