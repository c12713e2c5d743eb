"""Readers of outputs, for which an engine waits."""

from collections import Counter

import pytest
from support.engine import FakeEngine
from support.waiting import eventually

from superdraft.decoding.outputs import StepOutput
from superdraft.server.bridge.output_stream import OutputStream


def wait_for_readers(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine wait in every step until all outputs are read, so that none takes the place of another."""
    unread: Counter[OutputStream] = Counter()
    send, take = OutputStream.send, OutputStream.take

    def counted_send(self: OutputStream, output: StepOutput) -> None:
        unread[self] += 1
        send(self, output)

    def counted_take(self: OutputStream) -> StepOutput | None:
        output = take(self)
        unread[self] -= output is not None
        return output

    def all_read() -> bool:
        return not any(count for stream, count in list(unread.items()) if not stream.is_over)

    monkeypatch.setattr(OutputStream, "send", counted_send)
    monkeypatch.setattr(OutputStream, "take", counted_take)
    engine.on_step = lambda: eventually(all_read)
