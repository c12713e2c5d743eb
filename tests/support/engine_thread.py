"""Runs of a test scenario against an engine thread."""

import asyncio
import threading

from support.waiting import PATIENCE_S

from superdraft.server.bridge.async_engine import AsyncEngine


async def generate(async_engine, request, session=None):
    """Queue a request of a typing session and wait for its drafts."""
    stream = await async_engine.stream(request, async_engine.typists.of("", session))
    return await stream.result()


def run(engine, scenario):
    """Run `scenario(async_engine)` with a started engine, then check that the engine thread has ended."""

    async def main():
        async_engine = AsyncEngine(engine)
        async_engine.start()
        try:
            return await asyncio.wait_for(scenario(async_engine), PATIENCE_S)
        finally:
            await async_engine.stop(grace_s=0)

    before = threading.active_count()
    try:
        return asyncio.run(main())
    finally:
        assert not any(thread.name == "superdraft-engine" for thread in threading.enumerate())
        assert threading.active_count() <= before
