"""Both clients with one face, so that a test is written once: the asynchronous one runs in an event loop of its own."""

import asyncio

import httpx

from superdraft.client import AsyncSuperdraft, Superdraft

URL = "http://server:8000"


class SyncFace:
    """The synchronous client."""

    def __init__(self, url=URL, handler=None, **options):
        transport = None if handler is None else httpx.MockTransport(handler)
        self.make = lambda: Superdraft(url, transport=transport, **options)
        self.make().close()  # what is wrong with the options is said at once

    def call(self, method, *args, **options):
        with self.make() as client:
            return getattr(client, method)(*args, **options)

    def complete_and(self, event, rank=0, **options):
        """Complete "hi" and report an event of it: (completion, receipt)."""
        with self.make() as client:
            completion = client.complete("hi", max_tokens=2)
            return completion, getattr(completion, event)(rank, **options)

    def stream(self, seen=None, most=None, **options):
        """Stream "hi": (snapshots, completion). `seen` gets them as they come; `most`: leave after so many."""
        seen = [] if seen is None else seen
        with self.make() as client, client.stream("hi", **options) as stream:
            for snapshot in stream:
                seen.append(snapshot)
                if len(seen) == most:
                    return seen, None
            return seen, stream.result()


class AsyncFace:
    """The asynchronous client."""

    def __init__(self, url=URL, handler=None, **options):
        async def handle(request):
            return handler(request)

        transport = None if handler is None else httpx.MockTransport(handle)
        self.make = lambda: AsyncSuperdraft(url, transport=transport, **options)
        self.make()  # what is wrong with the options is said at once

    def call(self, method, *args, **options):
        async def run():
            async with self.make() as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(run())

    def complete_and(self, event, rank=0, **options):
        async def run():
            async with self.make() as client:
                completion = await client.complete("hi", max_tokens=2)
                return completion, await getattr(completion, event)(rank, **options)

        return asyncio.run(run())

    def stream(self, seen=None, most=None, **options):
        async def run():
            snapshots = [] if seen is None else seen
            async with self.make() as client, client.stream("hi", **options) as stream:
                async for snapshot in stream:
                    snapshots.append(snapshot)
                    if len(snapshots) == most:
                        return snapshots, None
                return snapshots, await stream.result()

        return asyncio.run(run())


FACES = {"sync": SyncFace, "async": AsyncFace}
