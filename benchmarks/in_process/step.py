"""Cost of a superposed decode step relative to a greedy one, n-gram model included.

Both run in one process on one engine and take turns, run by run, so that a drift of the machine's speed affects both.
Quote the ratio of the medians, with the quartiles of the ratios of neighbouring runs.
"""

import statistics
from typing import Annotated, Any

import typer

from superdraft.benchmarks.options import AsJson, NumDraftsEach
from superdraft.benchmarks.summary import ratio, report
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.evaluation.options import Model
from superdraft.server.loading import load_service
from superdraft.server.settings import Settings

# As in the paper (section 4.3): a prompt of about 15 tokens, 10 new ones.
PROMPT = "Thank you for your email about the meeting next week. I will"
TOKENS_PER_RUN = 10
NUM_DRAFTS = [3, 8]

Variants = dict[str, tuple[GenerationParams, NgramScorer[Any] | None]]


def main(
    model: Model = DEFAULT_MODEL,
    num_drafts: NumDraftsEach = NUM_DRAFTS,
    steps: Annotated[
        int, typer.Option(min=1, help="Decode steps to time per decoder, rounded up to whole runs.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Compare superposed decode steps with greedy ones, n-gram model included."""
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
    report(__doc__, settings, as_json, rows=rows)


def measure(engine: Engine, variants: Variants, num_runs: int) -> list[dict[str, Any]]:
    """Time every variant `num_runs` times, in turns. The others are compared with the first variant."""
    step_ms: dict[str, list[float]] = {name: [] for name in variants}
    ngram_share: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(num_runs + 2):
        for name, (params, scorer) in variants.items():
            engine.forget_prompts()  # else the drafts of the run before take no row
            output = engine.generate(PROMPT, params, scorer)
            if run < 2:  # the first runs touch memory for the first time
                continue
            timings = output.timings
            step_ms[name].append(timings.decode_ms / output.usage.forward_rows)
            # ngram_ms includes the look-up of the prefill: one step more than there are decode steps.
            ngram_share[name].append(timings.ngram_ms / (timings.decode_ms + timings.prefill_ms))
    baseline = next(iter(step_ms.values()))
    rows = []
    for name, times in step_ms.items():
        ratios = ratio(times, baseline)
        rows.append(
            {
                "decoder": name,
                "step_ms_median": round(statistics.median(times), 3),
                "ratio": round(statistics.median(times) / statistics.median(baseline), 3),
                "ratio_p25": ratios["p25"],
                "ratio_p75": ratios["p75"],
                "ngram_share": round(statistics.median(ngram_share[name]), 4),
                "runs": len(times),
            }
        )
    return rows
