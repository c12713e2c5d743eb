"""The answers to requests that a server may refuse: how many of which kind, and how fast."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from superdraft.benchmarks.summary import rounded_percentile
from superdraft.benchmarks.typing_texts import TEXTS


@dataclass(slots=True)
class Answers:
    """The answers in one phase.

    Attributes:
        num_sent: requests sent.
        statuses: answers by status; a request without an answer counts under the client's error.
        accepted_ms: latencies of answers with drafts.
        refused_ms: latencies of other answers.
    """

    num_sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)

    async def ask(self, http: httpx.AsyncClient, prompt: str, **fields: object) -> None:
        """Send a request for ten tokens, and note its answer."""
        self.num_sent += 1
        begun_s = time.perf_counter()
        try:
            response = await http.post("/v1/drafts", json={"prompt": prompt, "max_tokens": 10, **fields})
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        took_ms = (time.perf_counter() - begun_s) * 1000
        self.statuses[str(response.status_code)] += 1
        (self.accepted_ms if response.is_success else self.refused_ms).append(took_ms)

    def row(self, name: str, seconds: float) -> dict[str, Any]:
        """The phase as a row of a report."""
        return {
            "phase": name,
            "sent": self.num_sent,
            "answered": sum(count for status, count in self.statuses.items() if status.isdigit()),
            "answers": dict(sorted(self.statuses.items())),
            "accepted_per_s": round(len(self.accepted_ms) / seconds, 2),
            "p50_ms": rounded_percentile(self.accepted_ms, 50),
            "p95_ms": rounded_percentile(self.accepted_ms, 95),
            "refused_p50_ms": rounded_percentile(self.refused_ms, 50),
            "refused_p95_ms": rounded_percentile(self.refused_ms, 95),
            "refused_p99_ms": rounded_percentile(self.refused_ms, 99),
            "refused_max_ms": round(max(self.refused_ms), 1) if self.refused_ms else None,
        }


def different_prompts() -> Iterator[str]:
    """Prompts that are all different, so that the prefix cache saves at most the beginning of the text."""
    for number in itertools.count():
        text = TEXTS[number % len(TEXTS)]
        yield f"{number}: {text[: 60 + number % 60]}"
