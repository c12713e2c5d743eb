"""Exact log-probabilities of many drafts, from the drafting model itself or from an independent one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from superdraft.decoding.admission import prompt_token_ids
from superdraft.decoding.kv_cache import plan_cache, probe_layer_shapes
from superdraft.decoding.model_loader import LoadedModel
from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.tokenizer import Tokenizer

MAX_ROWS = 64

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class DraftText:
    """A draft to be judged: its text and, in the drafting model's tokens, its ids."""

    text: str
    token_ids: tuple[int, ...]


class ExactRunner(ModelRunner):
    """A model runner that looks at whole drafts: each prompt is run once, then every draft on a row of its own."""

    @torch.inference_mode()
    def draft_logprobs(self, prompts: Sequence[TokenIds], drafts: Sequence[Sequence[TokenIds]]) -> list[list[float]]:
        """Log-probability (natural log) of each token of each draft after its prompt.

        Args:
            prompts: token ids, none empty.
            drafts: for each prompt its drafts, none empty; all together at most one a slot.

        Returns:
            For every draft, prompt after prompt, one number a token.
        """
        after_prompts, starts = self._fill(prompts, drafts)
        firsts = torch.log_softmax(after_prompts, dim=-1)
        flat = list(chain.from_iterable(drafts))
        rows = chain.from_iterable([row] * len(own) for row, own in enumerate(drafts))
        logprobs = [[float(firsts[row, ids[0]])] for row, ids in zip(rows, flat, strict=True)]
        if max(map(len, flat)) > 1:
            # The last token's logits tell nothing of the draft.
            logits = self._continue([ids[:-1] or ids for ids in flat], starts)
            normalisers = logits.logsumexp(-1)
            for row, (own, ids) in enumerate(zip(logprobs, flat, strict=True)):
                wanted = torch.tensor(ids[1:], dtype=torch.long, device=self.device)
                places = torch.arange(len(wanted), device=self.device)
                own += (logits[row, places, wanted] - normalisers[row, places]).tolist()
        return logprobs

    @torch.inference_mode()
    def draft_logits(self, prompt: TokenIds, drafts: Sequence[TokenIds]) -> list[Tensor]:
        """Logits after each token of each draft, for each draft shape [tokens, V], float32."""
        _, starts = self._fill([prompt], [drafts])
        logits = self._continue(drafts, starts)
        return [row[: len(ids)] for row, ids in zip(logits, drafts, strict=True)]

    def _fill(self, prompts: Sequence[TokenIds], drafts: Sequence[Sequence[TokenIds]]) -> tuple[Tensor, list[int]]:
        """Run each prompt into the slots of its drafts; logits after the prompts [P, V], and each slot's length."""
        firsts = list(accumulate(map(len, drafts), initial=0))[:-1]
        logits = self.prefill(firsts, prompts, [0] * len(prompts)).float()
        starts = []
        for first, prompt, own in zip(firsts, prompts, drafts, strict=True):
            starts += [len(prompt)] * len(own)
            for slot in range(first + 1, first + len(own)):
                self.cache.move(first, slot, len(prompt))
        return logits, starts

    def _continue(self, rows: Sequence[TokenIds], starts: Sequence[int]) -> Tensor:
        """Run tokens into the slots from 0 on; logits [rows, widest, V], float32."""
        widest = max(map(len, rows))
        # Padding on the right, where no real token sees it.
        padded = [[*ids, *[ids[-1]] * (widest - len(ids))] for ids in rows]
        positions = self.cache.select(range(len(rows)), starts, widest)
        return self._forward(positions, None, input_ids=torch.tensor(padded, device=self.device)).float()


def exact_runner(loaded: LoadedModel, max_len: int, num_slots: int) -> ExactRunner:
    """A runner with so many slots and no more memory than they need.

    Raises:
        UnsupportedModelError: the model cannot be run over a KV cache in slots.
    """
    item_bytes = torch.finfo(loaded.model.dtype).bits // 8
    position_bytes = plan_cache(probe_layer_shapes(loaded.model), item_bytes, 2**62, 1, 1).bytes_per_position
    return ExactRunner(loaded.model, max_len, position_bytes * max_len * num_slots, num_slots)


class Evaluator:
    """Judges drafts by a language model.

    Args:
        loaded: the model that judges.
        max_len: tokens of the longest prompt and draft together.
        same_tokenizer: the drafts' token ids are this model's; otherwise their texts are tokenised anew.
    """

    def __init__(self, loaded: LoadedModel, max_len: int, *, same_tokenizer: bool) -> None:
        self._runner = exact_runner(loaded, max_len, MAX_ROWS)
        self._tokenizer = Tokenizer(loaded.tokenizer, self._runner.vocab_size)
        self._same_tokenizer = same_tokenizer
        self.name = loaded.name

    def logprobs(self, prompts: Sequence[str], drafts: Sequence[Sequence[DraftText]]) -> list[list[tuple[float, ...]]]:
        """Exact log-probabilities of the tokens of each prompt's drafts; none for a draft without tokens."""
        known: list[dict[TokenIds, tuple[float, ...]]] = [{(): ()} for _ in prompts]
        token_ids = [[self._ids(draft) for draft in own] for own in drafts]
        prompt_ids = [prompt_token_ids(prompt, self._tokenizer) for prompt in prompts]
        wanted = [list(dict.fromkeys(ids for ids in own if ids)) for own in token_ids]
        for batch in _batches(prompt_ids, wanted):
            pieces = [wanted[index][start:stop] for index, start, stop in batch]
            rows = iter(self._runner.draft_logprobs([prompt_ids[index] for index, _, _ in batch], pieces))
            for (index, _, _), piece in zip(batch, pieces, strict=True):
                known[index].update((ids, tuple(next(rows))) for ids in piece)
        return [[known[index][ids] for ids in own] for index, own in enumerate(token_ids)]

    def _ids(self, draft: DraftText) -> tuple[int, ...]:
        if self._same_tokenizer:
            return draft.token_ids
        return tuple(self._tokenizer.hf_tokenizer.encode(draft.text, add_special_tokens=False, verbose=False))


def _batches(prompts: Sequence[TokenIds], drafts: Sequence[Sequence[TokenIds]]) -> Iterator[list[tuple[int, int, int]]]:
    """(prompt, first draft, last draft + 1), batched so that no batch has more drafts than there are slots.

    Prompts of similar length go together: a batch is padded to its longest.
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
