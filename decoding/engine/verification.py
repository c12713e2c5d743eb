"""The verification pass: exact log-probabilities of finished drafts.

A superposed request's probabilities are exact for the first token only; later ones belong to a blend of the drafts.
This pass runs the drafts through the plain model, one row each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.outputs import TokenLogprob
from superdraft.decoding.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Verification:
    """Exact log-probabilities.

    Attributes:
        drafts: for each draft, one entry per token.
        prompt: the prompt's own tokens, if wanted. The first one has no context, so its log-probability is None.
        num_rows: model rows spent, one per token of each draft.
    """

    drafts: tuple[tuple[TokenLogprob, ...], ...]
    prompt: tuple[TokenLogprob, ...] | None
    num_rows: int


def verify(
    runner: ModelRunner,
    tokenizer: Tokenizer,
    drafts: Sequence[tuple[Sequence[int], Sequence[int]]],
    num_top: int,
    front: Sequence[int] = (),
    prompt: Sequence[int] | None = None,
) -> Verification:
    """Run every draft after its context through the plain model.

    Args:
        runner: the model.
        tokenizer: for the tokens' texts.
        drafts: for each draft, the token ids before it (at least one) and its own.
        num_top: how many of the most probable alternatives to report per token.
        front: tokens before the prompt, which are not reported.
        prompt: the prompt's tokens, if they are to be reported too.
    """
    whole = [*front, *(prompt or ())]
    sequences = [[*context, *draft] for context, draft in drafts]
    # A draft that follows the prompt's own tokens carries the prompt's log-probabilities. With token healing, all
    # drafts may follow other tokenisations of the prompt's end; the prompt then takes a row of its own.
    carrier = next((index for index, (context, _) in enumerate(drafts) if list(context) == whole), len(drafts))
    if prompt is not None and carrier == len(drafts):
        sequences.append(whole)
    start = len(front) if prompt is not None else min(len(context) for context, _ in drafts) - 1
    rows = runner.exact_logprobs(sequences, start)
    verified = tuple(
        _describe(tokenizer, logprobs[len(context) - 1 - start :], draft, num_top)
        for logprobs, (context, draft) in zip(rows, drafts, strict=False)
    )
    prompt_logprobs = None
    if prompt is not None:
        first = TokenLogprob(prompt[0], tokenizer.decode(prompt[:1]), None)
        prompt_logprobs = (first, *_describe(tokenizer, rows[carrier], prompt[1:], num_top))
    return Verification(verified, prompt_logprobs, sum(len(draft) for _, draft in drafts))


def _describe(
    tokenizer: Tokenizer, logprobs: Tensor, token_ids: Sequence[int], num_top: int
) -> tuple[TokenLogprob, ...]:
    """An entry per token; `logprobs[i]`, shape [V], is the distribution before `token_ids[i]`."""
    entries = []
    for row, token_id in zip(logprobs, token_ids, strict=False):
        values, ids = torch.topk(row, num_top)
        top = zip(ids.tolist(), values.tolist(), strict=True)
        alternatives = tuple((i, tokenizer.token_text(i), value) for i, value in top)
        entries.append(TokenLogprob(token_id, tokenizer.token_text(token_id), float(row[token_id]), alternatives))
    return tuple(entries)
