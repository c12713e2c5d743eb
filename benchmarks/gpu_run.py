"""A run of the GPU benchmark's parts that lets none of them spoil the others, and writes each down at once."""

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.gpu_models import Workbench
from superdraft.benchmarks.gpu_parts import CHECK, Benchmark, Part
from superdraft.benchmarks.gpu_peers import HungError

UNTIMED = ("machine", CHECK)

Report = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What became of one part.

    Attributes:
        part: its name.
        status: "done", "failed" or "not run".
        reason: why it failed or was not run.
        seconds: how long it took.
        peak_gb: the most memory that it had on the GPU.
        rows: what it found.
        notes: what has to be said of it.
    """

    part: str
    status: str
    reason: str | None = None
    seconds: float = 0.0
    peak_gb: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Runner:
    """Runs parts one after the other and writes down each one's outcome as soon as it is known.

    Args:
        shared: what the parts share.
        parts: all there are, by name, in their order.
        report: the report that outcomes are added to; those that it has already are not run again.
        write: keeps the report.
        budget_s: no part is begun when so many seconds have passed since the report was begun; None: no limit.
    """

    def __init__(
        self,
        shared: Benchmark,
        parts: dict[str, Part],
        report: Report,
        write: Callable[[Report], None],
        budget_s: float | None,
    ) -> None:
        self._shared = shared
        self._parts = parts
        self._report = report
        self._write = write
        self._budget_s = budget_s

    def run(self, names: Sequence[str]) -> bool:
        """Run parts; the check comes first where anything is to be timed.

        Returns:
            Whether this process is still good for running parts; if not, the parts without an outcome are left.
        """
        for name in self._ordered(names):
            print(f"{name} ...", file=sys.stderr, flush=True)  # noqa: T201 (whoever watches wants to know)
            outcome, is_usable = self._outcome(name)
            self._report["parts"][name] = asdict(outcome)
            self._write(self._report)
            show(outcome)
            if not is_usable:
                return False
        return True

    def _ordered(self, names: Sequence[str]) -> list[str]:
        wanted = set(names) | ({CHECK} if set(names) - set(UNTIMED) else set())
        return [name for name in self._parts if name in wanted and name not in self._report["parts"]]

    def _outcome(self, name: str) -> tuple[Outcome, bool]:
        if name not in UNTIMED and self._report["parts"][CHECK]["status"] != "done":
            return Outcome(name, "not run", "Nothing is timed unless the check has passed."), True
        passed_s = time.time() - self._report["begun_s"]
        if self._budget_s is not None and passed_s >= self._budget_s:
            return Outcome(name, "not run", f"The time was over after {passed_s / 60:.1f} minutes."), True
        return self._attempt(name)

    def _attempt(self, name: str) -> tuple[Outcome, bool]:
        is_cuda = self._shared.bench.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        started_s = time.perf_counter()
        outcome, is_hung = Outcome(name, "done"), False
        try:
            found = self._parts[name](self._shared)
            outcome.rows, outcome.notes = found.rows, found.notes
            if not found.passed:
                outcome.status, outcome.reason = "failed", "It does not hold: see its rows."
        except Exception as fault:  # whatever it is, the other parts go on
            is_hung = isinstance(fault, HungError)
            outcome.status, outcome.reason = "failed", f"{type(fault).__name__}: {str(fault)[:500]}"
            outcome.notes = traceback.format_exc().splitlines()[-12:]
            # The frames of the fault hold the part's tensors.
            traceback.clear_frames(fault.__traceback__)
            del fault
        outcome.seconds = round(time.perf_counter() - started_s, 2)
        if is_cuda:
            outcome.peak_gb = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return outcome, outcome.status == "done" or (not is_hung and _recovers(self._shared.bench))


def _recovers(bench: Workbench) -> bool:
    """Whether the device still works: after some faults of a kernel it does nothing more for the same process."""
    try:
        bench.release()
        return float(torch.ones(1, device=bench.device).sum()) == 1.0
    except RuntimeError:
        return False


def write_json(path: Path) -> Callable[[Report], None]:
    """Writes a report to a file, whole or not at all."""

    def write(report: Report) -> None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    return write


def show(outcome: Outcome) -> None:
    """Print a part's outcome as a table."""
    console = Console()
    if not console.is_terminal:
        console.width = 150
    memory = "" if outcome.peak_gb is None else f", {outcome.peak_gb} GB"
    title = f"{outcome.part}: {outcome.status}, {outcome.seconds} s{memory}"
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    if outcome.reason is not None:
        console.print(outcome.reason, markup=False, highlight=False)
    if outcome.rows:
        table = Table(*outcome.rows[0])
        for row in outcome.rows:
            table.add_row(*map(_cell, row.values()))
        console.print(table, markup=False, highlight=False)
    for note in outcome.notes:
        console.print(note, markup=False, highlight=False)
    console.file.flush()  # a process that is killed later has told at least this


def _cell(value: object) -> str:
    if isinstance(value, dict):  # a spread
        return f"{value['median']} ({value['p25']} - {value['p75']})"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
