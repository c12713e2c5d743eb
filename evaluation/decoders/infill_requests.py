"""Requests to `/infill`, llama.cpp's route for gaps, of a Superdraft or llama.cpp server."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from superdraft.decoding.text.fim import Gap
from superdraft.evaluation.cases.infill_cases import InfillCase
from superdraft.evaluation.decoders.decoders import Decoded, DecodedDraft
from superdraft.evaluation.decoders.infill_server import AS_SERVED, Variation, VariedEngine
from superdraft.evaluation.decoders.peers import LLAMA_CPP
from superdraft.server.errors import CommandError

ROUTE = "/infill"
_WARM_UP = InfillCase("warm-up", "warm-up", "def add(a, b):\n    return ", "\n\n\nprint(add(1, 2))\n", "a + b")
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class InfillDecoder:
    """A server, and how its requests are made.

    Attributes:
        http: HTTP client of the server.
        kind: "superdraft" or "llamacpp".
        num_drafts: k; llama.cpp always returns one draft.
        max_tokens: new tokens per draft.
        engine: engine of a server in this process; None: the server is elsewhere.
        variation: changes to the requests of a server in this process.
    """

    http: httpx.Client
    kind: str
    num_drafts: int
    max_tokens: int
    engine: VariedEngine | None = None
    variation: Variation = AS_SERVED

    def warm_up(self) -> None:
        """Let the server do its one-time work, with a gap that is not one of the cases."""
        for _ in range(_WARM_UPS):
            self.decode(_WARM_UP)

    def decode(self, case: InfillCase) -> Decoded:
        """The drafts for a gap.

        Raises:
            CommandError: the server does not answer with drafts.
        """
        if self.engine is not None:
            self.engine.variation, self.engine.gap = self.variation, Gap(case.prefix, case.suffix)
        body = self._body(case)
        started_s = time.perf_counter()
        try:
            answer = self.http.post(ROUTE, json=body).raise_for_status().json()
            wall_s = time.perf_counter() - started_s
            answers = answer if isinstance(answer, list) else [answer]
            drafts = tuple(DecodedDraft(str(one["content"]), (), 0.0, ()) for one in answers)
            num_predicted = int(answers[0]["tokens_predicted"])
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[:200]
            raise CommandError(f"{self.http.base_url} refused case {case.id}: {said}") from None
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise CommandError(
                f"{self.http.base_url} did not answer case {case.id} as {ROUTE} does ({type(error).__name__})."
            ) from None
        return Decoded(drafts, self._forward_rows(num_predicted), wall_s)

    def _body(self, case: InfillCase) -> dict[str, Any]:
        """The request as editors send it: the cursor's line is separate from the lines before it."""
        line_start = case.prefix.rfind("\n") + 1
        body: dict[str, Any] = {
            "input_prefix": case.prefix[:line_start],
            "prompt": case.prefix[line_start:],
            "input_suffix": case.suffix,
            "temperature": 0,
            "cache_prompt": True,
            "n_predict": self.max_tokens,
        }
        if self.kind != LLAMA_CPP:
            body["n_cmpl"] = self.num_drafts
        return body

    def _forward_rows(self, num_predicted: int) -> int | None:
        """Model rows of the decode steps, if known. A single draft takes one per token after the first."""
        if self.engine is not None and self.engine.output is not None:
            return self.engine.output.usage.forward_rows
        return max(0, num_predicted - 1) if self.kind == LLAMA_CPP else None
