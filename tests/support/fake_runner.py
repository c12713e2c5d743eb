"""Fake model runner. Its logits depend on everything fed to a slot, so confusing two cells changes the drafts."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from support.models import VOCAB_SIZE, tiny_tokenizer
from torch import Tensor

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.model.kv_cache import CachePlan, cells_per_slot
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.text.tokenizer import Tokenizer

WIDTH = 4


class ManualClock:
    """A clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeCache:
    """Cells hold the input of a position, as bytes. Copying or reading a cell that was never written fails."""

    def __init__(self, num_slots: int, num_cells: int) -> None:
        self.plan = CachePlan(num_slots, num_cells, 1)
        self.num_copied_bytes = 0
        self.slots: list[list[bytes | None]] = [[None] * num_cells for _ in range(num_slots)]

    def copy(self, source: int, target: int, length: int) -> None:
        assert source != target
        self.copy_cells(source, range(length), target, range(length))

    def copy_cells(self, source: int, cells: Sequence[int], target: int, to: Sequence[int]) -> None:
        copied = [self.slots[source][cell] for cell in cells]
        assert None not in copied
        self.num_copied_bytes += len(copied)
        for cell, value in zip(to, copied, strict=True):
            self.slots[target][cell] = value

    def clear(self, slot: int) -> None:
        self.slots[slot] = [None] * self.plan.num_cells


class FakeRunner:
    """The part of `ModelRunner` that the engine uses. Records the number of rows and prompt tokens.

    Attributes:
        prefilled: for each forward the lengths of the segments of several tokens, or of prompts.
        decoded: for each forward the number of segments of one row in cells behind a trunk.
    """

    def __init__(self, num_slots: int = 4, max_model_len: int = 64, vocab_size: int = VOCAB_SIZE) -> None:
        self.num_slots = num_slots
        self.max_model_len = max_model_len
        self.num_cells = cells_per_slot(max_model_len)
        self.vocab_size = vocab_size
        self.device = torch.device("cpu")
        self.cache = FakeCache(num_slots, self.num_cells)
        self.prefilled: list[list[int]] = []
        self.decoded: list[int] = []
        table = np.random.default_rng(0).standard_normal((vocab_size, WIDTH)).astype(np.float32)
        self._embeddings = torch.from_numpy(table)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        return self._embeddings[list(token_ids)]

    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        assert len(embeddings) == sum(segment.count for segment in segments)
        own = [(segment.slot, segment.cell(position)) for segment in segments for position in segment.positions]
        assert len(set(own)) == len(own), "two rows have the same cell"
        self.prefilled.append([segment.count for segment in segments if not segment.path])
        self.decoded.append(sum(bool(segment.path) for segment in segments))
        for (slot, cell), row in zip(own, embeddings, strict=True):
            self.cache.slots[slot][cell] = self.as_bytes(row)
        rows = [(segment, position) for segment in segments for position in segment.positions]
        logits = [self._logits(*rows[row]) for row in kept]
        return torch.stack(logits) if logits else torch.zeros(0, self.vocab_size)

    @staticmethod
    def as_bytes(row: Tensor) -> bytes:
        # Rounded, because a blend is a sum, and the order of its terms may differ between batches.
        return np.round(row.numpy(), 3).tobytes()

    def _logits(self, segment: Segment, last: int) -> Tensor:
        fed = [self.cache.slots[segment.slot][segment.cell(position)] for position in range(last + 1)]
        assert None not in fed, "a cell was read that was never written"
        return self.logits_after(fed)

    def logits_after(self, fed: Sequence[bytes]) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(b"".join(fed), digest_size=8).digest(), "little")
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(self.vocab_size).astype(np.float32) * 3)


def fake_engine(
    *,
    num_slots: int = 4,
    max_model_len: int = 64,
    tokenizer: Tokenizer | None = None,
    **config: object,
) -> tuple[Engine, FakeRunner, ManualClock]:
    tokenizer = tokenizer or Tokenizer(tiny_tokenizer(), VOCAB_SIZE)
    runner = FakeRunner(num_slots, max_model_len, tokenizer.vocab_size)
    clock = ManualClock()
    return Engine(runner, tokenizer, EngineConfig(**({"document_start": False} | config)), clock), runner, clock
