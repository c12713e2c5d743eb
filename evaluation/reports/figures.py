"""Figures with confidence bounds, computed from records."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.cases.word_list import WordList
from superdraft.evaluation.measures import metrics
from superdraft.evaluation.measures.bootstrap import Interval, Ratios, as_ratios, interval, paired_difference
from superdraft.evaluation.measures.joints import count_joints
from superdraft.evaluation.reports.records import PromptRecord

MATCH_WORDS = (1, 2, 3, 4, 5)
UNIQUENESS_ORDERS = (1, 2, 3)
"""Orders of the n-grams whose uniqueness within a draft is reported."""

UNIQUENESS_LENGTHS = (5, 10, 15, 20)
"""Lengths in words. A draft counts at each length that it reaches, cut to that length."""

Figures = Mapping[str, Ratios]
"""Ratios by name. A name with a slash, such as `exact_match_any/1`, is one of several of the same kind."""


def prompt_figures(record: PromptRecord, prompt: Prompt, num_steps: int) -> dict[str, float]:
    """The figures of one prompt whose means over the prompts are reported; NaN if the prompt lacks one.

    Args:
        record: record of the prompt.
        prompt: the prompt.
        num_steps: decode steps of a draft that is not cut short.
    """
    texts, continuation = record.texts, prompt.continuation
    words = [text.split() for text in texts]
    matches = {n: metrics.exact_match(texts, continuation, n) for n in MATCH_WORDS}
    is_first_right = metrics.exact_match(texts[:1], continuation, 1)
    figures = {
        **_perplexities(record),
        **{f"exact_match_any/{n}": math.nan if match is None else float(match) for n, match in matches.items()},
        "exact_match_first/1": math.nan if is_first_right is None else float(is_first_right),
        "words_right": float(metrics.most_words_right(texts, continuation)),
        "distinct_starts": float(metrics.distinct_starts(texts)),
        "self_bleu": metrics.self_bleu(texts),
        "mean_words": metrics.mean([float(len(one)) for one in words]),
        "num_drafts": float(len(texts)),
        "forward_rows": forward_rows(record, num_steps),
        "request_ms": 1000 * record.wall_s,
    }
    for length in UNIQUENESS_LENGTHS:
        for order in UNIQUENESS_ORDERS:
            shares = [metrics.ngram_uniqueness(one[:length], order) for one in words if len(one) >= length]
            figures[uniqueness_name(order, length)] = metrics.mean(shares)
    return figures


def forward_rows(record: PromptRecord, num_steps: int) -> float:
    """Model rows of the decode steps, per step of a draft that is not cut short; NaN if unknown."""
    return math.nan if record.forward_rows is None or not num_steps else record.forward_rows / num_steps


def uniqueness_name(order: int, length: int) -> str:
    """The name of the figure for the uniqueness of n-grams in the first `length` words of a draft."""
    return f"ngram_uniqueness/{order}-grams of {length} words"


def _perplexities(record: PromptRecord) -> dict[str, float]:
    judged = [draft.exact_logprobs for draft in record.drafts if draft.exact_logprobs is not None]
    values = [metrics.perplexity(logprobs) for logprobs in judged]
    known = [value for value in values if not math.isnan(value)]
    return {
        "perplexity_best": min(known, default=math.nan),
        "perplexity_mean": metrics.mean(known),
        **{f"perplexity_by_rank/{rank}": value for rank, value in enumerate(values, 1)},
    }


def collect(
    records: Sequence[PromptRecord], prompts: Sequence[Prompt], num_steps: int, words: WordList | None = None
) -> Figures:
    """All figures of one decoder, one row per prompt.

    Args:
        records: records of the decoder.
        prompts: their prompts, in the same order.
        num_steps: decode steps of a draft that is not cut short.
        words: the words that joints are judged by; None: joints are not judged.
    """
    rows = [prompt_figures(record, prompt, num_steps) for record, prompt in zip(records, prompts, strict=True)]
    names = dict.fromkeys(name for row in rows for name in row)
    figures = {name: as_ratios(np.array([row.get(name, math.nan) for row in rows])) for name in names}
    if all(record.keys is not None for record in records):
        keys = [record.keys for record in records if record.keys is not None]
        saved = [[one.without_drafts - one.with_drafts, one.without_drafts] for one in keys]
        figures["keystroke_savings"] = np.array(saved, dtype=np.float64)
    figures |= _turns(records)
    return figures if words is None else figures | _broken_joints(records, prompts, words)


def _turns(records: Sequence[PromptRecord]) -> dict[str, Ratios]:
    """saved@k and acceptance_rate@k for each k in the records."""
    figures = {}
    for num_shown, in_part in sorted({(one.num_shown, one.in_part) for record in records for one in record.turns}):
        counts = [record.turns_with(num_shown, in_part) for record in records]
        saved = [math.nan if count is None else count.saved for count in counts]
        accepted = [math.nan if count is None else count.acceptance_rate for count in counts]
        suffix = f"_in_part/{num_shown}" if in_part else f"/{num_shown}"
        figures[f"saved_at{suffix}"] = as_ratios(np.array(saved))
        figures[f"acceptance_rate_at{suffix}"] = as_ratios(np.array(accepted))
    return figures


def _broken_joints(records: Sequence[PromptRecord], prompts: Sequence[Prompt], words: WordList) -> dict[str, Ratios]:
    """Shares of first drafts, drafts and requests with broken joints; requests without drafts are left out."""
    counts = [count_joints(prompt, record.texts, words) for record, prompt in zip(records, prompts, strict=True)]
    requests = [float(count.num_drafts > 0) for count in counts]
    first = [[count.is_first_broken, request] for count, request in zip(counts, requests, strict=True)]
    any_draft = [[count.num_broken > 0, request] for count, request in zip(counts, requests, strict=True)]
    return {
        "broken_joints/first": np.array(first, dtype=np.float64),
        "broken_joints/drafts": np.array([[one.num_broken, one.num_drafts] for one in counts], dtype=np.float64),
        "broken_joints/any": np.array(any_draft, dtype=np.float64),
    }


def intervals(figures: Figures) -> dict[str, Interval]:
    """All figures with their bounds."""
    return {name: interval(ratios) for name, ratios in figures.items()}


def differences(ours: Figures, theirs: Figures) -> dict[str, Interval]:
    """Our figures minus theirs, paired by prompt, for the figures that both have."""
    return {name: paired_difference(ratios, theirs[name]) for name, ratios in ours.items() if name in theirs}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn names with a slash into nested objects, and ranks into a list."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        group, slash, member = name.partition("/")
        if group == "perplexity_by_rank":
            tree.setdefault(group, []).append(value)
        elif slash:
            tree.setdefault(group, {})[member] = value
        else:
            tree[name] = value
    return tree
