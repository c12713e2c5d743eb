"""llama.cpp's memory without llama.cpp, and a fake runner that has its cells there."""

import pickle
from collections.abc import Sequence
from typing import Any

import torch
from support.fake_runner import FakeRunner
from torch import Tensor

from superdraft.decoding.model.kv_cache import CachePlan
from superdraft.decoding.model.llamacpp.cells import SequenceCells, groups
from superdraft.decoding.model.segments import Segment


class FakeMemory:
    """Sequences as tables from position to a value that stands for keys and values. Misuse fails."""

    def __init__(self, num_sequences: int) -> None:
        self.held: list[dict[int, Any]] = [{} for _ in range(num_sequences)]
        self.num_saved = 0

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        taken = {position: value for position, value in self.held[source].items() if start <= position < stop}
        assert not taken.keys() & self.held[target].keys(), "two values at one position of a sequence"
        assert len(taken) == stop - start, "what is not there cannot be shared"
        self.held[target] |= taken

    def remove(self, sequence: int, start: int, stop: int) -> None:
        self.held[sequence] = {at: value for at, value in self.held[sequence].items() if not start <= at < stop}

    def drop(self, sequence: int) -> None:
        self.held[sequence] = {}

    def save(self, sequence: int) -> bytes:
        self.num_saved += 1
        return pickle.dumps(self.held[sequence])

    def restore(self, sequence: int, saved: bytes) -> None:
        assert not self.held[sequence]
        self.held[sequence] = pickle.loads(saved)


class SequencedRunner(FakeRunner):
    """A fake runner with the same logits, whose cells are llama.cpp's sequences."""

    def __init__(self, num_slots: int, max_model_len: int, vocab_size: int, num_sequences: int) -> None:
        super().__init__(num_slots, max_model_len, vocab_size)
        self.memory = FakeMemory(num_sequences)
        self.cache = SequenceCells(self.memory, CachePlan(num_slots, self.num_cells, 1), num_sequences)
        self._max_texts = num_sequences // 4

    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        self.cache.begin(segments)
        inputs, logits = iter(embeddings), []
        for group in groups(segments, 16, self._max_texts):
            sequences = [self.cache.sequence_of(segment) for segment in group]
            for segment, sequence in zip(group, sequences, strict=True):
                held = self.memory.held[sequence]
                assert sorted(held) == list(range(segment.start))
                for position in segment.positions:
                    held[position] = self.as_bytes(next(inputs))
                    logits.append(self.logits_after([held[at] for at in range(position + 1)]))
                self.cache.note_run(segment, sequence)
            self.cache.end()
        return torch.stack([logits[row] for row in kept]) if len(kept) else torch.zeros(0, self.vocab_size)
