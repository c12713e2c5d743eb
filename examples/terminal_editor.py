"""A small editor for the terminal: ghost text while you type, with prompt_toolkit (pip install prompt_toolkit).

Usage:

    superdraft serve &
    python examples/terminal_editor.py             # the server that SUPERDRAFT_URL names, or one on this machine
    python examples/terminal_editor.py http://127.0.0.1:8000

Tab accepts the suggestion, Ctrl-Right its first word, Ctrl-N shows the next one, Escape hides it, Enter ends.
"""

import asyncio
import sys

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggest, Suggestion
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from superdraft.client import AsyncSuperdraft, AsyncTypingSession
from superdraft.client.errors import ClientError


class Ghost(AutoSuggest):
    """Tells the session about each change of the text; prompt_toolkit shows what is returned after the cursor."""

    def __init__(self, typing: AsyncTypingSession) -> None:
        self.typing = typing

    def get_suggestion(self, buffer: Buffer, document: Document) -> Suggestion | None:  # noqa: ARG002
        """Return what to show after the cursor now."""
        self.typing.edit(document.text_before_cursor, document.text_after_cursor)
        return self.current()

    def current(self) -> Suggestion | None:
        """Return the session's ghost text."""
        ghost = self.typing.display.ghost
        return None if ghost is None else Suggestion(ghost.text)


def key_bindings(typing: AsyncTypingSession, ghost: Ghost) -> KeyBindings:
    """Keys for the suggestion; they have their usual meaning when there is none."""
    keys = KeyBindings()
    has_ghost = Condition(lambda: typing.display.ghost is not None)

    @keys.add("tab", filter=has_ghost)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(typing.accept())  # also reports it, and requests the continuation at once

    @keys.add("c-right", filter=has_ghost)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(typing.accept_word())

    @keys.add("c-n", filter=has_ghost)
    def _(event: KeyPressEvent) -> None:
        typing.select_next()
        event.current_buffer.suggestion = ghost.current()

    @keys.add("escape", filter=has_ghost)
    def _(event: KeyPressEvent) -> None:
        typing.dismiss()
        event.current_buffer.suggestion = None

    return keys


async def edit(url: str | None) -> str:
    """Let the user write a line; returns it."""
    prompt: PromptSession[str] = PromptSession()

    def redraw() -> None:  # the server has answered, perhaps after the last key
        prompt.default_buffer.suggestion = ghost.current()
        prompt.app.invalidate()

    async with AsyncSuperdraft(url, max_retries=0) as client:
        await client.models()  # fails on a wrong address or key, before anything is typed
        typing = AsyncTypingSession(client, redraw, num_drafts=3, single_line=True)
        ghost = Ghost(typing)
        async with typing:
            return await prompt.prompt_async("> ", auto_suggest=ghost, key_bindings=key_bindings(typing, ghost))


if __name__ == "__main__":
    try:
        print(asyncio.run(edit(sys.argv[1] if len(sys.argv) > 1 else None)))
    except ClientError as error:
        sys.exit(f"no suggestions: {error}")
    except (EOFError, KeyboardInterrupt):
        pass
