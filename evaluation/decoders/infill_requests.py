"""Requests to `/infill`, llama.cpp's route for gaps, of a Superdraft or llama.cpp server."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from superdraft.evaluation.decoders.decoders import Ask, Contender, Decoded, DecodedDraft
from superdraft.evaluation.decoders.peers import LLAMA_CPP, TIMEOUT_S, Peer
from superdraft.server.errors import CommandError

ROUTE = "/infill"
_WARM_UP = Ask("def add(a, b):\n    return ", "warm-up", suffix="\n\n\nprint(add(1, 2))\n")
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class InfillDecoder:
    """A running server, asked for the drafts of one gap after another.

    Attributes:
        http: HTTP client of the server.
        num_drafts: k; None: the server is llama.cpp's, which returns one draft.
        max_tokens: new tokens per draft.
    """

    http: httpx.Client
    num_drafts: int | None
    max_tokens: int

    def decode(self, asks: Sequence[Ask]) -> list[Decoded]:
        """The drafts for each gap, in order.

        Raises:
            CommandError: the server does not answer with drafts.
        """
        return [self._decode(ask) for ask in asks]

    def _decode(self, ask: Ask) -> Decoded:
        body, started_s = self._body(ask), time.perf_counter()
        try:
            answer = self.http.post(ROUTE, json=body).raise_for_status().json()
            wall_s = time.perf_counter() - started_s
            answers = answer if isinstance(answer, list) else [answer]
            drafts = tuple(DecodedDraft(str(one["content"]), 0.0) for one in answers)
            num_predicted = int(answers[0]["tokens_predicted"])
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[:200]
            raise CommandError(f"{self.http.base_url} refused case {ask.seed_key}: {said}") from None
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise CommandError(
                f"{self.http.base_url} did not answer case {ask.seed_key} as {ROUTE} does ({type(error).__name__})."
            ) from None
        # Rows are known of a single draft: one per token after the first.
        return Decoded(drafts, None if self.num_drafts else max(0, num_predicted - 1), wall_s)

    def _body(self, ask: Ask) -> dict[str, Any]:
        """The request as editors send it: the cursor's line is separate from the lines before it."""
        line_start = ask.prompt.rfind("\n") + 1
        body: dict[str, Any] = {
            "input_prefix": ask.prompt[:line_start],
            "prompt": ask.prompt[line_start:],
            "input_suffix": ask.suffix,
            "temperature": 0,
            "cache_prompt": True,
            "n_predict": self.max_tokens,
        }
        return body if self.num_drafts is None else {**body, "n_cmpl": self.num_drafts}


@contextmanager
def infill_contender(peer: Peer, api_key: str | None, num_drafts: int, max_tokens: int) -> Iterator[Contender]:
    """A running server as a decoder of gaps, after it has done its one-time work.

    Raises:
        CommandError: the server does not answer.
    """
    k = None if peer.kind == LLAMA_CPP else num_drafts
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=peer.url, timeout=TIMEOUT_S, headers=headers) as http:
        settings = {"peer": peer.kind, "url": peer.url, "model": _served_model(peer, http)}
        decoder = InfillDecoder(http, k, max_tokens)
        decoder.decode([_WARM_UP] * _WARM_UPS)
        yield Contender(
            peer.name, decoder, {**settings, "num_drafts": k or 1, "max_tokens": max_tokens}, max_tokens - 1
        )


def _served_model(peer: Peer, http: httpx.Client) -> str:
    try:
        answer = http.get("/v1/models").raise_for_status().json()
        return str(answer["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise CommandError(
            f"--peer {peer.kind}={peer.url}: no model list at /v1/models ({type(error).__name__}). Is it running?"
        ) from None
