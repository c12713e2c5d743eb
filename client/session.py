"""Typing session: decides which requests an editor sends and which suggestions it shows.

`TypingSession` performs no input or output. It is told about key presses, answers and the passing of time, and returns
what to show and what to do. Its behaviour is therefore reproducible with a manual clock. `AsyncTypingSession` carries
out its decisions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from superdraft.client.errors import BadRequestError, ClientError, StatusError
from superdraft.client.models import DraftsAnswer
from superdraft.client.pace import Pace
from superdraft.client.suggestions import AnswerCache, Display, Suggestion
from superdraft.client.telemetry import DisplayLog, Report

_FIRST_HOLD_S, _MAX_HOLD_S = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Options of a typing session.

    Attributes:
        requests_per_key: maximum average number of requests per key press.
        max_delay_s: maximum delay between a key press and its request.
        max_answers: number of answers to keep, for texts that occur again.
        max_prompt_chars: maximum length of a prompt, in characters; only the end of a longer text is sent. The
            prompt's beginning moves in steps of a quarter of this limit instead of with every key, so that the server
            can reuse its work for the previous prompt.
        max_suffix_chars: maximum length of the text after the cursor that is sent, in characters.
        prefetch: after a draft is accepted, request its continuation at once.
        corrections: request suggestions that replace a mistyped word (`Suggestion.replaces`). Only for an editor that
            can: it shows what will stand there, and deletes what goes. Words that the user has kept, by `dismiss`, or
            accepted are not corrected.
    """

    requests_per_key: float = 0.3
    max_delay_s: float = 0.5
    max_answers: int = 64
    max_prompt_chars: int = 4000
    max_suffix_chars: int = 1000
    prefetch: bool = True
    corrections: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Request drafts between `prompt` and `suffix` from the server, then call `answered` or `failed` with this id.

    `is_invoked`: the user asked for them, so that improbable ones are welcome, too. `corrects`: they may replace the
    last word.
    """

    request_id: int
    prompt: str
    suffix: str = ""
    is_invoked: bool = False
    corrects: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Abandon this request and close its connection. The session needs no further report about it."""

    request_id: int


Action = Send | Cancel | Report


@dataclass(frozen=True, slots=True)
class _InFlight:
    sent: Send
    text: str
    sent_s: float


