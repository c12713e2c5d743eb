"""A llama.cpp context: one pool of keys and values for all sequences, and the forward pass."""

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.model.llamacpp.library import LlamaModel, last_errors, library

MAX_BATCH = 256
"""Rows of one forward pass."""

_GRANULE = 256  # llama.cpp rounds the number of entries up to a multiple


class LlamaContext:
    """The `Memory` of a model, and its forward pass. Keys and values are float16.

    Args:
        model: the model.
        num_entries: positions that all sequences together can hold.
        num_sequences: how many sequences there are.
        num_threads: on the CPU.

    Raises:
        MemoryError: there is not enough memory.
    """

    def __init__(self, model: LlamaModel, num_entries: int, num_sequences: int, num_threads: int) -> None:
        lib = library()
        options = lib.llama_context_default_params()
        options.n_ctx = -(-num_entries // _GRANULE) * _GRANULE
        options.n_batch = options.n_ubatch = MAX_BATCH
        options.n_seq_max = num_sequences
        options.n_threads = options.n_threads_batch = num_threads
        options.kv_unified = True
        # Entries that a row does not see, those of other texts, are skipped instead of being multiplied by zero.
        options.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        last_errors()
        self._context = lib.llama_init_from_model(model.pointer, options)
        if not self._context:
            raise MemoryError(f"llama.cpp cannot hold {num_entries} positions: {last_errors()}")
        weakref.finalize(self, lib.llama_free, self._context)
        self._memory = lib.llama_get_memory(self._context)
        self._model = model  # freed after the context
        self._positions = np.zeros(MAX_BATCH, dtype=np.int32)
        self._sequences = np.zeros(MAX_BATCH, dtype=np.int32)
        self._counts = np.ones(MAX_BATCH, dtype=np.int32)
        self._is_wanted = np.zeros(MAX_BATCH, dtype=np.int8)
        pointer, first = ctypes.POINTER(ctypes.c_int32), self._sequences.ctypes.data
        self._sequence_pointers = (pointer * MAX_BATCH)(
            *(ctypes.cast(first + row * self._sequences.itemsize, pointer) for row in range(MAX_BATCH))
        )

    def run(
        self,
        inputs: NDArray[np.float32] | NDArray[np.int32],
        positions: list[int],
        sequences: list[int],
        wanted: list[int],
    ) -> NDArray[np.float32]:
        """Run rows. A row sees what its sequence holds, and the rows of it that come before.

        Args:
            inputs: N embeddings [N, D], or N token ids [N].
            positions: of the rows, each one more than the last of its sequence.
            sequences: of the rows.
            wanted: rows whose logits to return, ascending.

        Returns:
            Logits, shape [len(wanted), V].

        Raises:
            RuntimeError: the rows could not be run.
        """
        lib, count = library(), len(inputs)
        assert 0 < count <= MAX_BATCH
        rows: NDArray[Any] = np.ascontiguousarray(inputs)
        self._positions[:count], self._sequences[:count] = positions, sequences
        self._is_wanted[:count] = 0
        self._is_wanted[wanted] = 1
        batch = lib.llama_batch()
        batch.n_tokens = count
        if rows.ndim == 1:
            batch.token = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        else:
            batch.embd = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = self._sequence_pointers
        batch.logits = self._is_wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        last_errors()
        code = lib.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not run {count} rows (code {code}): {last_errors()}")
        shape = len(wanted), self._model.vocab_size
        if not wanted:
            return np.empty(shape, dtype=np.float32)
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), shape).copy()

    # Memory

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Add what a sequence holds at these positions to another."""
        library().llama_memory_seq_cp(self._memory, source, target, start, stop)

    def remove(self, sequence: int, start: int, stop: int) -> None:
        """Take these positions from a sequence."""
        library().llama_memory_seq_rm(self._memory, sequence, start, stop)

    def drop(self, sequence: int) -> None:
        """Take everything from a sequence."""
        library().llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def save(self, sequence: int) -> bytes:
        """A copy of all that a sequence holds."""
        lib = library()
        size = lib.llama_state_seq_get_size(self._context, sequence)
        data = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self._context, data, size, sequence)
        return bytes(memoryview(data)[:written])

    def restore(self, sequence: int, saved: bytes) -> None:
        """Put a saved copy into an empty sequence.

        Raises:
            RuntimeError: there is no room.
        """
        data = (ctypes.c_uint8 * len(saved)).from_buffer_copy(saved)
        last_errors()
        if library().llama_state_seq_set_data(self._context, data, len(saved), sequence) == 0:
            raise RuntimeError(f"llama.cpp could not take back what it had saved: {last_errors()}")
