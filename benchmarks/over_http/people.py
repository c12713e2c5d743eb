"""People at the keyboard: how often they see drafts before their next key, and how many keys drafts save them.

Each person types real texts, key by key, with human pauses, and reads what is on the screen: an editor without a cache
of its own, which asks for drafts after every key and gives up the request before. When a draft goes on as the text
does, the person accepts its longest right beginning that ends at the end of a word, if that saves keys. Accepting costs
one key, and one more for each draft above in the list. Reading takes no time.

People may mistype, and then type on. A draft that corrects the word is worth what it adds.
"""

import asyncio
import contextlib
import itertools
import random
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, MaxTokens, ServerDtype, ServerModel, ServerNumThreads
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.summary import report, rounded_percentile, tracked
from superdraft.benchmarks.typist import PAUSE_SIGMA, Pauses, best_draft
from superdraft.decoding.text.typos import NEIGHBOURS
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.peers import LLAMA_CPP, SUPERDRAFT, parse_peer
from superdraft.evaluation.options import NumDrafts
from superdraft.evaluation.reports.plots import curves

PEOPLE = [1, 4, 8, 16]
KEY_PAUSE_S = 0.19  # median; one pause in ten is longer than 0.36 s or shorter than 0.1 s
WARM_UP_S = 2.0
_SOON_MS = (150, 300)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to a key.

    Attributes:
        drafts: best first.
        replaced: for each, how many of the last characters it takes the place of; empty: none.
        rows: rows of the model for it; None: the server does not say.
        is_known: no forward pass was needed.
    """

    drafts: list[str]
    replaced: list[int] = field(default_factory=list)
    rows: int | None = None
    is_known: bool = False


Ask = Callable[[httpx.AsyncClient, str, str], Awaitable[Answer | None]]
"""Requests drafts for the text before the cursor of a person, who has a name; None: the server refused."""


def superdraft(num_drafts: int, max_tokens: int, *, corrections: bool = False) -> Ask:
    """Requests to `POST /v1/drafts`, with a session per person."""
    fields = {"num_drafts": num_drafts, "max_tokens": max_tokens, **({"corrections": "on"} if corrections else {})}

    async def ask(http: httpx.AsyncClient, text: str, person: str) -> Answer | None:
        body = {"prompt": text, **fields, "session_id": person}
        response = await http.post("/v1/drafts", json=body)
        if not response.is_success:
            return None
        answer = response.json()
        usage = answer["usage"]
        num_run = usage["forward_rows"] + usage["prompt_tokens"] - usage["cached_tokens"]
        replaced = [(draft.get("replaces") or {}).get("characters", 0) for draft in answer["drafts"]]
        return Answer([draft["text"] for draft in answer["drafts"]], replaced, usage["forward_rows"], num_run == 0)

    return ask


def llama_cpp(max_tokens: int) -> Ask:
    """Requests to llama.cpp's `POST /completion`: one draft, with its prompt cache."""

    async def ask(http: httpx.AsyncClient, text: str, _person: str) -> Answer | None:
        body = {"prompt": text, "n_predict": max_tokens, "temperature": 0, "cache_prompt": True}
        response = await http.post("/completion", json=body)
        return Answer([response.json()["content"]]) if response.is_success else None

    return ask


