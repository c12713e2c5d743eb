"""Scorer for a KenLM model over token ids."""

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any

import kenlm

from superdraft.ngram_models.vocabulary import WordTable

# KenLM returns log10; everything else uses natural logarithms.
_LN_10 = math.log(10)

# Models for the same tokenizer share one table, which holds a string per token id.
_shared_words = functools.lru_cache(maxsize=2)(WordTable)


class KenLMScorer:
    """Next-token log-probabilities from a KenLM model. Each draft carries its own state.

    A state is a `kenlm.State`. It is treated as immutable, is hashable, and is equal for two contexts that no n-gram of
    the model distinguishes. After an end-of-text token a new text begins, so the state is the begin-of-sentence state.
    A token that is not in the corpus gets KenLM's probability of `<unk>`, so that it does not rule out a draft.

    Args:
        model: a `kenlm.Model` whose words are those of `WordTable`.
        vocabulary_size: number of ids of the tokenizer.
        end_of_text_ids: ids that map to the model's `</s>`.
    """

    def __init__(self, model: Any, *, vocabulary_size: int, end_of_text_ids: Collection[int]) -> None:
        self._model = model
        self._base_score = model.BaseScore
        self._end_of_text_ids = frozenset(end_of_text_ids)
        self._words = _shared_words(vocabulary_size, self._end_of_text_ids)
        self._text_start = kenlm.State()
        model.BeginSentenceWrite(self._text_start)
        # BaseScore always writes an out-state; this one is never read.
        self._discarded = kenlm.State()

    @property
    def order(self) -> int:
        """Length of the longest n-gram, in tokens."""
        return int(self._model.order)

    def is_known(self, token_id: int) -> bool:
        """Whether this token is in the corpus."""
        return self._words[token_id] in self._model

    def text_start_state(self) -> kenlm.State:
        """State at the beginning of a text."""
        return self._text_start

    def initial_state(self, token_ids: Sequence[int]) -> kenlm.State:
        """State after `token_ids`; only the last `order - 1` matter.

        They count as the middle of a text, unless an end-of-text token among them starts a new one.
        """
        state = kenlm.State()
        self._model.NullContextWrite(state)
        for token_id in token_ids[-(self.order - 1) :]:
            state = self.advance(state, token_id)
        return state

    def score(self, states: Sequence[kenlm.State], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of all candidates of all drafts.

        Args:
            states: one per draft; length k.
            candidates: token ids to score after each state; length k. Drafts with equal states that pass the same list
                object are scored once and share one row of the result.

        Returns:
            k lists; entry `[i][j]` is `ln p(candidates[i][j] | states[i])`.
        """
        base_score, words, discarded = self._base_score, self._words, self._discarded
        rows: dict[tuple[kenlm.State, int], list[float]] = {}
        scores = []
        for state, token_ids in zip(states, candidates, strict=True):
            key = (state, id(token_ids))
            row = rows.get(key)
            if row is None:
                rows[key] = row = [base_score(state, words[token_id], discarded) * _LN_10 for token_id in token_ids]
            scores.append(row)
        return scores

    def advance(self, state: kenlm.State, token_id: int) -> kenlm.State:
        """State after one more token."""
        if token_id in self._end_of_text_ids:
            return self._text_start
        next_state = kenlm.State()
        self._base_score(state, self._words[token_id], next_state)
        return next_state
