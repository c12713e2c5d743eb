"""Model runners: what the engine asks of a model and of the memory for its keys and values.

The engine decides which text is in which cells; a runner computes. `torch_runner` runs transformers' models,
`llamacpp.runner` GGUF files. `tests/parity/test_runner_conformance.py` holds every runner to what is said here.

Letters: D embedding width, V vocabulary size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from superdraft.decoding.model.kv_cache import CachePlan
from superdraft.decoding.model.segments import Segment


class CellStore(Protocol):
    """The cells of all slots: keys and values of one position each.

    A cell keeps what was last written or copied into it. There are two exceptions: a `forward` into cell 0 begins a new
    text, and `copy` replaces the whole slot; what other cells of that slot held may then be lost.
    """

    @property
    def plan(self) -> CachePlan:
        """Sizes: slots, cells per slot, bytes per cell."""

    @property
    def num_copied_bytes(self) -> int:
        """Bytes of keys and values moved so far from one place to another; sharing them moves none."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make cells [0, `length`) of slot `target` hold what those of another slot `source` hold.

        Later changes of either slot do not show in the other.
        """

    def copy_cells(self, source: int, cells: Sequence[int], target: int, to: Sequence[int]) -> None:
        """Make the cells `to` of a slot hold what `cells`, of one text in a slot, perhaps the same one, hold.

        A copy has the position in its text that the original has. All are read before any is written.
        """

    def clear(self, slot: int) -> None:
        """Drop what a slot holds. Values in it that are not numbers reach no row that is run afterwards."""


class ModelRunner(Protocol):
    """Runs a model over token trees in slots. Belongs to one thread.

    A row is one position of one text: an embedding goes in, keys and values of all layers are written to the row's own
    cell, and logits come out if they are wanted. Which cells a row sees is said by its `Segment`.
    """

    @property
    def device(self) -> torch.device:
        """Where embeddings and logits are."""

    @property
    def max_model_len(self) -> int:
        """Positions of the longest text."""

    @property
    def num_slots(self) -> int:
        """Slots, that is, token trees that can be held at once."""

    @property
    def num_cells(self) -> int:
        """Cells of each slot, more than `max_model_len`."""

    @property
    def cache(self) -> CellStore:
        """The cells of all slots."""

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Embeddings of N tokens, to feed or to superpose, shape [N, D]; any N, also 0.

        Feeding one is feeding the token. Not always rows of the embedding matrix: some models scale them.
        """

    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        """Run rows of some texts and write their keys and values into the rows' own cells.

        Args:
            segments: S chains of rows. A row sees the cells of its own text at the positions up to its own, whatever
                else the slot holds, and nothing that another segment of this call writes. All cells that it sees have
                been written; no two rows have the same own cell.
            embeddings: the inputs of all N rows, segment after segment, shape [N, D].
            kept: rows whose logits to return, in this order.

        Returns:
            Logits, shape [len(kept), V]. Those of a row whose input holds values that are not numbers hold such values
            too; rows of other slots are not affected.

        Raises:
            Exception: the model could not be run. What the rows' own cells hold is then unknown; all others are as
                they were.
        """

    def exact_logprobs(self, token_ids: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
        """The exact next-token log-probabilities along whole token sequences. No slot is read or changed.

        Args:
            token_ids: R sequences, none empty and none longer than `max_model_len`.
            start: the first position to return; earlier tokens are only context.

        Returns:
            For each sequence of length T the log-softmax (natural log) after its tokens from `start` on, shape
            [T - start, V], float32.
        """
