"""Typing in one document: a typing session that the editor asks for suggestions.

The session follows every change of the document, so that its request is often answered when the editor, which waits for
a pause of its own, asks for suggestions.
"""

import asyncio
from collections.abc import Callable

from superdraft.client import AsyncTypingSession, Suggestion
from superdraft.client.async_session import TypingClient
from superdraft.client.errors import ClientError
from superdraft.client.wire import DraftsOptions
from superdraft.server.language_server.options import EditorOptions
from superdraft.server.language_server.suggestions import InsertableDrafts

CANCEL_GRACE_S = 0.5
"""After a cancelled request of the editor, seconds until the server's work for it ends. Editors cancel at each key
press, and ask again when the user pauses; the drafts then often agree with what was typed."""


class DocumentTyping:
    """The typing session of one document. Call `start` first, and `close` at the end.

    Args:
        client: sends the requests.
        options: the editor's.
        path: the document's path.
        on_error: called with the session's error whenever that changes.
    """

    def __init__(
        self,
        client: TypingClient,
        options: EditorOptions,
        path: str,
        on_error: Callable[[ClientError | None], None],
    ) -> None:
        drafts_options: DraftsOptions = {"path": path, "single_line": options.single_line}
        if options.model is not None:
            drafts_options["model"] = options.model
        self.session = AsyncTypingSession(
            InsertableDrafts(client),
            self._changed,
            session_options=options.session_options,
            report=options.report,
            num_drafts=options.num_drafts,
            max_tokens=options.max_tokens,
            **drafts_options,
        )
        self._max_suffix_chars = options.max_suffix_chars
        self._max_delay_s = options.session_options.max_delay_s
        self._on_error = on_error
        self._error: ClientError | None = None
        self._change = asyncio.Event()
        self._num_asking = 0

    async def start(self) -> None:
        """Begin the session."""
        await self.session.__aenter__()

    async def close(self) -> None:
        """End the session."""
        await self.session.close()

    def typed(self, before: str, after: str) -> None:
        """Follow a change of the document that ends between these texts.

        A change of the text after the cursor was made elsewhere, or by the editor: where the cursor is now, the
        editor's next request will tell.
        """
        if after[: self._max_suffix_chars] == self.session.after:
            self.session.edit(before, after)
        else:
            self.hide()

    def hide(self) -> None:
        """Show nothing, and end the server's work for this document."""
        self.session.edit("")

    async def suggestions(self, before: str, after: str, *, is_invoked: bool) -> tuple[Suggestion, ...]:
        """The suggestions between these texts, as soon as there are some.

        There are none if the document changes in the meantime, or if the server cannot be asked for a while.

        Args:
            before: the text before the cursor.
            after: the text after it.
            is_invoked: the user asked for suggestions, so the server is asked at once.
        """
        after = after[: self._max_suffix_chars]
        self.session.edit(before, after)
        if is_invoked:
            self.session.ask()
        self._num_asking += 1
        try:
            while self._is_at(before, after):
                found = self.session.display.suggestions
                if found or not self.session.expects_answer(self._max_delay_s):
                    return found
                await self._change.wait()
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(CANCEL_GRACE_S, self._abandon, before, after)
            raise
        finally:
            self._num_asking -= 1
        return ()

    def _is_at(self, before: str, after: str) -> bool:
        return (self.session.text, self.session.after) == (before, after)

    def _abandon(self, before: str, after: str) -> None:
        if self._num_asking == 0 and self._is_at(before, after) and not self.session.display.suggestions:
            self.hide()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        if self.session.error is not self._error:
            self._error = self.session.error
            self._on_error(self._error)
