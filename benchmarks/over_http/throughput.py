"""How many requests a second one server answers in good time: superposed drafts against sampled ones.

Clients in a closed loop ask again as soon as they are answered. In a round, every strategy, number of drafts, kind of
weights and number of clients has its turn. With more clients more is answered and everybody waits longer, so the
figure for "up to N clients" is the best rate of any number of them, N at most, whose 95th percentile stays within the
limit, with the kind of weights that suits the strategy best.
"""

import asyncio
import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.load import Load, run_load
from superdraft.benchmarks.over_http.local_server import local_server
from superdraft.benchmarks.summary import percentile, print_report, ratio, shown

STRATEGIES = ("paper", "distinct", "sample")
MAX_TOKENS = 10
WARM_UP_S = 1.0
# Who asks for more rows than there are slots waits instead of being refused.
_PATIENT = ["--queue-timeout-ms", "60000", "--max-waiting", "1000"]


@dataclass(frozen=True, slots=True)
class Run:
    """What runs for some seconds.

    Attributes:
        strategy: as in the request.
        num_drafts: k.
        dtype: as for the server.
        num_clients: those of the closed loop.
    """

    strategy: str
    num_drafts: int
    dtype: str
    num_clients: int


@dataclass(frozen=True, slots=True)
class Rate:
    """What a run gave.

    Attributes:
        per_s: answers with drafts a second.
        p95_ms: of their latency; infinite if some request had no drafts.
    """

    per_s: float
    p95_ms: float


def main(
    *,
    model: str,
    clients: list[int],
    num_drafts: list[int],
    dtypes: list[str],
    limit_ms: float,
    rounds: int,
    seconds: float,
    serve_options: list[str],
    as_json: bool,
) -> None:
    """Measure and print.

    Args:
        model: as for the server.
        clients: each N of "up to N clients".
        num_drafts: each k.
        dtypes: kinds of weights; a server runs for each of them all the time, and waits while another is asked.
        limit_ms: of the 95th percentile.
        rounds: how often each combination has its turn.
        seconds: how long a turn takes.
        serve_options: for the servers.
        as_json: print JSON instead of tables.
    """
    runs = [
        Run(strategy, k, dtype, count)
        for k in num_drafts
        for count in ladder(max(clients))
        for dtype in dtypes
        for strategy in STRATEGIES
    ]
    with contextlib.ExitStack() as stack:
        urls = {
            dtype: stack.enter_context(local_server(["--model", model, "--dtype", dtype, *_PATIENT, *serve_options]))
            for dtype in dtypes
        }
        for run in runs:
            asyncio.run(run_load(urls[run.dtype], _load(run, WARM_UP_S)))
        rates: dict[Run, list[Rate]] = defaultdict(list)
        for run in track(runs * rounds, "throughput", console=Console(stderr=True)):
            rates[run].append(asyncio.run(_rate(urls[run.dtype], run, seconds)))
    report = {
        "question": __doc__.splitlines()[0],
        "machine": describe_machine(),
        "settings": {
            "model": model,
            "dtypes": dtypes,
            "max_tokens": MAX_TOKENS,
            "p95_limit_ms": limit_ms,
            "rounds": rounds,
            "seconds": seconds,
            "serve_options": serve_options,
        },
        "rows": [_row(run, found) for run, found in rates.items()],
        "within_limit": [compare(rates, count, k, limit_ms) for k in num_drafts for count in clients],
    }
    print_report(report, _tables(report), as_json)


def ladder(most: int) -> list[int]:
    """Numbers of clients to try: powers of two below `most`, and `most`."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


async def _rate(url: str, run: Run, seconds: float) -> Rate:
    tally = await run_load(url, _load(run, seconds))
    all_drafted = set(tally.statuses) <= {"200"} and tally.latencies_ms
    p95_ms = percentile(tally.latencies_ms, 95) if all_drafted else float("inf")
    return Rate(tally.num_drafted_in_time / seconds, p95_ms)


def _load(run: Run, seconds: float) -> Load:
    return Load(run.num_clients, seconds, run.strategy, run.num_drafts, MAX_TOKENS, is_closed=True)


def compare(rates: dict[Run, list[Rate]], num_clients: int, num_drafts: int, limit_ms: float) -> dict[str, Any]:
    """The best rate of each strategy with up to `num_clients` clients, and their ratio, round by round."""
    best = {
        strategy: _best(
            {
                run: found
                for run, found in rates.items()
                if (run.strategy, run.num_drafts) == (strategy, num_drafts) and run.num_clients <= num_clients
            },
            limit_ms,
        )
        for strategy in STRATEGIES
    }
    row: dict[str, Any] = {"up_to_clients": num_clients, "num_drafts": num_drafts}
    for strategy, run in best.items():
        row[strategy] = None if run is None else _row(run, rates[run])
    theirs = best["sample"]
    for strategy, ours in best.items():
        if ours is not None and theirs is not None and strategy != "sample":
            row[f"{strategy}_ratio"] = ratio(
                [rate.per_s for rate in rates[ours]], [rate.per_s for rate in rates[theirs]]
            )
    return row


def _best(rates: dict[Run, list[Rate]], limit_ms: float) -> Run | None:
    """The run with the highest median rate among those that keep the limit; None: none does."""
    kept = [run for run, found in rates.items() if _median_p95(found) <= limit_ms]
    return max(kept, key=lambda run: statistics.median(rate.per_s for rate in rates[run]), default=None)


def _median_p95(rates: Sequence[Rate]) -> float:
    return statistics.median(rate.p95_ms for rate in rates)


def _row(run: Run, rates: Sequence[Rate]) -> dict[str, Any]:
    p95_ms = _median_p95(rates)
    return {
        "strategy": run.strategy,
        "num_drafts": run.num_drafts,
        "dtype": run.dtype,
        "clients": run.num_clients,
        "requests_per_s": round(statistics.median(rate.per_s for rate in rates), 2),
        "p95_ms": None if p95_ms == float("inf") else round(p95_ms, 1),
    }


def _tables(report: dict[str, Any]) -> list[Table]:
    runs = Table("k", "strategy", "weights", "clients", "requests/s", "p95 ms")
    for row in report["rows"]:
        names = ("num_drafts", "strategy", "dtype", "clients", "requests_per_s", "p95_ms")
        runs.add_row(*(str(row[name]) for name in names))
    ours = [strategy for strategy in STRATEGIES if strategy != "sample"]
    ratio_names = [title for name in ours for title in (f"{name} / sample", "25-75 % of rounds")]
    best = Table("up to clients", "k", *(f"{strategy} requests/s" for strategy in STRATEGIES), *ratio_names)
    for row in report["within_limit"]:
        found = [shown(row[f"{name}_ratio"]) if f"{name}_ratio" in row else ("", "") for name in ours]
        cells = [_described(row[strategy]) for strategy in STRATEGIES]
        best.add_row(
            str(row["up_to_clients"]), str(row["num_drafts"]), *cells, *(text for pair in found for text in pair)
        )
    return [runs, best]


def _described(row: dict[str, Any] | None) -> str:
    if row is None:
        return "none within the limit"
    return f"{row['requests_per_s']} ({row['dtype']}, {row['clients']} clients, p95 {row['p95_ms']} ms)"
