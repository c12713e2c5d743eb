"""The typing session against a real server, and against the default model."""

import asyncio
import re

import httpx
import pytest
from starlette.testclient import TestClient
from support.replay import Script, Typist, summary
from support.waiting import PATIENCE_S, eventually

from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.client import AsyncSuperdraft, AsyncTypingSession, DraftsAnswer, telemetry
from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

REPLAYED_LATENCY_S = 0.08


def test_typing_accepting_and_telemetry(url, monkeypatch):
    monkeypatch.setattr(telemetry, "SHOWN_AFTER_S", 2 * PATIENCE_S)

    async def run():
        changed = asyncio.Event()
        async with (
            AsyncSuperdraft(url) as client,
            AsyncTypingSession(client, changed.set, num_drafts=2, max_tokens=3) as session,
        ):

            async def ghost():
                async with asyncio.timeout(PATIENCE_S):
                    while session.display.ghost is None:
                        changed.clear()
                        await changed.wait()
                return session.display.ghost.text

            session.edit("hi")
            assert await ghost() == " red0 red1 red2"
            session.edit("hi x")
            assert await ghost() == " red0 red1 red2"  # nothing of the first answer agrees
            session.edit("hi x red0")
            assert session.display.ghost.text == " red1 red2"
            session.accept_word()
            session.accept()
            monkeypatch.setattr(telemetry, "SHOWN_AFTER_S", 0.0)  # the next draft counts as soon as it appears
            assert session.text == "hi x red0 red1 red2"
            assert await ghost() == " red0 red1 red2"
            assert await asyncio.to_thread(eventually, lambda: reported(url).get("shown") == "2")

    asyncio.run(run())
    assert reported(url) == {"shown": "2", "accepted": "1", "dismissed": "1"}


def reported(url):
    """Events of the first draft that the server has counted."""
    text = httpx.get(f"{url}/metrics").text
    return dict(re.findall(r'superdraft_draft_events_total{event="(\w+)",rank="0"} (\d+)', text))


@pytest.fixture(scope="module")
def ask(default_gguf):
    """The default model as a replay wants it, every answer after the same time."""
    settings = Settings(max_model_len=256, num_threads=1)
    app = load_app(settings)
    with TestClient(app) as client:

        def ask(prompt):
            response = client.post("/v1/drafts", json={"prompt": prompt, "num_drafts": 3, "max_tokens": 10})
            return DraftsAnswer.from_json(response.json()), REPLAYED_LATENCY_S

        yield ask


def test_five_hundred_keys_on_the_default_model(ask):
    """What a typing session promises: few requests, and nothing on display that does not fit."""
    typist = Typist(ask, max_keys=500)
    for text in TEXTS:
        typist.type(Script(text[:300], 150))
    typist.close()
    figures = summary(typist.tally)
    assert figures["key_presses"] == 500
    assert figures["requests_per_key"] <= 0.35
    assert figures["answered_locally"] > 0.2
    assert figures["suggestion_before_next_key"] > 0.3
    assert figures["inconsistent"] == 0
    assert figures["reports"]["shown"] > 0


def test_accepting_what_is_right_saves_keys(ask):
    typist = Typist(ask, accepts=True)
    typist.type(Script("Thank you for your email. I will be in touch with you soon. I look forward to hearing", 10))
    assert typist.tally.num_accepted > 0
    assert typist.tally.num_keys < 75
    assert typist.tally.num_inconsistent == 0