class TypingSession:
    """The typing session of one cursor in one text.

    Tell the session about everything that happens; each method returns the actions to perform now. Then show `display`,
    and call `advance` at `wake_at_s`. Every suggestion in `display` continues the latest text given to the session.

    While the user types the characters of a draft, the rest of the draft remains visible and nothing is sent. When no
    draft matches the text any more, a request is sent as soon as the user pauses, see `Pace`. A pending request is kept
    while the user continues to type, because its drafts may match the new text, until a newer request replaces it. Any
    other change of the text cancels the request.

    Args:
        options: the session's options; None for the defaults.
        clock: returns monotonic time in seconds.
    """

    def __init__(self, options: SessionOptions | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options = options or SessionOptions()
        self._clock = clock
        self._pace = Pace(options.requests_per_key, options.max_delay_s)
        self._cache = AnswerCache(options.max_answers)
        self._log = DisplayLog()
        self._display = Display()
        self._after = ""
        self._in_flight: _InFlight | None = None
        self._num_requests = 0
        self._send_at_s: float | None = None
        self._changed_s = clock()
        self._hold_until_s = 0.0
        self._num_failures = 0
        self._refused_text: str | None = None
        self._is_hidden = False
        self._is_closed = False
        self.error: ClientError | None = None  # why the last request failed; None if it succeeded

    @property
    def text(self) -> str:
        """The text before the cursor."""
        return self._display.text

    @property
    def after(self) -> str:
        """The text after the cursor, as far as it is sent."""
        return self._after

    @property
    def display(self) -> Display:
        """What the editor should show."""
        return self._display

    @property
    def latency_s(self) -> float:
        """Running mean of the server's latency, in seconds."""
        return self._pace.latency_s

    @property
    def is_waiting(self) -> bool:
        """Whether a request is pending."""
        return self._in_flight is not None

    @property
    def send_at_s(self) -> float | None:
        """When the next request will be sent, on the session's clock; None if none is due before the next input."""
        return self._send_at_s

    @property
    def wake_at_s(self) -> float | None:
        """When to call `advance`, on the session's clock; None if nothing is due before the next input."""
        return min((at_s for at_s in (self._send_at_s, self._log.next_s) if at_s is not None), default=None)

    def edit(self, text: str, after: str = "") -> list[Action]:
        """Set the text before and after the cursor, after a key press or a cursor movement."""
        after = after[: self._options.max_suffix_chars]
        if text == self.text and after == self._after:
            return []
        now_s = self._clock()
        is_typing = text.startswith(self.text) and after == self._after
        self._after = after
        if is_typing:
            self._pace.key(now_s)
        else:
            self._pace.interrupt()
        actions = self._change(text, now_s)
        if is_typing:
            self._pace.looked(found=bool(self._display.suggestions))
        return actions

    def ask(self) -> list[Action]:
        """Request drafts for the text at once, unless there are suggestions. For a user who asks for them."""
        now_s = self._clock()
        self._is_hidden = self._is_closed
        actions = self._refresh(now_s)
        request = self._in_flight
        is_asked = request is not None and request.sent.is_invoked and request.text == self.text
        if self._display.suggestions or is_asked or self.text == "" or self._is_closed:
            return actions
        if request is not None:
            self._in_flight = None
            actions.append(Cancel(request.sent.request_id))
        return [*actions, *self._send(now_s, is_invoked=True)]

    def accept(self) -> list[Action]:
        """Accept the whole ghost text, which becomes part of `text`. Without ghost text, do nothing.

        What it replaces goes.
        """
        return self._accept(whole=True)

    def accept_word(self) -> list[Action]:
        """Accept the first word of the ghost text, with the white space before it; the rest remains visible."""
        return self._accept(whole=False)

    def accepted(self, key: tuple[str, int]) -> list[Action]:
        """Process that the editor itself inserted the whole draft with this `Suggestion.key`, perhaps some time ago."""
        if any(suggestion.key == key for suggestion in self._display.suggestions):
            return [*self.select(key), *self.accept()]
        now_s = self._clock()
        self._log.accept(key, now_s, whole=True)
        self._pace.interrupt()
        return self._refresh(now_s, at_once=self._options.prefetch)

    def select(self, key: tuple[str, int]) -> list[Action]:
        """Make the suggestion with this `Suggestion.key` the ghost text. If it is not in `display`, do nothing."""
        keys = [suggestion.key for suggestion in self._display.suggestions]
        return self._select(keys.index(key) - self._display.selected) if key in keys else []

    def select_next(self) -> list[Action]:
        """Make the next suggestion the ghost text; the first one follows the last."""
        return self._select(1)

    def select_previous(self) -> list[Action]:
        """Make the previous suggestion the ghost text; the last one precedes the first."""
        return self._select(-1)

    def dismiss(self) -> list[Action]:
        """Hide all suggestions until the text changes. A ghost text that corrects a word: keep the word instead."""
        now_s, ghost = self._clock(), self._display.ghost
        self._log.dismiss(now_s)
        if ghost is not None and ghost.replaces:
            self._cache.keep(ghost.replaces)
        else:
            self._is_hidden = True
        return self._refresh(now_s)

    def answered(self, request_id: int, answer: DraftsAnswer) -> list[Action]:
        """Process the server's answer to a `Send`. Answers to cancelled requests are ignored."""
        now_s = self._clock()
        request = self._in_flight
        if request is None or request.sent.request_id != request_id:
            return []
        self._in_flight, self.error, self._num_failures = None, None, 0
        self._pace.answered(now_s - request.sent_s)
        self._cache.put(request.text, answer, request.sent.suffix)
        return self._refresh(now_s)

    def failed(self, request_id: int, error: ClientError) -> list[Action]:
        """Process the failure of a `Send`. The next one is delayed: as the server asks, or longer after each failure.

        A text that the server refused is not sent again; one that is too long for the model is sent without its
        beginning.
        """
        now_s = self._clock()
        request = self._in_flight
        if request is None or request.sent.request_id != request_id:
            return []
        self._in_flight = None
        if isinstance(error, StatusError) and error.code == "context_length_exceeded" and len(request.sent.prompt) > 1:
            self._options = replace(self._options, max_prompt_chars=len(request.sent.prompt) // 2)
            return self._refresh(now_s, at_once=True)
        self.error = error
        hold_s = min(_FIRST_HOLD_S * 2.0**self._num_failures, _MAX_HOLD_S)
        if isinstance(error, StatusError):
            if error.retry_after_s is not None:  # trusted after the first failure, a lower limit after that
                hold_s = max(error.retry_after_s, hold_s if self._num_failures else 0.0)
            if isinstance(error, BadRequestError) or error.should_retry is False:
                self._refused_text = request.text
        self._hold_until_s = now_s + hold_s
        self._num_failures += 1
        return self._refresh(now_s)

    def advance(self) -> list[Action]:
        """Perform what is due by now; call this at `wake_at_s`."""
        now_s = self._clock()
        actions: list[Action] = list(self._log.take_reports(now_s))
        if self._send_at_s is not None and self._send_at_s <= now_s:
            actions += self._send(now_s)
        return actions

    def close(self) -> list[Action]:
        """End the session: hide the suggestions, cancel a pending request, and return the last reports.

        A closed session still follows the text, but shows and sends nothing.
        """
        now_s = self._clock()
        self._is_hidden = self._is_closed = True
        actions = self._refresh(now_s)
        self._log.close(now_s)
        return [*actions, *self._log.take_reports(now_s)]

    def _change(self, text: str, now_s: float, *, at_once: bool = False) -> list[Action]:
        self._display = replace(self._display, text=text)  # `_show` restores the selection
        self._is_hidden = self._is_closed
        self._changed_s = now_s
        return self._refresh(now_s, at_once=at_once)

    def _refresh(self, now_s: float, *, at_once: bool = False) -> list[Action]:
        """Show the suggestions for the text, cancel an obsolete request, and schedule a new one if necessary."""
        text = self.text
        found = () if self._is_hidden else self._cache.find(text, self._after)
        self._show(found or (), now_s)
        actions: list[Action] = []
        needs_answer = found is None and text != "" and text != self._refused_text
        request = self._in_flight
        is_along = request is not None and text.startswith(request.text) and request.sent.suffix == self._after
        if request is not None and not (needs_answer and is_along):
            self._in_flight = None
            actions.append(Cancel(request.sent.request_id))
        self._send_at_s = None
        if needs_answer:
            wanted_s = now_s if at_once else self._changed_s + self._pace.delay_s
            self._send_at_s = max(wanted_s, self._hold_until_s, now_s)
            if self._in_flight is not None and self._in_flight.text == text:
                self._send_at_s = None
            elif self._send_at_s <= now_s:
                actions += self._send(now_s)
        return [*actions, *self._log.take_reports(now_s)]

    def _show(self, suggestions: tuple[Suggestion, ...], now_s: float) -> None:
        ghost = self._display.ghost
        keys = [suggestion.key for suggestion in suggestions]
        selected = keys.index(ghost.key) if ghost is not None and ghost.key in keys else 0
        self._display = Display(self.text, suggestions, selected)
        self._log.show(self._display.ghost, now_s)

    def _send(self, now_s: float, *, is_invoked: bool = False) -> list[Action]:
        """Request drafts for the text, unless a pending request is likely to return matching drafts soon."""
        actions: list[Action] = []
        if (older := self._in_flight) is not None:
            due_s, late_s = (older.sent_s + share * self._pace.latency_s for share in (0.5, 2.0))
            if due_s <= now_s < late_s:
                self._send_at_s = late_s
                return []
            actions.append(Cancel(older.sent.request_id))
        self._num_requests += 1
        corrects = self._options.corrections and self._cache.may_correct(self.text)
        send = Send(self._num_requests, self._prompt(), self._after, is_invoked, corrects)
        self._in_flight = _InFlight(send, self.text, now_s)
        self._send_at_s = None
        return [*actions, send]

    def _prompt(self) -> str:
        step = max(1, self._options.max_prompt_chars // 4)
        excess = len(self.text) - self._options.max_prompt_chars
        return self.text[-(-excess // step) * step :] if excess > 0 else self.text

    def _accept(self, *, whole: bool) -> list[Action]:
        ghost = self._display.ghost
        if ghost is None:
            return []
        now_s = self._clock()
        taken = ghost.text if whole else ghost.first_word
        self._log.accept(ghost.key, now_s, whole=taken == ghost.text)
        self._pace.interrupt()
        text = self.text
        if ghost.replaces:
            self._cache.put_corrected(text, self._after, ghost.replaces)
        self._cache.keep(taken)
        return self._change(text.removesuffix(ghost.replaces) + taken, now_s, at_once=self._options.prefetch)

    def _select(self, step: int) -> list[Action]:
        if not self._display.suggestions:
            return []
        now_s, shown = self._clock(), self._display
        selected = (shown.selected + step) % len(shown.suggestions)
        self._display = replace(shown, selected=selected)
        self._log.show(self._display.ghost, now_s)
        return list(self._log.take_reports(now_s))
