"""Exact log-probabilities of many drafts, under the drafting model or an independent one."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from superdraft.decoding.engine.admission import tokenise
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.model.torch_runner import logprobs_of_model
from superdraft.decoding.text.covers import Covers
from superdraft.decoding.text.healing import HealingPlan, TokenIndex, plan_healing
from superdraft.decoding.text.tokenizer import Tokenizer


class _Task(NamedTuple):
    """A prompt and its drafts as tokens of the judging model.

    Attributes:
        context: the prompt's tokens before its last unfinished piece; all drafts continue them.
        plan: the rest of the prompt; None: there is none.
        drafts: for each draft the tokens of the rest and the draft together, and how many of them lie in the rest.
    """

    context: tuple[int, ...]
    plan: HealingPlan | None
    drafts: list[tuple[tuple[int, ...], int]]


class Evaluator:
    """Judges drafts as texts by a language model.

    A draft's first token may contain the end of the typed text: after "ema", the token " email" is a continuation. A
    draft's probability is therefore that of its text given the typed text: the probability of the tokens of both,
    divided by the probability that a text begins with the typed text (`decoding.text.healing`; tokenisations of the
    typed text that need a pass of their own are ignored).

    Args:
        loaded: the judging model, with its dense weights.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._tokenizer = Tokenizer(loaded.tokenizer, int(loaded.model.get_output_embeddings().weight.shape[0]))
        self._index = TokenIndex.of(self._tokenizer)

    def logprobs(self, prompts: Sequence[str], drafts: Sequence[Sequence[str]]) -> list[list[tuple[float, ...]]]:
        """Exact log-probabilities (natural log) of the tokens of each prompt's drafts; empty for an empty draft."""
        return [self._judged(self._task(prompt, own)) for prompt, own in zip(prompts, drafts, strict=True)]

    @torch.inference_mode()
    def _judged(self, task: _Task) -> list[tuple[float, ...]]:
        """The drafts of one prompt: a row for each in one pass of the model, and one for the typed text."""
        own = list(dict.fromkeys(ids for ids, _ in task.drafts if ids))
        if not own:
            return [()] * len(task.drafts)
        tail = () if task.plan is None else tuple(task.plan.tail)
        rows = logprobs_of_model(self._model, [[*task.context, *ids] for ids in (*own, tail)], len(task.context) - 1)
        log_total = 0.0 if task.plan is None else self._log_total(task.plan, rows[-1])
        known: dict[tuple[int, ...], list[float]] = {(): []}
        for ids, logprobs in zip(own, rows, strict=False):
            known[ids] = logprobs[range(len(ids)), ids].tolist()
        return [_given_the_text(known[ids], num_typed, log_total) for ids, num_typed in task.drafts]

    def _task(self, prompt: str, drafts: Sequence[str]) -> _Task:
        tokens = tokenise(prompt, self._tokenizer)
        plan = plan_healing(tokens.text or "", tokens.token_ids, max(1, tokens.num_fixed), self._tokenizer)
        if plan is None:
            return _Task(tokens.token_ids, None, [(tuple(self._tokenizer.encode_inside(text)), 0) for text in drafts])
        context = tokens.token_ids[: plan.num_shared]
        num_bytes = len(self._tokenizer.bytes_of(plan.tail))
        judged = []
        for text in drafts:
            whole = tokenise(prompt + text, self._tokenizer).token_ids
            if whole[: len(context)] != context:  # the draft changes tokens before the unfinished piece
                whole = (*tokens.token_ids, *self._tokenizer.encode_inside(text))
            own = whole[len(context) :] if text else ()
            ends = accumulate(len(self._tokenizer.token_bytes[i]) for i in own)
            judged.append((own, sum(end <= num_bytes for end in ends)))
        return _Task(context, plan, judged)

    def _log_total(self, plan: HealingPlan, rows: Tensor) -> float:
        """Ln P(text begins with the prompt) given the prompt's context, from the model's output along its tail."""
        covers = Covers.of_prompt(plan, self._tokenizer, self._index, rows[0], rows[0])
        for length, row in enumerate(rows[1:], 1):
            if (stem := covers.own_stem(length)) is not None:
                covers.add(stem, row, row)
        return covers.log_total


def _given_the_text(logprobs: Sequence[float], num_typed: int, log_total: float) -> tuple[float, ...]:
    if not logprobs:
        return ()
    first = sum(logprobs[: num_typed + 1]) - log_total
    return (min(first, 0.0), *logprobs[num_typed + 1 :])
