"""The runner for Llama-like decoders on a CPU: one forward in C++ for all families; see `decoder_spec`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from superdraft.decoding.model.decoder_spec import DecoderSpec
from superdraft.decoding.model.kv_cache import CachePlan, SlotKVCache, plan_cache
from superdraft.decoding.model.native.decoder import NativeDecoder, layer_shapes
from superdraft.decoding.model.plain_forward import PlainForward, joined, last_rows
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.progress import Stage


class NativeRunner(PlainForward):
    """Runs a decoder over the slots of a KV cache in bfloat16. The engine uses it as a `ModelRunner`.

    Args:
        spec: a decoder for which `problem_of` finds none.
        max_model_len: positions of the longest text.
        kv_memory_bytes: memory for all keys and values.
        num_slots: number of slots; None: as many as fit.
        current: is told how many bytes of weights are done.

    Raises:
        ModelLoadError: the slots do not fit in the memory.
        KernelsUnavailableError: there are no kernels for this machine.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        max_model_len: int,
        kv_memory_bytes: int,
        num_slots: int | None = None,
        *,
        current: Stage | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self.max_model_len = max_model_len
        self.vocab_size, width = spec.head.shape
        self.forward_name = "native"
        self.description = f"{len(spec.layers)} layers of {width}, {self.forward_name}"
        self._like = torch.empty(0, dtype=torch.bfloat16)
        self._shapes = layer_shapes(spec)
        plan = plan_cache(self._shapes, self._like.element_size(), kv_memory_bytes, max_model_len, num_slots)
        self.num_slots, self.num_cells = plan.num_slots, plan.num_cells
        self.cache = SlotKVCache(self._shapes, plan, self._like)
        self.decoder = NativeDecoder(spec, max_model_len, current)
        self._embedding, self._embedding_scale = spec.embedding, spec.embedding_scale

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Embeddings of N tokens, as the first layer reads them, float32, shape [N, D]."""
        found = self._embedding.numbers(token_ids)
        return found if self._embedding_scale == 1 else found.mul_(self._embedding_scale)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        """See `ModelRunner.forward`."""
        return self.decoder(embeddings, self.cache, segments, kept)

    @torch.inference_mode()
    def exact_logprobs(self, token_ids: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
        """See `ModelRunner.exact_logprobs`."""
        longest = max(len(ids) for ids in token_ids)
        plan = CachePlan(len(token_ids), longest, self.cache.plan.bytes_per_position)
        scratch = SlotKVCache(self._shapes, plan, self._like)
        segments = [Segment.plain(slot, 0, len(ids)) for slot, ids in enumerate(token_ids)]
        nums = [len(ids) - start for ids in token_ids]
        logits = self.decoder(self.embed(joined(token_ids)), scratch, segments, last_rows(token_ids, nums))
        return [torch.log_softmax(rows, dim=-1) for rows in torch.split(logits, nums)]
