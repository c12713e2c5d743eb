"""`superdraft try`: keys in, text and ghost text out, with a scripted client."""

import asyncio
import contextlib
import io
from dataclasses import replace

import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output
from support.typist import answer
from support.waiting import PATIENCE_S, until

from superdraft.client import AsyncTypingSession, FeedbackReceipt, SessionOptions
from superdraft.client.errors import ConnectionFailedError
from superdraft.server.cli.writing.terminal import Terminal

DRAFTS = {"Thank you": (" for your email", " very much"), "Thank you for your email": (".",)}
INSIDE = "Nothing is suggested inside a line: this model sees nothing."


class ScriptedClient:
    def __init__(self, error=None, *, drafts=DRAFTS, sees_suffix=True):
        self.error, self.drafts, self.sees_suffix = error, drafts, sees_suffix
        self.reported, self.asked = [], []

    async def complete(self, prompt, **options):
        self.asked.append({"prompt": prompt, **options})
        if self.error is not None:
            raise self.error
        if options.get("suffix", "\n").partition("\n")[0] and not self.sees_suffix:
            return replace(answer(prompt), warnings=(INSIDE,))
        return answer(prompt, *self.drafts.get(prompt, ()))

    async def feedback(self, completion_id, event, rank=0, **details):
        self.reported.append((event, rank))
        return FeedbackReceipt(rank, True)


def bar_of(shown):
    """What the bottom bar says."""
    return "".join(fragment[1] for fragment in shown._bar())


@contextlib.asynccontextmanager
async def terminal(client, text="", output=None):
    """A running terminal and a way to press keys; it is left with Ctrl-D, and `written` is its result."""
    with create_pipe_input() as keys:
        shown = Terminal(lambda on_change: AsyncTypingSession(client, on_change), text, keys, output or DummyOutput())
        running = asyncio.create_task(shown.run())
        await asyncio.sleep(0)
        yield shown, keys.send_text
        keys.send_text("\x04")
        shown.written = await asyncio.wait_for(running, PATIENCE_S)


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


def test_a_draft_inside_a_line_is_shown_and_taken_there():
    screen = io.StringIO()
    output = Vt100_Output(screen, lambda: Size(rows=10, columns=100), term="xterm")

    async def scenario(shown, press):
        press("\x1b[D" * len("friend."))  # left
        await see(shown, "my ")
        await until(lambda: "my " in screen.getvalue().rpartition("Dear ")[2])
        press("\t")
        await until(lambda: "my" in shown.buffer.text)
        assert shown.buffer.document.text_before_cursor == "Dear my "

    client = ScriptedClient(drafts={"Dear ": ("my ",)})
    assert run(scenario, client, text="Dear friend.", output=output)[0] == "Dear my friend."
    assert {asked["suffix"] for asked in client.asked if asked["prompt"] == "Dear "} == {"friend."}


@pytest.mark.parametrize(("start", "shown_line"), [(5, "Dear my friend."), (12, "Dear friend.my ")])
def test_the_ghost_text_is_at_the_cursor_and_moves_what_is_after_it(start, shown_line):
    async def scenario(shown, press):
        shown.buffer.cursor_position = start
        press("\x1b[D\x1b[C")
        await see(shown, "my ")
        content = shown._app.layout.current_control.create_content(80, 10)
        assert "".join(text for _, text, *_ in content.get_line(0)).startswith(shown_line)
        assert content.cursor_position.x == start

    client = ScriptedClient(drafts={"Dear ": ("my ",), "Dear friend.": ("my ",)})
    run(scenario, client, text="Dear friend.")


def test_where_the_model_does_not_see_the_rest_of_the_line_the_bar_says_so():
    async def scenario(shown, press):
        await see(shown, " for your email")
        press("\x1b[D")  # left
        await until(lambda: INSIDE in bar_of(shown))
        assert shown.ghost_text == ""
        press("\t")
        press("\x1b[C")
        await see(shown, " for your email")
        assert INSIDE not in bar_of(shown)

    assert run(scenario, ScriptedClient(sees_suffix=False), text="Thank you")[0] == "Thank you"


def test_alt_and_backslash_ask_for_drafts():
    async def scenario(shown, press):
        press("Hi")
        await until(lambda: client.asked and not shown.session.is_waiting)
        press("\x1b\\")
        await until(lambda: [asked["trigger"] for asked in client.asked][-2:] == ["automatic", "invoked"])

    client = ScriptedClient()
    assert run(scenario, client)[0] == "Hi"


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


class CorrectingClient(ScriptedClient):
    async def complete(self, prompt, **options):
        self.asked.append({"prompt": prompt, **options})
        typed = "teh" if prompt.endswith("teh") and options.get("corrections") == "on" else ""
        return answer(prompt, *(("the end", "the day") if typed else (" x",)), replaced=typed)


def correcting(on_change, client):
    return AsyncTypingSession(client, on_change, session_options=SessionOptions(corrections=True))


@pytest.mark.parametrize(
    ("key", "text", "then"),
    [("\t", "This is the end", ""), ("\x1b[1;5C", "This is the", " end"), ("\x1b", "This is teh", "")],
)
def test_a_mistyped_word_is_corrected_or_kept(key, text, then):
    client = CorrectingClient()

    async def main():
        with create_pipe_input() as keys:
            shown = Terminal(lambda on_change: correcting(on_change, client), "", keys, DummyOutput())
            running = asyncio.create_task(shown.run())
            await asyncio.sleep(0)
            keys.send_text("This is teh")
            await see(shown, " → the end")
            keys.send_text(key)
            await until(lambda: shown.buffer.text == text and (not then or shown.ghost_text == then))
            await until(lambda: "→" not in shown.ghost_text)
            keys.send_text("\x04")
            return await asyncio.wait_for(running, PATIENCE_S)

    assert asyncio.run(main()) == text