@dataclass(slots=True)
class Tally:
    """What people saw.

    Attributes:
        shown: for each key, whether it was typed inside a word, and the milliseconds until drafts were shown; None:
            there were none before the next key.
        num_characters: of what was typed and accepted.
        num_extra_keys: to choose drafts that were not the first ones.
        num_refused: requests that the server refused.
        answers: those that came in time.
    """

    shown: list[tuple[bool, float | None]] = field(default_factory=list)
    num_characters: int = 0
    num_extra_keys: int = 0
    num_refused: int = 0
    answers: list[Answer] = field(default_factory=list)

    def row(self, name: str, num_people: int) -> dict[str, Any]:
        """As a row of a report."""
        waits = [ms for _, ms in self.shown if ms is not None]
        num_keys = len(self.shown)
        rows = [answer.rows for answer in self.answers if answer.rows is not None]

        def share(seen: Sequence[float | None]) -> float | None:
            return round(sum(ms is not None for ms in seen) / len(seen), 3) if seen else None

        return {
            "server": name,
            "people": num_people,
            "keys": num_keys,
            "shown": share([ms for _, ms in self.shown]),
            "in_words": share([ms for is_inside, ms in self.shown if is_inside]),
            "at_ends": share([ms for is_inside, ms in self.shown if not is_inside]),
            **{f"in_{limit}_ms": round(sum(ms <= limit for ms in waits) / max(1, num_keys), 3) for limit in _SOON_MS},
            "p50_ms": rounded_percentile(waits, 50),
            "p95_ms": rounded_percentile(waits, 95),
            "keys_saved": round(1 - (num_keys + self.num_extra_keys) / max(1, self.num_characters), 3),
            "refused": self.num_refused,
            "known": round(statistics.fmean(one.is_known for one in self.answers), 3) if rows else None,
            "rows": round(statistics.fmean(rows), 1) if rows else None,
        }


class Person:
    """Somebody who types.

    Args:
        ask: requests drafts.
        http: to reach the server.
        cases: what to type, each text behind its prompt.
        tally: where to note what happens.
        chance: of the pauses.
        mistyped: the share of the letters that come out as a neighbour on the keyboard.
    """

    def __init__(
        self,
        ask: Ask,
        http: httpx.AsyncClient,
        cases: Iterator[Prompt],
        tally: Tally,
        chance: random.Random,
        mistyped: float = 0.0,
    ) -> None:
        self._ask_server, self._http, self._cases, self._tally = ask, http, cases, tally
        self._pauses = Pauses(chance, KEY_PAUSE_S)
        self._name = f"person-{uuid.uuid4().hex}"
        self._mistyped = mistyped
        self._slips = random.Random(f"{mistyped} {chance.getstate()[1][0]}")  # noqa: S311
        self._written = ""
        self._answer = Answer([])
        self._shown_ms: float | None = None

    async def type(self, end_s: float) -> None:
        """Type texts until a time of `time.perf_counter`."""
        await asyncio.sleep(self._pauses.chance.random() * KEY_PAUSE_S)
        while True:
            case = next(self._cases)
            text, position, self._written = case.continuation, 0, ""
            while position < len(text):
                if time.perf_counter() >= end_s:
                    return
                position = await self._press(case.text, text, position)
            self._answer = Answer([])

    async def _press(self, before: str, text: str, position: int) -> int:
        """Press a key, which types a character or accepts a draft, then look until the next one; the new position."""
        tally = self._tally
        num_above, num_accepted = best_draft(self._additions(text[:position]), text[position:], in_part=True)
        tally.num_extra_keys += num_above
        if num_accepted:
            num_replaced = self._answer.replaced[num_above] if self._answer.replaced else 0
            kept = self._written[: len(self._written) - num_replaced]
            self._written = kept + text[position - num_replaced : position + num_accepted]
        else:
            self._written += self._typed(text[position])
        position += num_accepted or 1
        tally.num_characters += num_accepted or 1
        is_inside = text[position - 1 : position].isalnum() and text[position : position + 1].isalnum()
        self._answer, self._shown_ms = Answer([]), None
        asking = asyncio.create_task(self._ask(before + self._written))
        await asyncio.sleep(self._pauses.next_s())
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        tally.shown.append((is_inside, self._shown_ms))
        return position

    async def _ask(self, text: str) -> None:
        begun_s = time.perf_counter()
        try:
            answer = await self._ask_server(self._http, text, self._name)
        except httpx.HTTPError:
            answer = None
        if answer is None:
            self._tally.num_refused += 1
            return
        self._tally.answers.append(answer)
        if any(draft.strip() for draft in answer.drafts):
            self._answer, self._shown_ms = answer, 1e3 * (time.perf_counter() - begun_s)

    def _typed(self, key: str) -> str:
        """What comes out of a key press."""
        near = sorted(NEIGHBOURS.get(key, ()))
        return self._slips.choice(near) if near and self._slips.random() < self._mistyped else key

    def _additions(self, meant: str) -> list[str]:
        """What each draft on the screen adds to the text that was meant; a wrong correction adds nothing right."""
        answer = self._answer
        if not any(answer.replaced):
            return answer.drafts
        return [
            draft[num:] if meant.endswith(draft[:num]) else "\0"
            for draft, num in zip(answer.drafts, answer.replaced, strict=True)
        ]


