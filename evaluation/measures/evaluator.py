"""Exact log-probabilities of many drafts, under the drafting model or an independent one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor, nn

from superdraft.decoding.engine.admission import tokenise
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.model.kv_cache import cells_per_slot, plan_cache, probe_layer_shapes
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.text.covers import Covers
from superdraft.decoding.text.healing import HealingPlan, TokenIndex, plan_healing
from superdraft.decoding.text.tokenizer import Tokenizer

MAX_ROWS = 64

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class _Task:
    """A prompt and its drafts as tokens of the judging model.

    Attributes:
        context: the prompt's tokens before its last unfinished piece; all drafts continue them.
        plan: the rest of the prompt; None: there is none.
        drafts: for each draft the tokens of the rest and the draft together, and how many of them lie in the rest.
    """

    context: tuple[int, ...]
    plan: HealingPlan | None
    drafts: list[tuple[tuple[int, ...], int]]


class ExactRunner(TorchRunner):
    """A model runner for whole drafts: each prompt is run once, then each draft on a row of its own."""

    @torch.inference_mode()
    def draft_logprobs(self, prompts: Sequence[TokenIds], drafts: Sequence[Sequence[TokenIds]]) -> list[list[float]]:
        """Log-probability (natural log) of each token of each draft after its prompt.

        Args:
            prompts: token ids, none empty.
            drafts: drafts of each prompt, none empty; in total at most one per slot.

        Returns:
            For every draft, prompt after prompt, one number per token.
        """
        after_prompts, starts = self._fill(prompts, drafts)
        firsts = torch.log_softmax(after_prompts, dim=-1)
        flat = list(chain.from_iterable(drafts))
        rows = chain.from_iterable([row] * len(own) for row, own in enumerate(drafts))
        logprobs = [[float(firsts[row, ids[0]])] for row, ids in zip(rows, flat, strict=True)]
        if max(map(len, flat)) > 1:
            # The last token's logits say nothing about the draft.
            logits = self._continue([ids[:-1] or ids for ids in flat], starts)
            normalisers = logits.logsumexp(-1)
            for row, (own, ids) in enumerate(zip(logprobs, flat, strict=True)):
                wanted = torch.tensor(ids[1:], dtype=torch.long, device=self.device)
                places = torch.arange(len(wanted), device=self.device)
                own += (logits[row, places, wanted] - normalisers[row, places]).tolist()
        return logprobs

    def _fill(self, prompts: Sequence[TokenIds], drafts: Sequence[Sequence[TokenIds]]) -> tuple[Tensor, list[int]]:
        """Run each prompt into the slots of its drafts; logits after the prompts [P, V] and the slots' lengths."""
        firsts = list(accumulate(map(len, drafts), initial=0))[:-1]
        logits = self.prefill(firsts, prompts, [0] * len(prompts)).float()
        starts = []
        for first, prompt, own in zip(firsts, prompts, drafts, strict=True):
            starts += [len(prompt)] * len(own)
            for slot in range(first + 1, first + len(own)):
                self.cache.copy(first, slot, len(prompt))
        return logits, starts

    def _continue(self, rows: Sequence[TokenIds], starts: Sequence[int]) -> Tensor:
        """Run tokens into slots [0, rows); returns logits [rows, widest, V], float32."""
        logits = self.prefill(range(len(rows)), rows, starts, list(map(len, rows))).float()
        parts = torch.split(logits, list(map(len, rows)))
        return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def exact_runner(loaded: LoadedModel, max_len: int, num_slots: int) -> ExactRunner:
    """A runner with this many slots, and no more memory than they need.

    Raises:
        UnsupportedModelError: the model cannot be run with a KV cache in slots.
    """
    item_bytes = torch.finfo(loaded.model.dtype).bits // 8
    position_bytes = plan_cache(probe_layer_shapes(loaded.model), item_bytes, 2**62, 1, 1).bytes_per_position
    return ExactRunner(loaded.model, max_len, position_bytes * cells_per_slot(max_len) * num_slots, num_slots)


