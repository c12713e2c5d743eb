"""Helpers to run a test scenario against an engine thread, and to wait in it."""

import asyncio
import threading
import time

from superdraft.server.bridge.async_engine import AsyncEngine


def run(engine, scenario, timeout_s=60):
    """Run `scenario(async_engine)` with a started engine, then check that the engine thread has ended."""

    async def main():
        async_engine = AsyncEngine(engine)
        async_engine.start()
        try:
            return await asyncio.wait_for(scenario(async_engine), timeout_s)
        finally:
            await async_engine.stop(grace_s=0)

    before = threading.active_count()
    try:
        return asyncio.run(main())
    finally:
        assert not any(thread.name == "superdraft-engine" for thread in threading.enumerate())
        assert threading.active_count() <= before


async def until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.002)
