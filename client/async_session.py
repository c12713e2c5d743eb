"""Typing session connected to a server, for asyncio."""

import asyncio
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, Unpack

from superdraft.client.errors import BadRequestError, ClientError
from superdraft.client.models import DraftsAnswer, FeedbackReceipt
from superdraft.client.session import Action, Cancel, Send, SessionOptions, TypingSession
from superdraft.client.suggestions import Display
from superdraft.client.telemetry import Report
from superdraft.client.wire import DraftsOptions


class TypingClient(Protocol):
    """The methods of a client that a typing session uses. `AsyncSuperdraft` implements them."""

    async def complete(
        self,
        prompt: str,
        num_drafts: int = ...,
        max_tokens: int = ...,
        *,
        max_retries: int | None = ...,
        **options: Unpack[DraftsOptions],
    ) -> DraftsAnswer:
        """Return drafts for a prompt."""
        ...

    async def feedback(
        self,
        completion_id: str,
        event: str,
        rank: int = ...,
        *,
        elapsed_ms: float | None = ...,
    ) -> FeedbackReceipt:
        """Report what the user did with a draft."""
        ...


class AsyncTypingSession:
    """Sends the requests and reports of a `TypingSession`, and notifies the front end of changes.

    ::

        async with AsyncSuperdraft(url) as client, AsyncTypingSession(client, on_change=redraw) as typing:
            typing.edit("Thank you f")      # at each key press
            ...
            typing.display.ghost            # the suggestion to show now
            typing.accept()                 # on Tab: what to insert; typing.text is the new text

    Use it only from tasks and callbacks of a single event loop. Leaving the `async with` block cancels pending requests
    and waits briefly for the last reports to be sent.

    Args:
        client: sends the requests. It is not closed by the session.
        on_change: called from the event loop whenever `display`, `text`, `error` or `is_waiting` may have changed.
        session_options: the session's options; None for the defaults.
        report: whether to tell the server which drafts were shown, accepted and dismissed. Failed reports are dropped.
        num_drafts: as in `complete`.
        max_tokens: as in `complete`.
        drafts_options: other options of `complete`. The default `session_id` is a random one. It lets the server end a
            request that has been replaced by a newer one. The default `trigger` is "automatic": the server withholds
            drafts that are less probable than `min_probability_shown`.
    """

    def __init__(
        self,
        client: TypingClient,
        on_change: Callable[[], None] = lambda: None,
        *,
        session_options: SessionOptions | None = None,
        report: bool = True,
        num_drafts: int = 3,
        max_tokens: int = 10,
        **drafts_options: Unpack[DraftsOptions],
    ) -> None:
        self._client = client
        self._on_change = on_change
        self._reports = report
        self._request: dict[str, Any] = {
            "session_id": f"typing-{uuid.uuid4().hex}",
            "num_drafts": num_drafts,
            "max_tokens": max_tokens,
            "trigger": "automatic",
            "max_retries": 0,  # by the time of a retry, the next key press has made the request obsolete
            **drafts_options,
        }
        self._session_options = session_options
        self._entered: TypingSession | None = None
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._warnings: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._entered = TypingSession(self._session_options, self._loop.time)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _session(self) -> TypingSession:
        if self._entered is None:
            raise RuntimeError("The session has not begun: use it in `async with AsyncTypingSession(...) as typing:`.")
        return self._entered

    @property
    def text(self) -> str:
        """The text before the cursor."""
        return self._session.text

    @property
    def after(self) -> str:
        """The text after the cursor, as far as it is sent."""
        return self._session.after

    @property
    def display(self) -> Display:
        """What the editor should show."""
        return self._session.display

    @property
    def error(self) -> ClientError | None:
        """Why the last request failed; None if it succeeded."""
        return self._session.error

    @property
    def warnings(self) -> tuple[str, ...]:
        """The server's remarks about the last request that it answered."""
        return self._warnings

    @property
    def latency_s(self) -> float:
        """Running mean of the server's latency, in seconds."""
        return self._session.latency_s

    @property
    def is_waiting(self) -> bool:
        """Whether a request is pending."""
        return self._session.is_waiting

    def expects_answer(self, within_s: float) -> bool:
        """Whether a request is pending, or will be sent within this time without further input."""
        send_at_s = self._session.send_at_s
        return self.is_waiting or (send_at_s is not None and send_at_s <= self._loop.time() + within_s)

    def edit(self, text: str, after: str = "") -> None:
        """Set the text before the cursor and, if the server should see it, the text after it."""
        self._do(self._session.edit(text, after))

    def ask(self) -> None:
        """Request drafts at once, for a user who asks for them."""
        self._do(self._session.ask())

    def accept(self) -> str:
        """Accept the whole ghost text, and return it; "" if nothing is shown.

        It takes the place of the ghost text's `replaces`, which is empty without the option `corrections`.
        """
        return self._taken(self._session.accept)

    def accept_word(self) -> str:
        """Accept the first word of the ghost text and the white space before it, and return both; "" without any."""
        return self._taken(self._session.accept_word)

    def accepted(self, completion_id: str, rank: int) -> None:
        """Record that the editor itself inserted a whole draft, perhaps some time ago."""
        self._do(self._session.accepted((completion_id, rank)))

    def select(self, completion_id: str, rank: int) -> None:
        """Make this draft the ghost text if it is one of the suggestions."""
        self._do(self._session.select((completion_id, rank)))

    def select_next(self) -> None:
        """Make the next suggestion the ghost text."""
        self._do(self._session.select_next())

    def select_previous(self) -> None:
        """Make the previous suggestion the ghost text."""
        self._do(self._session.select_previous())

    def dismiss(self) -> None:
        """Hide all suggestions until the text changes."""
        self._do(self._session.dismiss())

    async def close(self, timeout_s: float = 1.0) -> None:
        """Cancel pending requests, and wait at most `timeout_s` seconds for the last reports to be sent."""
        self._do(self._session.close())
        if self._timer is not None:
            self._timer.cancel()
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _taken(self, accept: Callable[[], list[Action]]) -> str:
        ghost, before = self.display.ghost, self.text
        self._do(accept())
        return self.text[len(before) - len("" if ghost is None else ghost.replaces) :]

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    task = self._start(self._ask(action))
                    self._requests[action.request_id] = task
                case Cancel():
                    self._requests.pop(action.request_id).cancel()
                case Report() if self._reports:
                    self._start(self._report(action))
        if self._timer is not None:
            self._timer.cancel()
        wake_at_s = self._session.wake_at_s
        self._timer = None if wake_at_s is None else self._loop.call_at(wake_at_s, self._wake)
        self._on_change()

    def _wake(self) -> None:
        self._do(self._session.advance())

    def _start(self, work: Any) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _ask(self, send: Send) -> None:
        try:
            fields = {**self._request}
            if send.suffix:
                fields["suffix"] = send.suffix
            if send.is_invoked:
                fields["trigger"] = "invoked"
            if send.corrects:
                fields["corrections"] = "on"
            answer = await self._client.complete(send.prompt, **fields)
        except ClientError as error:
            actions = self._session.failed(send.request_id, error)
        except ValueError as error:  # the text cannot be encoded
            actions = self._session.failed(send.request_id, BadRequestError(str(error), status=400))
        except Exception as error:  # the program's fault, such as a closed client; unseen, it would look like waiting
            actions = self._session.failed(send.request_id, ClientError(f"{type(error).__name__}: {error}"))
        else:
            self._warnings = answer.warnings
            actions = self._session.answered(send.request_id, answer)
        self._requests.pop(send.request_id, None)
        self._do(actions)

    async def _report(self, report: Report) -> None:
        try:
            await self._client.feedback(
                report.completion_id,
                report.event,
                report.rank,
                elapsed_ms=report.elapsed_ms,
            )
        except ClientError:
            return  # not worth interrupting the user for