def main(
    prompts: Annotated[list[Path], typer.Option(help="JSON lines with prompt and reference. Repeatable.")],
    people: Annotated[list[int], typer.Option(min=1, help="Number of people who type. Repeatable.")] = PEOPLE,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each run.")] = 60.0,
    num_drafts: NumDrafts = 3,
    max_tokens: MaxTokens = 10,
    mistyped: Annotated[
        float,
        typer.Option(
            min=0, max=0.5, help="Share of letters that come out wrong. Above 0: without corrections, and with them."
        ),
    ] = 0.0,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Another running server, as superdraft=URL or llamacpp=URL. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pauses.")] = 0,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    num_threads: ServerNumThreads = None,
    plot: Annotated[Path | None, typer.Option(help="File for a plot of keys saved, .svg or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let people type against a server that is started here, and against other servers: drafts seen, keys saved."""
    cases = read_prompts(prompts)
    peers = [parse_peer(one, (SUPERDRAFT, LLAMA_CPP)) for one in peer or ()]
    options = serve_options(model=model, dtype=dtype, num_threads=num_threads)
    plain = superdraft(num_drafts, max_tokens)
    servers: list[tuple[str, str | None, Ask]] = [("this version", None, plain)]
    if mistyped:
        servers.append(("with corrections", None, superdraft(num_drafts, max_tokens, corrections=True)))
    servers += [(one.name, one.url, llama_cpp(max_tokens) if one.kind == LLAMA_CPP else plain) for one in peers]
    rows = []
    for number, (name, address, ask) in tracked(list(itertools.product(people, servers)), "people"):
        # A server that has seen a text answers faster, so each run has a new one.
        with local_server(options) if address is None else contextlib.nullcontext(address) as url:
            tally = asyncio.run(run(ask, url, cases, number, seconds, seed, mistyped))
        rows.append(tally.row(name, number))
    if plot is not None:
        series = {
            name: ([row["people"] for row in own], [row["keys_saved"] for row in own])
            for name in dict.fromkeys(row["server"] for row in rows)
            if (own := [row for row in rows if row["server"] == name])
        }
        curves(plot, series, "people at the keyboard", "keys saved")
    settings = {
        "prompts": [path.name for path in prompts],
        "seconds": seconds,
        "num_drafts": num_drafts,
        "max_tokens": max_tokens,
        "key_pause_median_s": KEY_PAUSE_S,
        "pause_sigma": PAUSE_SIGMA,
        "peers": [one.name for one in peers],
        "serve": options,
        "seed": seed,
        "mistyped": mistyped,
    }
    report(__doc__, settings, as_json, rows=rows)


async def run(
    ask: Ask,
    url: str,
    cases: Sequence[Prompt],
    num_people: int,
    seconds: float,
    seed: int = 0,
    mistyped: float = 0.0,
) -> Tally:
    """Let people type for some time, after a short time that does not count."""
    async with http_client(url) as http:
        chance = random.Random(f"{seed} {num_people}")  # noqa: S311 (the same texts and pauses in every run)
        order = itertools.cycle(chance.sample(cases, len(cases)))
        for limit_s in (WARM_UP_S, seconds):
            tally, end_s = Tally(), time.perf_counter() + limit_s
            crowd = [
                Person(ask, http, order, tally, random.Random(chance.random()), mistyped)  # noqa: S311
                for _ in range(num_people)
            ]
            await asyncio.gather(*(person.type(end_s) for person in crowd))
    return tally
