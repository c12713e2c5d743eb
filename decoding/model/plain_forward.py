"""Forwards of texts that are alone in their slots: what measurements and tests ask of a runner."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import Tensor

from superdraft.decoding.model.segments import Segment

if TYPE_CHECKING:
    from superdraft.decoding.model.runner import ModelRunner


class PlainForward:
    """Adds `prefill` and `decode` to a `ModelRunner`."""

    def prefill(
        self: "ModelRunner",
        slots: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        num_logits: Sequence[int] | None = None,
    ) -> Tensor:
        """`forward` of tokens of some texts, each alone in its slot.

        Args:
            slots: one per text.
            token_ids: the tokens to run, at least one per text.
            starts: the position of each text's first token.
            num_logits: for how many of each text's last tokens to return logits; None: one.

        Returns:
            Logits after each text's last tokens, text after text, shape [sum of `num_logits`, V].
        """
        nums = [1] * len(slots) if num_logits is None else num_logits
        parts = zip(slots, starts, token_ids, strict=True)
        segments = [Segment.plain(slot, start, len(ids)) for slot, start, ids in parts]
        return self.forward(segments, self.embed(joined(token_ids)), last_rows(token_ids, nums))

    def decode(self: "ModelRunner", embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        """`forward` of one row in each of the slots [0, B), for texts that are alone in their slots.

        Args:
            embeddings: the rows' inputs, shape [B, D].
            lengths: positions before each row.

        Returns:
            Logits, shape [B, V].
        """
        segments = [Segment.plain(slot, length, 1) for slot, length in enumerate(lengths)]
        return self.forward(segments, embeddings, range(len(lengths)))


def joined(token_ids: Sequence[Sequence[int]]) -> list[int]:
    """The tokens of all texts, one text after another."""
    return [token for ids in token_ids for token in ids]


def last_rows(token_ids: Sequence[Sequence[int]], nums: Sequence[int]) -> list[int]:
    """The rows of each text's last tokens, if all texts are run one after another."""
    ends = accumulate(map(len, token_ids))
    return [row for end, num in zip(ends, nums, strict=True) for row in range(end - num, end)]
