"""How soon a server with a cached model is ready, and how much memory it takes before and after requests.

From the start of the process to the first 200 of `/ready`, asked every few hundredths of a second. Memory is what the
kernel counts (`smaps_rollup`): resident (RSS), and with pages shared with other processes divided among them (PSS).
"""

import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.local_server import starting_server
from superdraft.benchmarks.summary import print_report
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.server.errors import CommandError

POLL_S = 0.03
IDLE_S = 1.0  # before memory is read
ANSWER_TIMEOUT_S = 60.0
NUM_REQUESTS = 50
_MEMORY = {"Rss": "rss_mb", "Pss": "pss_mb", "Pss_Anon": "pss_anonymous_mb", "Pss_File": "pss_files_mb"}


def main(*, model: str, runs: int, serve_options: list[str], as_json: bool) -> None:
    """Measure and print.

    Args:
        model: as for the server; it is fetched first if it is not cached.
        runs: starts.
        serve_options: for the server.
        as_json: print JSON instead of a table.

    Raises:
        CommandError: this system does not tell a process's memory, or the server did not start.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise CommandError("Memory is read from /proc/PID/smaps_rollup, which this system does not have.")
    options = ["--model", model, *serve_options]
    start_once(options)  # fetches the model, and fills the page cache as any earlier start did
    starts = [start_once(options) for _ in track(range(runs), "starting", console=Console(stderr=True))]
    report = {
        "question": __doc__.splitlines()[0],
        "machine": describe_machine(),
        "settings": {"model": model, "runs": runs, "requests": NUM_REQUESTS, "serve_options": serve_options},
        "rows": [_row(measure, [start[measure] for start in starts]) for measure in starts[0]],
    }
    print_report(report, [_table(report)], as_json)


def start_once(options: list[str]) -> dict[str, float]:
    """One start: seconds until ready, processor seconds spent by then, and MB idle and after some requests."""
    port = _free_port()
    started_s = time.monotonic()
    with (
        starting_server(["--port", str(port), *options]) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_TIMEOUT_S) as http,
    ):
        while not _is_ready(http):
            server.check_running()
            time.sleep(POLL_S)
        found = {"ready_s": time.monotonic() - started_s, "processor_s": processor_seconds(server.process.pid)}
        time.sleep(IDLE_S)
        found |= {f"idle_{name}": value for name, value in memory_mb(server.process.pid).items()}
        for number in range(NUM_REQUESTS):
            text = TEXTS[number % len(TEXTS)]
            http.post("/v1/drafts", json={"prompt": text[: 60 + 2 * number]}).raise_for_status()
        found |= {f"used_{name}": value for name, value in memory_mb(server.process.pid).items()}
    return found


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process, in MB of a million bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    kilobytes = {parts[0].rstrip(":"): int(parts[1]) for parts in lines if parts[-1] == "kB"}
    return {name: kilobytes[key] * 1024 / 1e6 for key, name in _MEMORY.items()}


def processor_seconds(pid: int) -> float:
    """Time that a process has spent on processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == httpx.codes.OK
    except httpx.TransportError:  # nobody listens yet
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _row(measure: str, values: list[float]) -> dict[str, Any]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {"measure": measure, **{name: round(value, 2) for name, value in found.items()}}


def _table(report: dict[str, Any]) -> Table:
    table = Table("measure", "median", "least", "most")
    for row in report["rows"]:
        table.add_row(row["measure"].replace("_", " "), *(str(row[name]) for name in ("median", "min", "max")))
    return table
