"""Figures with confidence bounds, computed from records."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures import metrics
from superdraft.evaluation.measures.bootstrap import Ratios, as_ratios
from superdraft.evaluation.reports.records import PromptRecord

MATCH_WORDS = (1, 2, 3, 4, 5)

Figures = Mapping[str, Ratios]
"""Ratios by name. A name with a slash, such as `exact_match_any/1`, is one of several of the same kind."""


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, Ratios]:
    """Figures that are means over the prompts, from the figures of each prompt; NaN, or none, if it lacks one."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: as_ratios(np.array([row.get(name, math.nan) for row in rows])) for name in names}


def shares(rows: Sequence[Sequence[float]]) -> Ratios:
    """A figure that is a ratio of sums, from each prompt's numerator and denominator."""
    return np.array(rows, dtype=np.float64)


def costs(record: PromptRecord, num_steps: int) -> dict[str, float]:
    """What one prompt took: rows, time and number of drafts.

    Args:
        record: record of the prompt.
        num_steps: decode steps of a draft that is not cut short.
    """
    has_rows = record.forward_rows is not None and num_steps
    return {
        "forward_rows": (record.forward_rows or 0) / num_steps if has_rows else math.nan,
        "request_ms": 1000 * record.wall_s,
        "num_drafts": float(len(record.drafts)),
    }


def prompt_figures(record: PromptRecord, prompt: Prompt, num_steps: int) -> dict[str, float]:
    """The figures of one prompt whose means over the prompts are reported; NaN if the prompt lacks one."""
    texts, continuation = record.texts, prompt.continuation
    matches = {f"exact_match_any/{n}": metrics.exact_match(texts, continuation, n) for n in MATCH_WORDS}
    matches["exact_match_first/1"] = metrics.exact_match(texts[:1], continuation, 1)
    return {
        **costs(record, num_steps),
        **_perplexities(record),
        **{name: math.nan if match is None else float(match) for name, match in matches.items()},
        "words_right": float(metrics.most_words_right(texts, continuation)),
        "distinct_starts": float(metrics.distinct_starts(texts)),
        "self_bleu": metrics.self_bleu(texts),
        "mean_words": metrics.mean([float(len(text.split())) for text in texts]),
    }


def _perplexities(record: PromptRecord) -> dict[str, float]:
    judged = [draft.exact_logprobs for draft in record.drafts if draft.exact_logprobs is not None]
    values = [metrics.perplexity(logprobs) for logprobs in judged]
    known = [value for value in values if not math.isnan(value)]
    return {
        "perplexity_best": min(known, default=math.nan),
        "perplexity_mean": metrics.mean(known),
        **{f"perplexity_by_rank/{rank}": value for rank, value in enumerate(values, 1)},
    }


def collect(records: Sequence[PromptRecord], prompts: Sequence[Prompt], num_steps: int) -> Figures:
    """All figures of one decoder on prompts with references.

    Args:
        records: records of the decoder.
        prompts: their prompts, in the same order.
        num_steps: decode steps of a draft that is not cut short.
    """
    rows = [prompt_figures(record, prompt, num_steps) for record, prompt in zip(records, prompts, strict=True)]
    figures = means(rows)
    if any(record.typing for record in records):  # a prompt's row, though it lacks one: decoders are compared in pairs
        counts = [record.typing for record in records]
        pairs = [(one.num_characters - one.num_keys, one.num_characters) if one else (0, 0) for one in counts]
        figures["keystroke_savings"] = shares(pairs)
    return figures
