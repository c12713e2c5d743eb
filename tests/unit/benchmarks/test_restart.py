"""The clients of the restart benchmark, against a server that is stopped under them."""

import asyncio
import contextlib
import time

import httpx
from support.engine import FakeEngine
from support.serving import serving
from support.waiting import PATIENCE_S, until

from superdraft.benchmarks.over_http.clients import load
from superdraft.benchmarks.over_http.restart import NO_SERVER, NOT_BROKEN_OFF, Clients
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

COUNT = 3


def test_every_request_has_one_outcome_whatever_becomes_of_the_server():
    engine = FakeEngine(max_model_len=200, on_step=lambda: time.sleep(0.005))
    app = create_app(Settings(), engine, model_name="tiny")

    async def scenario(url, stop_server):
        async with httpx.AsyncClient(base_url=url) as http:
            clients = Clients(http, max_tokens=4)
            async with load(COUNT, clients.send):
                await clients.all_answered(COUNT, PATIENCE_S)
                before = set(clients.answers.outcomes)
                clients.start_counting()
                assert clients.answers.num_sent <= COUNT  # those that are on their way
                await clients.all_answered(COUNT, PATIENCE_S)
                await asyncio.to_thread(stop_server)
                await until(lambda: clients.answers.outcomes[NO_SERVER] >= COUNT)
        return before, clients

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(app))
        before, clients = asyncio.run(scenario(url, stack.close))
    assert before == {"200"}
    outcomes = clients.answers.outcomes
    assert outcomes.total() == clients.answers.num_sent
    assert outcomes["200"] >= COUNT
    assert len(clients.answered_s) == outcomes["200"] + 1  # and the time at which counting began
    assert set(outcomes) - NOT_BROKEN_OFF <= {"ReadError", "RemoteProtocolError"}
