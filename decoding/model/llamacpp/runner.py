"""The runner for GGUF files: llama.cpp computes, with the file's own blocks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.errors import ModelLoadError, UnsupportedModelError
from superdraft.decoding.memory import free_bytes, require_memory
from superdraft.decoding.model.kv_cache import plan_cache
from superdraft.decoding.model.llamacpp.cells import SequenceCells, groups
from superdraft.decoding.model.llamacpp.context import MAX_BATCH, LlamaContext
from superdraft.decoding.model.llamacpp.gguf_file import GgufFile
from superdraft.decoding.model.llamacpp.library import LlamaModel, library
from superdraft.decoding.model.segments import Segment

MAX_DEFAULT_SLOTS = 8
"""llama.cpp writes all memory for keys and values at start, and each row looks at the entries of all slots."""

_TEXTS_SHARE = 4  # of the sequences, a quarter is for the texts of one forward pass
_ITEM_BYTES = 2  # keys and values are float16
_END = 2**31 - 1
_CHECK_TOKENS = 6
_TOLERANCE = 1e-2  # of a probability


def logits_bytes(vocab_size: int) -> int:
    """Memory of the logits of a whole batch: llama.cpp computes them, then keeps them for its caller."""
    return 2 * 4 * MAX_BATCH * vocab_size


class LlamaRunner:
    """A `ModelRunner` over llama.cpp. Embeddings and logits are on the CPU, in float32, wherever the layers run.

    When it is built, a short check feeds tokens and their embeddings, alone and as two branches of a tree, and compares
    the probabilities. A model that gets more than a token's embedding from a token, or scales one and not the other
    (Gemma 3), fails it and is refused.

    Args:
        path: the `.gguf` file.
        max_model_len: positions of the longest text; the model's context length applies if it is shorter.
        kv_memory_bytes: memory for all keys and values, those of one more text included.
        num_slots: number of slots; None: as many as fit, at most 8.
        num_threads: on the CPU.
        gpu_layers: layers that a GPU runs; None: all of them, if llama.cpp was built for a GPU.
        num_sequences: llama.cpp's sequences to use, at least 8; None: as many as it has. With fewer, drafts that are
            kept for later requests are moved to ordinary memory sooner.
        checks_memory: refuse what does not fit in the free memory. Layers on a GPU are not looked at.

    Raises:
        BrokenModelError: the file cannot be read.
        UnsupportedModelError: the model cannot be run this way.
        NotEnoughMemoryError: the file and its KV cache do not fit in the free memory.
        ModelLoadError: llama.cpp cannot be used, or the slots do not fit in the memory.
    """

    def __init__(
        self,
        path: Path,
        max_model_len: int,
        kv_memory_bytes: int,
        num_slots: int | None = None,
        *,
        num_threads: int,
        gpu_layers: int | None = None,
        num_sequences: int | None = None,
        checks_memory: bool = True,
    ) -> None:
        self.device = torch.device("cpu")
        free = free_bytes()  # before the file is mapped
        if checks_memory:
            self._check_memory(path, 0, free)
        self._model = LlamaModel(path, gpu_layers)
        self.vocab_size = self._model.vocab_size
        self._file = GgufFile(path, (self.vocab_size, self._model.width))
        self.max_model_len = min(max_model_len, self._model.context_length or max_model_len)
        plan = plan_cache(
            self._file.layer_shapes(),
            _ITEM_BYTES,
            kv_memory_bytes,
            self.max_model_len,
            num_slots,
            max_slots=MAX_DEFAULT_SLOTS,
            num_extra_cells=self.max_model_len,
        )
        self.num_slots, self.num_cells = plan.num_slots, plan.num_cells
        num_sequences = num_sequences or int(library().llama_max_parallel_sequences())
        self._max_texts = num_sequences // _TEXTS_SHARE
        num_entries = self.num_slots * self.num_cells + self.max_model_len
        if checks_memory:
            needed = num_entries * plan.bytes_per_position + logits_bytes(self.vocab_size)
            self._check_memory(path, needed, free)
        try:
            self._context = LlamaContext(self._model, num_entries, num_sequences, num_threads)
        except MemoryError as error:
            raise ModelLoadError(f"{error} Lower num_slots or max_model_len.") from error
        self.cache = SequenceCells(self._context, plan, num_sequences)
        self._self_check(path.name)

    def _check_memory(self, path: Path, cache_bytes: int, free: int | None) -> None:
        """Refuse a file that does not fit with its keys and values, unless a GPU may hold them.

        Raises:
            NotEnoughMemoryError: it does not.
        """
        if library().llama_supports_gpu_offload():
            return
        what = f"{path.name} with a KV cache of {self.num_slots} slots" if cache_bytes else path.name
        remedies = "Lower --kv-memory, or take a smaller file or model (`superdraft models list`)."
        require_memory(path.stat().st_size + cache_bytes, what, remedies, free=free)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Embeddings of N tokens, shape [N, D]."""
        if not token_ids:
            return torch.empty(0, self._model.width)
        return torch.from_numpy(self._file.embeddings(token_ids))

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        """Run rows of some texts and write their keys and values into the rows' own cells; see `ModelRunner`."""
        # What is not a number must not get into the pool, which all texts share.
        are_numbers = embeddings.isfinite().all(dim=-1)
        inputs = embeddings.masked_fill(~are_numbers.unsqueeze(-1), 0).float().numpy()
        places = {row: place for place, row in enumerate(sorted(set(kept)))}
        found: list[np.ndarray] = [np.empty((0, self.vocab_size), dtype=np.float32)]
        self.cache.begin(segments)
        start = 0
        try:
            for group in groups(segments, MAX_BATCH, self._max_texts):
                stop = start + sum(segment.count for segment in group)
                own = [self.cache.sequence_of(segment) for segment in group]
                sequences = [one for one, segment in zip(own, group, strict=True) for _ in segment.positions]
                positions = [position for segment in group for position in segment.positions]
                wanted = [row - start for row in places if start <= row < stop]
                found.append(self._context.run(inputs[start:stop], positions, sequences, wanted))
                for segment, sequence in zip(group, own, strict=True):
                    self.cache.note_run(segment, sequence)
                self.cache.end()
                start = stop
        except BaseException:
            self.cache.end(failed=True)
            raise
        logits = torch.from_numpy(np.concatenate(found))[[places[row] for row in kept]]
        logits[~are_numbers[list(kept)]] = torch.nan
        return logits

    @torch.inference_mode()
    def exact_logprobs(self, token_ids: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
        """The exact next-token log-probabilities along whole token sequences; see `ModelRunner`.

        What a sequence has in common with the one before it is not run again.
        """
        answers: list[Tensor] = []
        before: Sequence[int] = ()
        rows = torch.empty(0, self.vocab_size)
        sequence = self.cache.borrow()
        try:
            for ids in token_ids:
                pairs = enumerate(zip(before, ids, strict=False))
                shared = next((at for at, (one, other) in pairs if one != other), min(len(before), len(ids)))
                self._context.remove(sequence, shared, _END)
                parts = [rows[: max(0, shared - start)]]
                for begin in range(shared, len(ids), MAX_BATCH):
                    part = np.array(ids[begin : begin + MAX_BATCH], dtype=np.int32)
                    positions = list(range(begin, begin + len(part)))
                    wanted = [row for row, position in enumerate(positions) if position >= start]
                    found = self._context.run(part, positions, [sequence] * len(part), wanted)
                    parts.append(torch.log_softmax(torch.from_numpy(found), dim=-1))
                rows, before = torch.cat(parts), ids
                answers.append(rows)
        finally:
            self.cache.give_back(sequence)
        return answers

    def _self_check(self, name: str) -> None:
        """Compare embeddings and two branches of a tree with plain tokens.

        Raises:
            UnsupportedModelError: the model cannot be run this way, or gives other probabilities.
        """
        count = min(_CHECK_TOKENS, self.max_model_len)
        ids = [(7 * i + 1) % min(self.vocab_size, 100) for i in range(count)]
        refusal = f"llama.cpp cannot run {name} ({self._model.architecture})"
        try:
            wanted = self.exact_logprobs([ids], count - 1)[0]
            if count > 1:
                self.forward([Segment.plain(0, 0, count - 1)], self.embed(ids[:-1]), [])
            rows = [Segment(0, count - 1, 1, count - 1, (cell,)) for cell in (count - 1, count)]
            got = torch.log_softmax(self.forward(rows, self.embed(ids[-1:] * 2), [0, 1]), dim=-1)
        except RuntimeError as error:
            raise UnsupportedModelError(f"{refusal}: {error}") from error
        self.cache.clear(0)
        difference = float((got.exp() - wanted.exp()).abs().max())
        if not difference <= _TOLERANCE:
            raise UnsupportedModelError(
                f"{refusal}: token embeddings do not stand for tokens in it (probabilities differ by {difference:.3g}, "
                f"allowed {_TOLERANCE}). Models that scale embeddings inside are of this kind. --runner torch may."
            )
