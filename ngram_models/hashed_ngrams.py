"""An n-gram model as hash tables, for looking up many n-grams at once where KenLM cannot be: on a GPU.

KenLM finds an n-gram by its words from the last to the first. A draft grows at its end, so here the n-gram w1 ... wn is
found from its context w1 ... w(n-1), which the draft's state holds already, and wn: one look-up an order, all at once.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from superdraft.ngram_models.kenlm_trie import Floats, Ints, KenLMTrie, Ngrams
from superdraft.ngram_models.vocabulary import BEGIN_OF_SENTENCE, END_OF_SENTENCE, WordTable

NO_KEY: Final = np.iinfo(np.int64).min
"""Stands where no n-gram is; keys that are looked up, "no n-gram" with "no word" among them, are far above."""

_HASH_FACTOR: Final = -7046029254386353131  # 2**64 divided by the golden ratio, as a signed number
_LOAD: Final = 0.5

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class HashedNgrams:
    """The n-grams of a model as *nodes*: each has a number below N, with gaps between.

    Nodes 0 to `num_words` - 1 are the single words, by KenLM's numbers; the n-grams of each further order lie in a
    table of their own behind those of the order before. The n-gram of the node c, its first n - 1 words, and the word w
    has the key `c * num_words + w`; in the table of order n it is one of the `window` nodes from `starts[n-2] + h mod
    sizes[n-2]`, h being the key times `hash_factor` modulo 2**64, as a signed number. The last node is never an n-gram:
    -1, "no n-gram", may be looked up like any other and has no weight.

    Attributes:
        keys: of each node, `NO_KEY` where there is none, shape [N].
        logprobs: ln of each n-gram's probability, shape [N]; `-inf` for all that end in `<unk>` if unknown tokens have
            no support.
        backoffs: ln of each n-gram's back-off weight, shape [N]; 0 where it has none.
        words: the word of each token id, shape [vocabulary_size]. Tokens that the corpus lacks are word 0, `<unk>`, as
            are ids beyond.
        starts: first node of the table of each order from 2 up, shape [order - 1].
        sizes: the number that hashes are reduced by in each of them, shape [order - 1].
        num_words: number of words.
        window: how many nodes one look-up compares.
        begin_word: `<s>`.
        end_word: `</s>`.
        hash_factor: what keys are multiplied by.
    """

    keys: Ints
    logprobs: Floats
    backoffs: Floats
    words: Ints
    starts: Ints
    sizes: Ints
    num_words: int
    window: int
    begin_word: int
    end_word: int
    hash_factor: int = _HASH_FACTOR

    @property
    def order(self) -> int:
        """The longest n-gram, in tokens."""
        return len(self.starts) + 1

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return self.keys.nbytes + self.logprobs.nbytes + self.backoffs.nbytes + self.words.nbytes


def hash_ngrams(trie: KenLMTrie, table: WordTable, *, unknown_has_no_support: bool = False) -> HashedNgrams:
    """The hash tables of a model.

    Args:
        trie: of the model.
        table: the words of the tokenizer's ids.
        unknown_has_no_support: whether a token that the corpus lacks scores `-inf`.
    """
    num_words = len(trie.words)
    nodes, end, window = trie.ngrams[0].words, num_words, 1
    nodes_by_order, keys_by_order, starts, sizes = [nodes], [np.full(num_words, NO_KEY)], [], []
    for ngrams in trie.ngrams[1:]:
        keys = nodes[ngrams.contexts] * num_words + ngrams.words
        # Odd, since the lowest bits of a product depend on the lowest bits of the key alone.
        size = int(len(keys) / _LOAD) | 1
        slots, furthest = _place(keys, size)
        nodes = end + slots
        nodes_by_order.append(nodes)
        keys_by_order.append(keys)
        starts.append(end)
        sizes.append(size)
        end += int(slots.max(initial=-1)) + 1
        window = max(window, furthest + 1)
    # A look-up that begins at the end of its table goes beyond it; one more node is for -1.
    num_nodes = max(start + size for start, size in zip(starts, sizes, strict=True)) + window
    logprobs = [_logprobs(ngrams, unknown_has_no_support) for ngrams in trie.ngrams]
    return HashedNgrams(
        keys=_spread(np.full(num_nodes, NO_KEY), nodes_by_order, keys_by_order),
        logprobs=_spread(np.zeros(num_nodes, np.float32), nodes_by_order, logprobs),
        backoffs=_spread(np.zeros(num_nodes, np.float32), nodes_by_order, [_natural(n.backoffs) for n in trie.ngrams]),
        words=np.array([trie.words.get(table[token_id], 0) for token_id in range(max(table) + 1)]),
        starts=np.array(starts),
        sizes=np.array(sizes),
        num_words=num_words,
        window=window,
        begin_word=trie.words[BEGIN_OF_SENTENCE],
        end_word=trie.words[END_OF_SENTENCE],
    )


def _place(keys: Ints, size: int) -> tuple[Ints, int]:
    """A place for each key in a table of its own, and how far from its home the furthest one lies.

    They are laid down by their homes, each at its own or else right behind the one before: no other order of open
    addressing leaves a shorter longest way (Celis, 1986, "Robin Hood hashing").
    """
    homes = keys * np.int64(_HASH_FACTOR) % size
    by_home = np.argsort(homes)
    sorted_homes = homes[by_home]
    ranks = np.arange(len(keys))
    places = np.maximum.accumulate(sorted_homes - ranks) + ranks
    slots = np.empty_like(places)
    slots[by_home] = places
    return slots, int((places - sorted_homes).max(initial=0))


def _logprobs(ngrams: Ngrams, unknown_has_no_support: bool) -> NDArray[np.float64]:
    logprobs = _natural(ngrams.logprobs)
    if unknown_has_no_support:
        logprobs[ngrams.words == 0] = -np.inf
    return logprobs


def _natural(log10: Floats) -> NDArray[np.float64]:
    return log10.astype(np.float64) * math.log(10)


def _spread(array: NDArray[_T], nodes: list[Ints], values: list[NDArray[Any]]) -> NDArray[_T]:
    """Put the values of each order at their nodes."""
    for places, items in zip(nodes, values, strict=True):
        array[places] = items
    return array
