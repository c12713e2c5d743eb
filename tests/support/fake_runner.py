"""Fake model runner. Its logits depend on everything fed to a slot, so confusing two slots changes the drafts."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from support.models import VOCAB_SIZE, tiny_tokenizer
from torch import Tensor

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.model.kv_cache import CachePlan
from superdraft.decoding.text.tokenizer import Tokenizer

WIDTH = 4


class ManualClock:
    """A clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeCache:
    """Slots hold the input of each position, as bytes. Saving or using a position that was never written fails."""

    def __init__(self, num_slots: int, max_len: int, num_prefix_positions: int) -> None:
        self.plan = CachePlan(num_slots, max_len, num_prefix_positions, 1)
        self.slots: list[list[bytes | None]] = [[None] * max_len for _ in range(num_slots)]
        self.pool: list[bytes | None] = [None] * num_prefix_positions

    def move(self, source: int, target: int, length: int) -> None:
        assert source != target
        self.slots[target][:length] = self.slots[source][:length]

    def read(self, slot: int, start: int, stop: int) -> list[bytes | None]:
        return self.slots[slot][start:stop]

    def write(self, slot: int, start: int, saved: list[bytes | None], num_positions: int) -> None:
        self.slots[slot][start : start + num_positions] = saved[:num_positions]

    def clear(self, slot: int) -> None:
        self.slots[slot] = [None] * self.plan.max_len

    def load_prefix(self, slot: int, positions: list[int]) -> None:
        self.slots[slot][: len(positions)] = [self.pool[position] for position in positions]

    def save_prefix(self, slot: int, start: int, positions: list[int]) -> None:
        for offset, position in enumerate(positions):
            assert self.slots[slot][start + offset] is not None
            self.pool[position] = self.slots[slot][start + offset]


class FakeRunner:
    """The part of `ModelRunner` that the engine uses. Records the number of rows and prompt tokens."""

    def __init__(
        self,
        num_slots: int = 4,
        max_model_len: int = 64,
        num_prefix_positions: int = 200,
        vocab_size: int = VOCAB_SIZE,
    ) -> None:
        self.num_slots = num_slots
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.device = torch.device("cpu")
        self.cache = FakeCache(num_slots, max_model_len, num_prefix_positions)
        self.prefilled: list[list[int]] = []
        self.decoded: list[int] = []
        table = np.random.default_rng(0).standard_normal((vocab_size, WIDTH)).astype(np.float32)
        self._embeddings = torch.from_numpy(table)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        return self._embeddings[list(token_ids)]

    def prefill(
        self,
        slots: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        num_logits: Sequence[int] | None = None,
    ) -> Tensor:
        assert len(set(slots)) == len(slots)
        self.prefilled.append([len(ids) for ids in token_ids])
        logits = []
        for slot, ids, start, num in zip(slots, token_ids, starts, num_logits or [1] * len(slots), strict=True):
            assert 1 <= num <= len(ids)
            for offset, row in enumerate(self.embed(ids)):
                self._write(slot, start + offset, row)
            logits += [self._logits(slot, start + length) for length in range(len(ids) - num + 1, len(ids) + 1)]
        return torch.stack(logits)

    def decode(self, embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        assert len(embeddings) == len(lengths) <= self.num_slots
        self.decoded.append(len(lengths))
        for slot, (row, length) in enumerate(zip(embeddings, lengths, strict=True)):
            self._write(slot, length, row)
        return torch.stack([self._logits(slot, length + 1) for slot, length in enumerate(lengths)])

    def _write(self, slot: int, position: int, row: Tensor) -> None:
        # Rounded, because a blend is a sum, and the order of its terms may differ between batches.
        self.cache.slots[slot][position] = np.round(row.numpy(), 3).tobytes()

    def _logits(self, slot: int, length: int) -> Tensor:
        fed = self.cache.slots[slot][:length]
        assert None not in fed, "a position was read that was never written"
        seed = int.from_bytes(hashlib.blake2b(b"".join(fed), digest_size=8).digest(), "little")
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(self.vocab_size).astype(np.float32) * 3)


def fake_engine(
    *,
    num_slots: int = 4,
    max_model_len: int = 64,
    num_prefix_positions: int = 200,
    tokenizer: Tokenizer | None = None,
    **config: object,
) -> tuple[Engine, FakeRunner, ManualClock]:
    tokenizer = tokenizer or Tokenizer(tiny_tokenizer(), VOCAB_SIZE)
    runner = FakeRunner(num_slots, max_model_len, num_prefix_positions, tokenizer.vocab_size)
    clock = ManualClock()
    return Engine(runner, tokenizer, EngineConfig(**({"document_start": False} | config)), clock), runner, clock