class Evaluator:
    """Judges drafts as texts by a language model.

    A draft's first token may contain the end of the typed text: after "ema", the token " email" is a continuation. A
    draft's probability is therefore that of its text given the typed text: the probability of the tokens of both,
    divided by the probability that a text begins with the typed text (`decoding.text.healing`; tokenisations of the
    typed text that need a pass of their own are ignored).

    Args:
        loaded: the judging model.
        max_len: maximum length of a prompt and its draft, in tokens.
    """

    def __init__(self, loaded: LoadedModel, max_len: int) -> None:
        self._runner = exact_runner(loaded, max_len, MAX_ROWS)
        self._tokenizer = Tokenizer(loaded.tokenizer, self._runner.vocab_size)
        self._index = TokenIndex.of(self._tokenizer)
        self.name = loaded.name

    def logprobs(self, prompts: Sequence[str], drafts: Sequence[Sequence[str]]) -> list[list[tuple[float, ...]]]:
        """Exact log-probabilities (natural log) of the tokens of each prompt's drafts; empty for an empty draft."""
        tasks = [self._task(prompt, own) for prompt, own in zip(prompts, drafts, strict=True)]
        known: list[dict[TokenIds, tuple[float, ...]]] = [{(): ()} for _ in prompts]
        wanted = [list(dict.fromkeys(ids for ids, _ in task.drafts if ids)) for task in tasks]
        for batch in _batches([task.context for task in tasks], wanted):
            pieces = [wanted[index][start:stop] for index, start, stop in batch]
            rows = iter(self._runner.draft_logprobs([tasks[index].context for index, _, _ in batch], pieces))
            for (index, _, _), piece in zip(batch, pieces, strict=True):
                known[index].update((ids, tuple(next(rows))) for ids in piece)
        return [
            [self._given_the_text(known[index][ids], num_typed, log_total) for ids, num_typed in task.drafts]
            for index, (task, log_total) in enumerate(zip(tasks, self._log_totals(tasks), strict=True))
        ]

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

    def _log_totals(self, tasks: Sequence[_Task]) -> list[float]:
        """For each prompt ln P(text begins with the prompt), given the prompt's context."""
        totals = [0.0] * len(tasks)
        healed = sorted((i for i, task in enumerate(tasks) if task.plan is not None), key=lambda i: _length(tasks[i]))
        for start in range(0, len(healed), MAX_ROWS):
            batch = healed[start : start + MAX_ROWS]
            plans = [plan for i in batch if (plan := tasks[i].plan) is not None]
            whole = [[*tasks[i].context, *plan.tail] for i, plan in zip(batch, plans, strict=True)]
            nums = [len(plan.tail) + 1 for plan in plans]
            logits = self._runner.prefill(range(len(batch)), whole, [0] * len(batch), nums).float()
            for index, plan, rows in zip(batch, plans, torch.split(logits, nums), strict=True):
                covers = Covers.of_prompt(plan, self._tokenizer, self._index, rows[0], rows[0])
                for length, row in enumerate(rows[1:], 1):
                    if (stem := covers.own_stem(length)) is not None:
                        covers.add(stem, row, row)
                totals[index] = covers.log_total
        return totals

    @staticmethod
    def _given_the_text(logprobs: tuple[float, ...], num_typed: int, log_total: float) -> tuple[float, ...]:
        if not logprobs:
            return ()
        first = sum(logprobs[: num_typed + 1]) - log_total
        return (min(first, 0.0), *logprobs[num_typed + 1 :])


def _length(task: _Task) -> int:
    return len(task.context) + (0 if task.plan is None else len(task.plan.tail))


def _batches(prompts: Sequence[TokenIds], drafts: Sequence[Sequence[TokenIds]]) -> Iterator[list[tuple[int, int, int]]]:
    """(prompt, first draft, last draft + 1) in batches that have at most one draft per slot.

    Prompts of similar length go together, because a batch is padded to its longest prompt.
    """
    batch: list[tuple[int, int, int]] = []
    num_rows = 0
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        for start in range(0, len(drafts[index]), MAX_ROWS):
            stop = min(start + MAX_ROWS, len(drafts[index]))
            if num_rows + stop - start > MAX_ROWS:
                yield batch
                batch, num_rows = [], 0
            batch.append((index, start, stop))
            num_rows += stop - start
    if batch:
        yield batch
