"""N-gram scores from hash tables on the model's device: a whole decode step needs no word from the host."""

import torch
from torch import Tensor

from superdraft.decoding.ngram import NgramArrays


class NgramTables:
    """The tables of a back-off n-gram model on a device.

    The state of a draft is the nodes of its last words: `nodes[j]` is the n-gram of the last j + 1 of them, -1 if there
    is none; shape [..., order - 1], int64. If one is there, so are all shorter ones. Unlike KenLM's states these are
    not cut to what can matter, so two that differ may score alike.

    All methods have static shapes, read no value back and make no tensor on the host, so that they can be part of a
    CUDA graph. Sums are made in float64: what is rounded is each weight, to float32, and nothing else.

    Args:
        arrays: of the model.
        device: where the tables go.
        num_tokens: number of token ids that may be scored, if it is more than the tokenizer has: a language model's
            output may have more rows. Those are unknown words.
    """

    def __init__(self, arrays: NgramArrays, device: torch.device | str, *, num_tokens: int = 0) -> None:
        words = torch.zeros(max(num_tokens, len(arrays.words)), dtype=torch.int64)
        words[: len(arrays.words)] = torch.from_numpy(arrays.words)
        starts = torch.from_numpy(arrays.starts)
        self.order = arrays.order
        self._num_words = arrays.num_words
        self._hash_factor = arrays.hash_factor
        self._end_word = arrays.end_word
        self._words = words.to(device)
        self._keys = torch.from_numpy(arrays.keys).to(device)
        self._logprobs = torch.from_numpy(arrays.logprobs).to(device)
        self._backoffs = torch.from_numpy(arrays.backoffs).to(device)
        self._sizes = torch.from_numpy(arrays.sizes).to(device)
        self._offsets = (starts.unsqueeze(-1) + torch.arange(arrays.window)).to(device)
        self._none = torch.tensor(-1, device=device)
        self._text_start = torch.tensor([arrays.begin_word] + [-1] * (arrays.order - 2), device=device)

    def state_after(self, context_words: Tensor) -> Tensor:
        """The state after some words.

        Args:
            context_words: the model's numbers of the last `order - 1` words, oldest first, -1 in the place of each
                that is not there (those come first). Shape [..., order - 1], int64.

        Returns:
            Nodes, shape [..., order - 1].
        """
        nodes = context_words[..., :1]
        for word in context_words[..., 1:].unbind(-1):
            nodes = torch.cat([word.unsqueeze(-1), self._longer(nodes, word)], dim=-1)
        return nodes

    def score(self, nodes: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Natural-log probabilities of candidates, and the states after them.

        A score is that of the longest n-gram that ends in the candidate, plus the back-off weights of all longer
        contexts of the state. After an end-of-text token a text begins. 20 operations, whatever the order.

        Args:
            nodes: the states of k drafts in each of R rows, shape [R, k, order - 1].
            token_ids: the candidates of each draft, shape [R, k, m], or those that the drafts of a row share,
                shape [R, m].

        Returns:
            The scores, shape [R, k, m], float64, `-inf` where the model gives no support; and the states after each
            candidate, shape [R, k, m, order - 1].
        """
        words = self._words[token_ids]
        if words.dim() == 2:
            words = words.unsqueeze(1)
        longer = self._longer(nodes.unsqueeze(2), words)
        ngrams = torch.cat([words.unsqueeze(-1).expand(*longer.shape[:-1], 1), longer], dim=-1)
        # Nodes of a higher order have higher numbers, so the largest is the longest n-gram.
        logprobs = self._logprobs[ngrams.amax(-1)]
        # Missing contexts are -1, the last node, whose weight is 0.
        backoffs = self._backoffs[nodes].double().unsqueeze(2)
        scores = logprobs + ((longer < 0) * backoffs).sum(-1)
        children = torch.where((words == self._end_word).unsqueeze(-1), self._text_start, ngrams[..., :-1])
        return scores, children

    def _longer(self, nodes: Tensor, words: Tensor) -> Tensor:
        """The n-grams of each context in `nodes`, shape [..., n], and the word behind it; -1 where there is none."""
        num = nodes.shape[-1]
        keys = torch.add(words.unsqueeze(-1), nodes, alpha=self._num_words)
        homes = torch.remainder(keys * self._hash_factor, self._sizes[:num])
        places = homes.unsqueeze(-1) + self._offsets[:num]
        is_here = self._keys[places] == keys.unsqueeze(-1)
        return torch.where(is_here, places, self._none).amax(-1)
