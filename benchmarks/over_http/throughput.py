"""Requests per second that one server answers within a latency limit, superposed drafts against sampled ones.

Clients in a closed loop send the next request as soon as they are answered. In a round, every combination of strategy,
number of drafts, type of weights and number of clients has its turn. More clients get more answers but wait longer.
The figure for "up to N clients" is therefore the best rate with at most N clients whose 95th percentile stays within
the limit, with the type of weights that suits the strategy best.
"""

import asyncio
import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from superdraft.benchmarks.options import AsJson, Model, NumDraftsEach, ServerKvMemory, ServerNumThreads
from superdraft.benchmarks.over_http.load import Load, run_load
from superdraft.benchmarks.over_http.local_server import NEVER_REFUSE, local_server, serve_options
from superdraft.benchmarks.summary import make_report, percentile, print_report, ratio, shown, tracked
from superdraft.decoding.loading.store import DEFAULT_MODEL

STRATEGIES = ("paper", "distinct", "sample")
MAX_TOKENS = 10
WARM_UP_S = 1.0
CLIENTS, NUM_DRAFTS, DTYPES = [4, 16], [3, 8], ["int4", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Run:
    """One combination to measure.

    Attributes:
        strategy: strategy or selection of the requests.
        num_drafts: k.
        dtype: type of the server's weights.
        num_clients: clients of the closed loop.
    """

    strategy: str
    num_drafts: int
    dtype: str
    num_clients: int


@dataclass(frozen=True, slots=True)
class Rate:
    """The result of a run.

    Attributes:
        per_s: answers with drafts per second.
        p95_ms: 95th percentile of their latency; infinite if a request had no drafts.
    """

    per_s: float
    p95_ms: float


def main(
    model: Model = DEFAULT_MODEL,
    clients: Annotated[list[int], typer.Option(min=1, help="Maximum number of clients. Repeatable.")] = CLIENTS,
    num_drafts: NumDraftsEach = NUM_DRAFTS,
    dtype: Annotated[list[str], typer.Option(help="Type of the weights. Repeatable.")] = DTYPES,
    p95_ms: Annotated[float, typer.Option(min=1, help="Limit of the latency's 95th percentile, in ms.")] = 1000.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns per combination.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per turn.")] = 5.0,
    kv_memory: ServerKvMemory = None,
    num_threads: ServerNumThreads = None,
    as_json: AsJson = False,
) -> None:
    """Compare the requests per second of superposed drafting and sampling, each within a latency limit."""
    options = serve_options(kv_memory=kv_memory, num_threads=num_threads)
    runs = [
        Run(strategy, k, weights, count)
        for k in num_drafts
        for count in ladder(max(clients))
        for weights in dtype
        for strategy in STRATEGIES
    ]
    with contextlib.ExitStack() as stack:
        urls = {  # a server per type of weights, idle while another has its turn
            weights: stack.enter_context(
                local_server([*serve_options(model=model, dtype=weights), *NEVER_REFUSE, *options])
            )
            for weights in dtype
        }
        rates = measure(urls, runs, rounds, seconds)
    settings = {
        "model": model,
        "dtypes": dtype,
        "max_tokens": MAX_TOKENS,
        "p95_limit_ms": p95_ms,
        "rounds": rounds,
        "seconds": seconds,
        "serve_options": options,
    }
    report = make_report(
        __doc__,
        settings,
        rows=[_row(run, found) for run, found in rates.items()],
        within_limit=[compare(rates, count, k, p95_ms) for k in num_drafts for count in clients],
    )
    print_report(report, _tables(report), as_json)


def measure(urls: dict[str, str], runs: list[Run], rounds: int, seconds: float) -> dict[Run, list[Rate]]:
    """The rates of each run, round by round, on the servers at `urls`, one per type of weights."""
    for run in runs:
        asyncio.run(run_load(urls[run.dtype], _load(run, WARM_UP_S)))
    rates: dict[Run, list[Rate]] = defaultdict(list)
    for run in tracked(runs * rounds, "throughput"):
        rates[run].append(asyncio.run(_rate(urls[run.dtype], run, seconds)))
    return rates


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
    """The run with the highest median rate within the limit, if there is one."""
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
