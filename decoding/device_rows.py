"""The drafts of running branches as a device holds them, so that a decode step can follow the one before it at once.

Row r belongs to slot r. What the host has to say of a row is one line of a float64 matrix (integers up to 2^53 are
exact in it), so however many rows it says something of, that is one copy to the device.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class RowKind(IntEnum):
    """Who chooses a row's next tokens, and by which rule."""

    HOST = 0
    """`choosing.TokenChooser`, with all rules; the device only runs the forward."""
    SUPERPOSED = 1
    """The device: the k best children of all drafts (`draft_set.advance`)."""
    OWN = 2
    """The device: each draft's own best child (`draft_set.advance_distinct`, once all places are taken)."""
    SAMPLED = 3
    """The device: one draft; the nucleus, or with temperature 0 the most probable token."""


class Column(IntEnum):
    """Where a row's numbers stand in its line; `tokens` and `scores` of its drafts follow."""

    LENGTH = 0
    KIND = 1
    ALPHA = 2
    TAU = 3
    PENALTY = 4
    NUM_DRAFTS = 5
    NUM_CANDIDATES = 6
    TEMPERATURE = 7
    TOP_P = 8


NUM_COLUMNS = len(Column)


class DraftRows:
    """The lines of all rows, and where each draft is in the n-gram model.

    Args:
        num_rows: S, rows that can run at once.
        max_drafts: K, places for drafts in each.
        device: where they lie.

    Attributes:
        lines: shape [S, NUM_COLUMNS + 2 K], float64. A place without a draft has token 0 and score `-inf`.
        uniforms: a random number in [0, 1) for each row that is sampled, shape [S], float64.
        nodes: each draft's n-gram state, see `ngram_tables`; shape [S, K, order - 1]; None without an n-gram model.
    """

    def __init__(self, num_rows: int, max_drafts: int, device: torch.device) -> None:
        self.max_drafts = max_drafts
        self.lines = torch.zeros(num_rows, NUM_COLUMNS + 2 * max_drafts, dtype=torch.float64, device=device)
        self.uniforms = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self.nodes: Tensor | None = None

    def place_ngram(self, order: int) -> None:
        """Make room for the states of an n-gram model of this order."""
        shape = (len(self.lines), self.max_drafts, order - 1)
        self.nodes = torch.full(shape, -1, dtype=torch.long, device=self.lines.device)

    def column(self, column: Column, num_rows: int) -> Tensor:
        """A view of one number of the first rows, shape [B, 1]."""
        return self.lines[:num_rows, column : column + 1]

    def tokens(self, num_rows: int, num_drafts: int) -> Tensor:
        """A view of the last token of each draft, shape [B, k]."""
        return self.lines[:num_rows, NUM_COLUMNS : NUM_COLUMNS + num_drafts]

    def scores(self, num_rows: int, num_drafts: int) -> Tensor:
        """A view of the log-score of each draft, shape [B, k]."""
        start = NUM_COLUMNS + self.max_drafts
        return self.lines[:num_rows, start : start + num_drafts]

    def line(self, columns: dict[Column, float], tokens: Sequence[int], scores: Sequence[float]) -> list[float]:
        """A row's line as the host writes it; `tokens` and `scores` have an entry a draft, at most K."""
        free = self.max_drafts - len(tokens)
        return [*(columns[column] for column in Column), *tokens, *[0] * free, *scores, *[float("-inf")] * free]

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for tensor in (self.lines, self.uniforms, self.nodes):
            if tensor is not None:
                tensor[target].copy_(tensor[source])
