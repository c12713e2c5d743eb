"""A typing session against a server, for asyncio."""

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
    """What a typing session needs of a client: `AsyncSuperdraft` has it."""

    async def complete(
        self,
        prompt: str,
        num_drafts: int = ...,
        max_tokens: int = ...,
        *,
        max_retries: int | None = ...,
        **options: Unpack[DraftsOptions],
    ) -> DraftsAnswer:
        """Drafts of a prompt."""
        ...

    async def feedback(
        self,
        completion_id: str,
        event: str,
        rank: int = ...,
        *,
        elapsed_ms: float | None = ...,
    ) -> FeedbackReceipt:
        """Tell what the user did."""
        ...


class AsyncTypingSession:
    """Sends what a `TypingSession` wants sent, and tells the front end when there is something new to show.

    ::

        async with AsyncSuperdraft(url) as client, AsyncTypingSession(client, on_change=redraw) as typing:
            typing.edit("Thank you f")      # at each key press
            ...
            typing.display.ghost            # what to show now
            typing.accept()                 # the Tab key; typing.text is the new text

    To be used in the task or the callbacks of one event loop. Leaving the `async with` statement cancels what is on its
    way and waits a moment for the last reports to go out.

    Args:
        client: asks the server; it is not closed.
        on_change: called whenever `display`, `text`, `error` or `is_waiting` may have changed, from the event loop.
        session_options: see there.
        report: tell the server what was shown, accepted and dismissed. A report that fails is dropped.
        num_drafts: as in `complete`.
        max_tokens: as in `complete`.
        drafts_options: further ones of `complete`. Without `session_id` the session makes itself one, and with it the
            server ends a request that a newer one takes the place of.
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
            "max_retries": 0,  # a key press that failed is worth nothing once the next one is there
            **drafts_options,
        }
        self._session_options = session_options
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._session = TypingSession(self._session_options, self._loop.time)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def text(self) -> str:
        """What is before the cursor."""
        return self._session.text

    @property
    def display(self) -> Display:
        """What is to be on the screen."""
        return self._session.display

    @property
    def error(self) -> ClientError | None:
        """Why the last request failed; None: it did not."""
        return self._session.error

    @property
    def latency_s(self) -> float:
        """Of the server, a running mean."""
        return self._session.latency_s

    @property
    def is_waiting(self) -> bool:
        """A request is on its way."""
        return self._session.is_waiting

    def edit(self, text: str) -> None:
        """The text before the cursor is now `text`."""
        self._do(self._session.edit(text))

    def accept(self) -> None:
        """Take the ghost text whole."""
        self._do(self._session.accept())

    def accept_word(self) -> None:
        """Take the ghost text's first word."""
        self._do(self._session.accept_word())

    def select_next(self) -> None:
        """Make the next suggestion the ghost text."""
        self._do(self._session.select_next())

    def select_previous(self) -> None:
        """Make the previous suggestion the ghost text."""
        self._do(self._session.select_previous())

    def dismiss(self) -> None:
        """Show nothing more for this text."""
        self._do(self._session.dismiss())

    async def close(self, timeout_s: float = 1.0) -> None:
        """Cancel what is on its way; wait for the last reports, but no longer than `timeout_s`."""
        self._do(self._session.close())
        if self._timer is not None:
            self._timer.cancel()
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

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
            answer = await self._client.complete(send.prompt, **self._request)
        except ClientError as error:
            actions = self._session.failed(send.request_id, error)
        except ValueError as error:  # the text cannot be sent
            actions = self._session.failed(send.request_id, BadRequestError(str(error), status=400))
        else:
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
            return  # the user is typing: nobody wants to hear of it
