"""The typing session's driver, with a scripted client."""

import asyncio
import contextlib

import pytest
from support.typist import answer
from support.waiting import PATIENCE_S, until

from superdraft.client import AsyncTypingSession, FeedbackReceipt
from superdraft.client.errors import ConnectionFailedError, NotFoundError


class ScriptedClient:
    """Answers each prompt with the drafts it is told, when `gate` is open."""

    def __init__(self, drafts):
        self.drafts = drafts
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked, self.ended, self.reported = [], [], []
        self.error = None

    async def complete(self, prompt, **options):
        self.asked.append((prompt, options))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append(prompt)
            raise
        if self.error is not None:
            raise self.error
        return answer(f"drafts-{len(self.asked)}", *self.drafts.get(prompt, ()))

    async def feedback(self, completion_id, event, rank=0, **details):
        self.reported.append((completion_id, event, rank))
        if self.error is not None:
            raise self.error
        return FeedbackReceipt(rank, True)


@contextlib.asynccontextmanager
async def typing(drafts, **options):
    client, changes = ScriptedClient(drafts), []
    async with AsyncTypingSession(client, lambda: changes.append(1), **options) as session:
        session.changes = changes
        yield client, session


def test_types_accepts_and_prefetches():
    async def run():
        async with typing({"hi": (" there", " you"), "hi you": ("!",)}, num_drafts=2, model="tiny") as (
            client,
            session,
        ):
            session.edit("hi")
            await until(lambda: session.display.ghost)
            assert [suggestion.text for suggestion in session.display.suggestions] == [" there", " you"]
            assert session.changes
            session.select_next()
            assert session.accept() == " you"
            assert session.text == "hi you"
            assert session.accept() == session.accept_word() == ""  # nothing is shown yet
            await until(lambda: session.display.ghost)
            assert session.display.ghost.text == "!"
        (_, options), (prompt, _) = client.asked
        assert prompt == "hi you"
        assert options.pop("session_id").startswith("typing-")
        assert options == {
            "num_drafts": 2,
            "max_tokens": 10,
            "trigger": "automatic",
            "max_retries": 0,
            "model": "tiny",
        }
        assert ("drafts-1", "accepted", 1) in client.reported

    asyncio.run(run())


def test_cancelling_cancels_the_task():
    async def run():
        async with typing({}) as (client, session):
            client.gate.clear()
            session.edit("hi")
            await until(lambda: client.asked)
            assert session.is_waiting
            session.edit("h")
            await until(lambda: client.ended == ["hi"])
            await until(lambda: len(client.asked) == 2)
        assert client.ended == ["hi", "h"]  # leaving cancels, too

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionFailedError("nobody"), "nobody"),
        (ValueError("half a surrogate"), "half a surrogate"),
        (RuntimeError("the client has been closed"), "RuntimeError: the client has been closed"),
    ],
)
def test_failures_are_told(error, told):
    async def run():
        async with typing({}) as (client, session):
            client.error = error
            session.edit("hi")
            await until(lambda: session.error)
            assert str(session.error) == told
            assert not session.is_waiting

    asyncio.run(run())


def test_a_session_that_has_not_begun_says_so():
    session = AsyncTypingSession(ScriptedClient({}))
    with pytest.raises(RuntimeError, match="async with"):
        session.edit("hi")


def test_reports_can_fail_or_be_left_out():
    async def run(*, report):
        async with typing({"hi": (" you",)}, report=report) as (client, session):
            session.edit("hi")
            await until(lambda: session.display.ghost)
            client.error = NotFoundError("off", status=404)
            session.dismiss()
        return [event for _, event, _ in client.reported]

    assert asyncio.run(run(report=True)) == ["shown", "dismissed"]
    assert asyncio.run(run(report=False)) == []


def test_leaving_waits_for_reports_but_not_for_ever():
    async def run():
        client = ScriptedClient({"hi": (" you",)})
        hanging = asyncio.Event()

        async def hang(*args, **details):
            await hanging.wait()

        async with AsyncTypingSession(client) as session:
            session.edit("hi")
            await until(lambda: session.display.ghost)
            client.feedback = hang
            session.dismiss()
            async with asyncio.timeout(PATIENCE_S):
                await session.close(timeout_s=0.05)

    asyncio.run(run())


def test_text_after_the_cursor_is_sent_and_a_word_is_returned():
    async def run():
        async with typing({"hi": (" there all", " you")}, trigger="invoked") as (client, session):
            session.edit("hi", "\nBest regards")
            await until(lambda: session.display.ghost)
            assert client.asked[0][1]["suffix"] == "\nBest regards"
            assert client.asked[0][1]["trigger"] == "invoked"
            assert session.accept_word() == " there"
            assert session.display.ghost.text == " all"

    asyncio.run(run())
