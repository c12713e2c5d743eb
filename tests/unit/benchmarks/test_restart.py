"""The clients of the restart benchmark, against a server that is stopped under them."""

import asyncio
import contextlib
import time

from support.engine import FakeEngine
from support.serving import serving
from support.waiting import PATIENCE_S, until

from superdraft.benchmarks.over_http.restart import ANSWERED, BROKEN_OFF, NO_SERVER, OUTCOMES, SHUTTING_DOWN, Clients
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

COUNT = 3


def test_every_request_has_one_outcome_whatever_becomes_of_the_server():
    engine = FakeEngine(max_model_len=200, on_step=lambda: time.sleep(0.005))
    app = create_app(Settings(), engine, model_name="tiny")

    async def scenario(url, stop_server):
        clients = Clients(url, COUNT, max_tokens=4)
        asking = [asyncio.create_task(clients.run(i)) for i in range(COUNT)]
        await clients.all_answered(PATIENCE_S)
        before = clients.seen
        clients.start_counting()
        assert clients.seen.num_sent <= COUNT  # those that are on their way
        await clients.all_answered(PATIENCE_S)
        await asyncio.to_thread(stop_server)
        await until(lambda: clients.seen.outcomes[NO_SERVER] >= COUNT)
        clients.stop()
        await asyncio.gather(*asking)
        return before, clients.seen

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(app))
        before, seen = asyncio.run(scenario(url, stack.close))
    assert set(before.outcomes) == {ANSWERED}
    assert seen.outcomes.total() == seen.num_sent
    assert seen.outcomes[ANSWERED] >= COUNT
    assert set(seen.outcomes) <= {ANSWERED, SHUTTING_DOWN, BROKEN_OFF, NO_SERVER} < set(OUTCOMES)
    assert seen.longest_gap_s > 0
