"""Start-up time and memory of a server with a cached model.

The time runs from the start of the process to the first 200 from `/ready`, which is polled every 0.03 s. Memory is what
the kernel counts (`smaps_rollup`): resident (RSS), and with pages shared between processes divided among them (PSS).
"""

import os
import socket
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerKvMemory
from superdraft.benchmarks.over_http.local_server import ANSWER_TIMEOUT_S, serve_options, starting_server
from superdraft.benchmarks.summary import report, tracked
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.evaluation.options import Model
from superdraft.server.errors import CommandError

POLL_S = 0.03
IDLE_S = 1.0  # wait before memory is read
NUM_REQUESTS = 50
_MEMORY = {"Rss": "rss_mb", "Pss": "pss_mb", "Pss_Anon": "pss_anonymous_mb", "Pss_File": "pss_files_mb"}


def main(
    model: Model = DEFAULT_MODEL,
    runs: Annotated[int, typer.Option(min=1, help="Number of starts.")] = 7,
    dtype: ServerDtype = None,
    kv_memory: ServerKvMemory = None,
    as_json: AsJson = False,
) -> None:
    """Start a server again and again and measure the seconds until it is ready, and its memory."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise CommandError("Memory is read from /proc/PID/smaps_rollup, which this system does not have.")
    options = serve_options(model=model, dtype=dtype, kv_memory=kv_memory)
    start_once(options)  # fetches the model, and fills the page cache as any earlier start did
    starts = [start_once(options) for _ in tracked(range(runs), "starting")]
    rows = [_row(measure, [start[measure] for start in starts]) for measure in starts[0]]
    settings = {"runs": runs, "requests": NUM_REQUESTS, "serve_options": options}
    report(__doc__, settings, as_json, rows=rows)


def start_once(options: list[str]) -> dict[str, float]:
    """Start once: seconds until ready, CPU seconds until then, and memory in MB when idle and after some requests."""
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
    """Resident memory of a process, in MB (10^6 bytes)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    kilobytes = {parts[0].rstrip(":"): int(parts[1]) for parts in lines if parts[-1] == "kB"}
    return {name: kilobytes[key] * 1024 / 1e6 for key, name in _MEMORY.items()}


def processor_seconds(pid: int) -> float:
    """CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == httpx.codes.OK
    except httpx.TransportError:  # the server does not listen yet
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _row(measure: str, values: list[float]) -> dict[str, Any]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {"measure": measure, **{name: round(value, 2) for name, value in found.items()}}
