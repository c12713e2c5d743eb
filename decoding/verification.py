"""Exact log-probabilities of finished drafts.

A superposed step is exact for the first token only; later its distribution is that of a blend of the drafts. This pass
runs the drafts through the plain model, one row each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.outputs import TokenLogprob
from superdraft.decoding.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Verification:
    """Exact log-probabilities.

    Attributes:
        drafts: for each draft one entry a token.
        prompt: the prompt's own tokens, if asked for. Nothing precedes the first one: its log-probability is None.
        num_rows: model rows spent, one for each position of each draft.
    """

    drafts: tuple[tuple[TokenLogprob, ...], ...]
    prompt: tuple[TokenLogprob, ...] | None
    num_rows: int


def verify(
    runner: ModelRunner,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    drafts: Sequence[Sequence[int]],
    num_top: int,
    with_prompt: bool,
) -> Verification:
    """Run prompt + draft for every draft through the exact model.

    Args:
        runner: the model.
        tokenizer: for the tokens' texts.
        prompt: its token ids, never empty.
        drafts: token ids of each draft.
        num_top: most probable alternatives to report for each token.
        with_prompt: report the prompt's own tokens too.
    """
    start = 0 if with_prompt else len(prompt) - 1
    rows = runner.exact_logprobs([[*prompt, *draft] for draft in drafts], start)
    offset = len(prompt) - 1 - start
    verified = tuple(
        _describe(tokenizer, logprobs[offset:], draft, num_top) for logprobs, draft in zip(rows, drafts, strict=True)
    )
    prompt_logprobs = None
    if with_prompt:
        first = TokenLogprob(prompt[0], tokenizer.decode(prompt[:1]), None)
        prompt_logprobs = (first, *_describe(tokenizer, rows[0], prompt[1:], num_top))
    return Verification(verified, prompt_logprobs, sum(len(draft) for draft in drafts))


def _describe(
    tokenizer: Tokenizer, logprobs: Tensor, token_ids: Sequence[int], num_top: int
) -> tuple[TokenLogprob, ...]:
    """`logprobs[i]`, shape [V], is the distribution from which `token_ids[i]` was taken."""
    entries = []
    for row, token_id in zip(logprobs, token_ids, strict=False):
        values, ids = torch.topk(row, num_top)
        top = zip(ids.tolist(), values.tolist(), strict=True)
        alternatives = tuple((i, tokenizer.token_text(i), value) for i, value in top)
        entries.append(TokenLogprob(token_id, tokenizer.token_text(token_id), float(row[token_id]), alternatives))
    return tuple(entries)
