"""What a typing session asks of a server: texts typed key by key, with a person's pauses, on a clock of their own.

The clock is the session's: it goes on by the pauses between keys and by how long each answer took, so that an hour of
typing takes as long as its requests. With a fixed latency every run is the same.
"""

import contextlib
import json
import math
import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.load import (
    FIRST_CHARS,
    KEY_PAUSE_S,
    PAUSE_SIGMA,
    THINKING_CHANCE,
    THINKING_PAUSE_S,
)
from superdraft.benchmarks.over_http.local_server import local_server
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.client import Cancel, DraftsAnswer, Report, Send, SessionOptions, Suggestion, Superdraft, TypingSession
from superdraft.evaluation.cases.prompts import read_prompts

Ask = Callable[[str], tuple[DraftsAnswer, float]]
"""The answer to a prompt, and the seconds that it takes."""


@dataclass(frozen=True, slots=True)
class Script:
    """What is typed: `text`, of which the first `num_given` characters are there already."""

    text: str
    num_given: int


@dataclass(slots=True)
class Tally:
    """What happened.

    Attributes:
        num_keys: key presses, accepting included.
        num_requests: that were sent.
        num_cancelled: of those.
        num_local: key presses after which there was a suggestion at once.
        num_seen: key presses after which there was a suggestion before the next one.
        num_inconsistent: suggestions on display that don't go on from the text as a draft of the server did.
        waits_ms: from a key press after which there was nothing to the first suggestion, if it came before the next.
        num_accepted: of the key presses, those that accepted.
        num_accepted_characters: that need not be typed.
        events: reports, by their kind.
    """

    num_keys: int = 0
    num_requests: int = 0
    num_cancelled: int = 0
    num_local: int = 0
    num_seen: int = 0
    num_inconsistent: int = 0
    waits_ms: list[float] = field(default_factory=list)
    num_accepted: int = 0
    num_accepted_characters: int = 0
    events: Counter[str] = field(default_factory=Counter)


