"""`superdraft try`: keys in, text and ghost text out, with a scripted client."""

import asyncio
import contextlib
import io

import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output
from support.typist import answer

from superdraft.client import AsyncTypingSession, FeedbackReceipt
from superdraft.client.errors import ConnectionFailedError
from superdraft.server.cli.writing.terminal import Terminal

DRAFTS = {"Thank you": (" for your email", " very much"), "Thank you for your email": (".",)}


class ScriptedClient:
    def __init__(self, error=None):
        self.error, self.reported = error, []

    async def complete(self, prompt, **options):
        if self.error is not None:
            raise self.error
        return answer(prompt, *DRAFTS.get(prompt, ()))

    async def feedback(self, completion_id, event, rank=0, **details):
        self.reported.append((event, rank))
        return FeedbackReceipt(rank, True)


def bar_of(shown):
    """What the bottom bar says."""
    return "".join(fragment[1] for fragment in shown._bar())


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def terminal(client, text="", output=None):
    """A running terminal and a way to press keys; it is left with Ctrl-D, and `written` is its result."""
    with create_pipe_input() as keys:
        shown = Terminal(lambda on_change: AsyncTypingSession(client, on_change), text, keys, output or DummyOutput())
        running = asyncio.create_task(shown.run())
        await asyncio.sleep(0)
        yield shown, keys.send_text
        keys.send_text("\x04")
        shown.written = await asyncio.wait_for(running, 5)


def run(scenario, client=None, **options):
    client = client or ScriptedClient()

    async def main():
        async with terminal(client, **options) as (shown, press):
            await scenario(shown, press)
        return shown.written

    return asyncio.run(main()), client


async def see(shown, text):
    try:
        await until(lambda: shown.ghost_text == text)
    except TimeoutError:
        pytest.fail(f"The ghost text is {shown.ghost_text!r}.")


def test_tab_takes_the_ghost_text():
    async def scenario(shown, press):
        press("Thank you")
        await see(shown, " for your email")
        assert "1/2 · score -0.50" in bar_of(shown)
        assert " ms" in bar_of(shown)
        press("\t")
        await see(shown, ".")
        press("\t\t")  # there is nothing for the second
        await until(lambda: shown.buffer.text.endswith("."))

    written, client = run(scenario)
    assert written == "Thank you for your email."
    assert client.reported.count(("accepted", 0)) == 2


def test_cycling_with_alt_and_brackets():
    async def scenario(shown, press):
        await see(shown, " for your email")
        press("\x1b]")
        await see(shown, " very much")
        assert "2/2 · score -1.50" in bar_of(shown)
        press("\x1b[")
        await see(shown, " for your email")
        press("\x1b]\t")
        await until(lambda: shown.buffer.text == "Thank you very much")

    assert run(scenario, text="Thank you")[0] == "Thank you very much"


def test_control_right_takes_a_word():
    async def scenario(shown, press):
        await see(shown, " for your email")
        press("\x1b[1;5C")
        await see(shown, " your email")
        press("\x1b[1;5C")
        await see(shown, " email")

    assert run(scenario, text="Thank you")[0] == "Thank you for your"


def test_escape_hides_until_the_next_key():
    async def scenario(shown, press):
        await see(shown, " for your email")
        press("\x1b")
        await see(shown, "")
        press(" ")
        await see(shown, "for your email")

    assert run(scenario, text="Thank you")[0] == "Thank you "


def test_nothing_is_suggested_inside_a_line():
    async def scenario(shown, press):
        await see(shown, " for your email")
        press("\x1b[D")  # left
        await see(shown, "")
        press("\t")
        press("\x1b[C")
        await see(shown, " for your email")

    assert run(scenario, text="Thank you")[0] == "Thank you"


def test_each_key_is_one_edit():
    async def scenario(shown, press):
        edits, edit = [], shown.session.edit
        shown.session.edit = lambda text, after="": (edits.append(text), edit(text, after))
        press("ab")
        await until(lambda: len(edits) == 2)
        press("\x7f\rc")
        await until(lambda: len(edits) == 5)
        assert edits == ["a", "ab", "a", "a\n", "a\nc"]

    run(scenario)


def test_errors_are_in_the_bar():
    async def scenario(shown, press):
        press("Thank you")
        await until(lambda: "Nobody is there" in bar_of(shown))
        press("!")

    assert run(scenario, ScriptedClient(ConnectionFailedError("Nobody is there.")))[0] == "Thank you!"


def test_the_ghost_text_is_on_the_screen():
    screen = io.StringIO()
    output = Vt100_Output(screen, lambda: Size(rows=10, columns=100), term="xterm")

    async def scenario(shown, press):
        await see(shown, " for your email")
        await until(lambda: "for your email" in screen.getvalue())

    run(scenario, text="Thank you", output=output)
    assert "Ctrl-D quit" in screen.getvalue()
