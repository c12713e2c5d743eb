"""Typing session as in an editor plug-in, with a script in place of the user.

Usage:

    superdraft serve &
    python examples/async_typing.py http://127.0.0.1:8000 "Thank you for y"
"""

import asyncio
import sys

from superdraft.client import AsyncSuperdraft, AsyncTypingSession
from superdraft.client.errors import ClientError

KEY_PAUSE_S = 0.12


async def type_slowly(url: str | None, text: str) -> str:
    """Type the text key by key, wait for a suggestion, accept it, and return the new text."""
    changed = asyncio.Event()
    async with AsyncSuperdraft(url) as client, AsyncTypingSession(client, changed.set, num_drafts=3) as typing:
        for end in range(1, len(text) + 1):
            typing.edit(text[:end])
            await asyncio.sleep(KEY_PAUSE_S)

        # An editor would redraw after each change instead of waiting.
        while typing.display.ghost is None and typing.error is None:
            changed.clear()
            await changed.wait()
        if typing.error is not None:
            raise typing.error
        for suggestion in typing.display.suggestions:
            print(f"{suggestion.score:7.3f} {text}[{suggestion.text}]")

        typing.accept_word()  # Ctrl-Right
        typing.accept()  # Tab; also reports the acceptance and requests the continuation at once
        return typing.text


def main(url: str | None = None, text: str = "Thank you for y") -> None:
    """Type the text and print the result."""
    print(asyncio.run(asyncio.wait_for(type_slowly(url, text), timeout=60)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ClientError, TimeoutError) as error:
        sys.exit(f"no suggestion: {error or 'timed out'}")