class Typist:
    """One person, one session.

    Args:
        ask: the server.
        accepts: take the ghost text, or its first word, when that is what would be typed.
        seed: of the pauses.
        max_keys: stop after so many; None: when all is typed.
        options: of the session.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        accepts: bool = False,
        seed: int = 0,
        max_keys: int | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        self.tally = Tally()
        self._ask = ask
        self._accepts = accepts
        self._chance = random.Random(seed)  # noqa: S311 (the same pauses in every run)
        self._max_keys = math.inf if max_keys is None else max_keys
        self._now_s = 0.0
        self._session = TypingSession(options, lambda: self._now_s)
        self._answers: dict[int, tuple[float, DraftsAnswer]] = {}
        self._drafts: dict[tuple[str, int], str] = {}  # each with the whole text before it
        self._waits_since_s: float | None = None

    def type(self, script: Script) -> None:
        """Type the rest of a text. The session has known others before."""
        self._waits_since_s = None
        self._do(self._session.edit(script.text[: script.num_given]))
        while len(self._session.text) < len(script.text) and self.tally.num_keys < self._max_keys:
            self._wait(self._pause_s())
            self._press(script.text)
        self._wait(THINKING_PAUSE_S)

    def close(self) -> None:
        """The last reports."""
        self._do(self._session.close())

    def _pause_s(self) -> float:
        thinks = self._session.text.endswith(" ") and self._chance.random() < THINKING_CHANCE
        return self._chance.lognormvariate(0, PAUSE_SIGMA) * (THINKING_PAUSE_S if thinks else KEY_PAUSE_S)

    def _press(self, text: str) -> None:
        session, tally = self._session, self.tally
        typed, ghost = session.text, session.display.ghost
        rest = text[len(typed) :]
        tally.num_keys += 1
        self._waits_since_s = None
        taken = _what_is_right(ghost, rest) if self._accepts and ghost is not None else ""
        if taken:
            self._do(session.accept() if ghost is not None and taken == ghost.text else session.accept_word())
            tally.num_accepted += 1
            tally.num_accepted_characters += len(taken)
        else:
            self._do(session.edit(typed + rest[0]))
        found = session.display.ghost is not None
        tally.num_local += found
        tally.num_seen += found
        self._waits_since_s = None if found else self._now_s

    def _wait(self, seconds: float) -> None:
        """Let the time pass, with all that happens in it."""
        until_s = self._now_s + seconds
        while True:
            arrival_s, request_id = min(
                ((at_s, request_id) for request_id, (at_s, _) in self._answers.items()), default=(math.inf, 0)
            )
            wake_s = self._session.wake_at_s
            wake_s = math.inf if wake_s is None else wake_s
            if min(arrival_s, wake_s) > until_s:
                break
            self._now_s = max(self._now_s, min(arrival_s, wake_s))
            if arrival_s <= wake_s:
                self._do(self._session.answered(request_id, self._answers.pop(request_id)[1]))
            else:
                self._do(self._session.advance())
        self._now_s = until_s

    def _do(self, actions: Sequence[object]) -> None:
        tally = self.tally
        for action in actions:
            match action:
                case Send():
                    tally.num_requests += 1
                    answer, seconds = self._ask(action.prompt)
                    self._answers[action.request_id] = self._now_s + seconds, answer
                    self._drafts |= {
                        (answer.id, draft.index): self._session.text + draft.text for draft in answer.drafts
                    }
                case Cancel():
                    tally.num_cancelled += 1
                    del self._answers[action.request_id]
                case Report():
                    tally.events[action.event] += 1
        display = self._session.display
        tally.num_inconsistent += sum(
            self._drafts.get(suggestion.key) != display.text + suggestion.text for suggestion in display.suggestions
        )
        if self._waits_since_s is not None and display.ghost is not None:
            tally.waits_ms.append((self._now_s - self._waits_since_s) * 1000)
            tally.num_seen += 1
            self._waits_since_s = None


def _what_is_right(ghost: Suggestion, rest: str) -> str:
    """The ghost text, or else its first word, if it is whole words of what is to be typed, and more than one key."""
    for text in (ghost.text, ghost.first_word):
        after = rest[len(text) : len(text) + 1]
        if rest.startswith(text) and len(text) > 1 and not (text[-1].isalnum() and after.isalnum()):
            return text
    return ""


def main(
    *,
    prompts: list[Path],
    num_keys: int,
    keys_each: int,
    num_drafts: int,
    max_tokens: int,
    latency_ms: float | None,
    requests_per_key: float,
    accepts: bool,
    url: str | None,
    api_key: str | None,
    serve_options: list[str],
    as_json: bool,
) -> bool:
    """Type, and print.

    Args:
        prompts: files of JSON lines with a field `prompt` and perhaps `reference`, which is what is typed; without any,
            texts that come with the benchmark.
        num_keys: key presses in all.
        keys_each: of each prompt.
        num_drafts: as in the request.
        max_tokens: as in the request.
        latency_ms: what an answer takes on the session's clock; None: what it took.
        requests_per_key: see SessionOptions.
        accepts: see Typist.
        url: a running server; None: start one here.
        api_key: for that server.
        serve_options: for the server that is started.
        as_json: print JSON instead of a table.

    Returns:
        Whether every suggestion on display went on from the text.
    """
    scripts = prompt_scripts(prompts, keys_each) if prompts else [Script(text, FIRST_CHARS) for text in TEXTS]
    with (
        local_server(serve_options) if url is None else contextlib.nullcontext(url) as base_url,
        Superdraft(base_url, api_key) as client,
    ):
        session_id = f"replay-{uuid.uuid4().hex}"  # another run against the same server must not end ours

        def ask(prompt: str) -> tuple[DraftsAnswer, float]:
            started_s = time.perf_counter()
            answer = client.complete(prompt, num_drafts, max_tokens, session_id=session_id)
            seconds = time.perf_counter() - started_s
            return answer, seconds if latency_ms is None else latency_ms / 1000

        options = SessionOptions(requests_per_key=requests_per_key)
        typist = Typist(ask, accepts=accepts, max_keys=num_keys, options=options)
        for script in track(_until(scripts, typist, num_keys), "typing", console=Console(stderr=True)):
            typist.type(script)
        typist.close()
    row = summary(typist.tally)
    settings = {
        "server": url or "started here, on the same processors",
        "serve_options": serve_options,
        "prompts": [path.name for path in prompts] or "built in",
        "keys_each": keys_each,
        "num_drafts": num_drafts,
        "max_tokens": max_tokens,
        "latency_ms": "as measured" if latency_ms is None else latency_ms,
        "budget_per_key": requests_per_key,
        "accepts": accepts,
        "key_pause_median_s": KEY_PAUSE_S,
        "thinking_pause_median_s": THINKING_PAUSE_S,
    }
    _print({"question": __doc__.splitlines()[0], "machine": describe_machine(), "settings": settings, **row}, as_json)
    return typist.tally.num_inconsistent == 0


def prompt_scripts(paths: Sequence[Path], keys_each: int) -> list[Script]:
    """The references of prompts from files, as texts to type."""
    return [
        Script(prompt.text + prompt.continuation[:keys_each], len(prompt.text)) for prompt in read_prompts(list(paths))
    ]


def _until(scripts: list[Script], typist: Typist, num_keys: int) -> Iterator[Script]:
    for script in scripts:
        if typist.tally.num_keys >= num_keys:
            return
        yield script


def summary(tally: Tally) -> dict[str, Any]:
    """The figures of a run."""
    waits = sorted(tally.waits_ms)
    keys = max(tally.num_keys, 1)
    return {
        "key_presses": tally.num_keys,
        "requests": tally.num_requests,
        "requests_per_key": round(tally.num_requests / keys, 3),
        "cancelled": tally.num_cancelled,
        "answered_locally": round(tally.num_local / keys, 3),
        "suggestion_before_next_key": round(tally.num_seen / keys, 3),
        "first_suggestion_ms_median": round(statistics.median(waits), 1) if waits else None,
        "first_suggestion_ms_p90": round(waits[len(waits) * 9 // 10], 1) if waits else None,
        "inconsistent": tally.num_inconsistent,
        "accepted": tally.num_accepted,
        "accepted_characters": tally.num_accepted_characters,
        "reports": dict(sorted(tally.events.items())),
    }


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table("figure", "value")
    for name, value in report.items():
        if name not in ("question", "machine", "settings"):
            table.add_row(name, str(value))
    console = Console()
    console.print(table)
    console.print({"machine": report["machine"], "settings": report["settings"]})
