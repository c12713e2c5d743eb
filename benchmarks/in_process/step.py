"""What a superposed decode step costs beside a greedy one, n-gram model included.

Both run in one process on one engine and take turns, run by run, so that a machine whose speed drifts spoils both
alike; the figure to quote is the ratio of medians, with the spread of the ratios of neighbouring runs beside it.
"""

import json
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.server.loading import load_service
from superdraft.server.settings import Settings

# As in the paper (section 4.3): a prompt of about 15 tokens, 10 new ones.
PROMPT = "Thank you for your email about the meeting next week. I will"
TOKENS_PER_RUN = 10

Variants = dict[str, tuple[GenerationParams, NgramScorer[Any] | None]]


def main(model: str, num_drafts: list[int], steps: int, as_json: bool) -> None:
    """Measure and print.

    Args:
        model: as for the server.
        num_drafts: each k to compare with greedy decoding.
        steps: timed decode steps of each kind, rounded up to whole runs.
        as_json: print JSON instead of a table.
    """
    service = load_service(Settings(model=model))
    scorer = service.ngram_models.default_scorer
    variants: Variants = {"greedy": (GenerationParams(num_drafts=1, alpha=0, max_tokens=TOKENS_PER_RUN), None)}
    for k in num_drafts:
        params = GenerationParams(
            num_drafts=k, alpha=service.drafting.alpha, tau=service.drafting.tau, max_tokens=TOKENS_PER_RUN
        )
        variants[f"superposed k={k}"] = (params, scorer)
    rows = measure(service.engine, variants, num_runs=-(-steps // (TOKENS_PER_RUN - 1)))
    settings = {
        "model": service.model_name,
        "ngram_model": service.ngram_models.default,
        "alpha": service.drafting.alpha,
        "tau": service.drafting.tau,
        "prompt_tokens": len(service.engine.tokenizer.encode(PROMPT)),
        "tokens_per_run": TOKENS_PER_RUN,
    }
    report = {"question": __doc__.splitlines()[0], "machine": describe_machine(), "settings": settings, "rows": rows}
    _print(report, as_json)


def measure(engine: Engine, variants: Variants, num_runs: int) -> list[dict[str, Any]]:
    """Time every variant `num_runs` times, in turns; the first variant is what the others are compared with."""
    step_ms: dict[str, list[float]] = {name: [] for name in variants}
    ngram_share: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(num_runs + 2):
        for name, (params, scorer) in variants.items():
            output = engine.generate(PROMPT, params, scorer)
            if run < 2:  # the first runs touch memory for the first time
                continue
            timings = output.timings
            step_ms[name].append(timings.decode_ms / output.usage.forward_rows)
            # ngram_ms counts the prefill's look-up too: one step more than there are decode steps.
            ngram_share[name].append(timings.ngram_ms / (timings.decode_ms + timings.prefill_ms))
    baseline = next(iter(step_ms.values()))
    rows = []
    for name, times in step_ms.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(times, baseline, strict=True))
        rows.append(
            {
                "decoder": name,
                "step_ms_median": round(statistics.median(times), 3),
                "ratio": round(statistics.median(times) / statistics.median(baseline), 3),
                "ratio_p25": round(ratios[len(ratios) // 4], 3),
                "ratio_p75": round(ratios[3 * len(ratios) // 4], 3),
                "ngram_share": round(statistics.median(ngram_share[name]), 4),
                "runs": len(times),
            }
        )
    return rows


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table("decoder", "ms a step", "ratio to greedy", "25-75 % of runs", "n-gram share", "runs")
    for row in report["rows"]:
        table.add_row(
            row["decoder"],
            f"{row['step_ms_median']:.2f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_p25']:.3f} - {row['ratio_p75']:.3f}",
            f"{row['ngram_share']:.2%}",
            str(row["runs"]),
        )
    console = Console()
    console.print(table)
    console.print({"machine": report["machine"], "settings": report["settings"]})
