"""The runner for transformers' models: all forward passes, for prompts, superposed decode steps and verification."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.grid_forward import GridForward
from superdraft.decoding.model.kv_cache import CachePlan, SlotKVCache, plan_cache
from superdraft.decoding.model.linear import Conversion, convert_modules, release_weights
from superdraft.decoding.model.plain_forward import PlainForward, joined, last_rows
from superdraft.decoding.model.segments import Segment, to_device
from superdraft.decoding.model.transformers_cache import probe_layer_shapes

SELF_CHECK_TOKENS = 6


class TorchRunner(PlainForward):
    """Runs a transformers causal LM over the slots of a KV cache.

    Any architecture works that takes `inputs_embeds`, a `Cache`, a 4-D attention mask and position ids. When the runner
    is built, a short check compares it with the plain, uncached model; a model that fails the check is refused.

    The engine uses it as a `ModelRunner`. `prefill` and `decode` are short for a forward of texts that are alone in
    their slots; measurements use them.

    Args:
        model: the model, in evaluation mode.
        max_model_len: positions of the longest text.
        kv_memory_bytes: memory for all keys and values.
        num_slots: number of slots; None: as many as fit.
        convert: converts the linear layers to another weight format, after the check; None: they stay dense.

    Raises:
        UnsupportedModelError: the model cannot be run this way.
        ModelLoadError: the slots do not fit in the memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_model_len: int,
        kv_memory_bytes: int,
        num_slots: int | None = None,
        *,
        convert: Conversion | None = None,
    ) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.max_model_len = max_model_len
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.embedding: nn.Module = model.get_input_embeddings()
        with torch.inference_mode():
            like = self.embedding(torch.zeros(1, dtype=torch.long, device=self.device))
        is_known = FusedDecoder.supports(model)
        self._shapes = FusedDecoder.layer_shapes(model) if is_known else probe_layer_shapes(model)
        plan = plan_cache(self._shapes, like.element_size(), kv_memory_bytes, max_model_len, num_slots)
        self.num_slots, self.num_cells = plan.num_slots, plan.num_cells
        self.cache = SlotKVCache(self._shapes, plan, like)
        # In float32 transformers' own forward is used: it is the reference for everything else.
        self._fused = FusedDecoder(model) if model.dtype != torch.float32 and is_known else None
        self._forward = GridForward(model, self._fused)
        self._is_converted = False
        self._self_check()
        if convert is not None:
            self._convert(convert)

    @property
    def forward_name(self) -> str:
        """Which forward runs, "fused" or "transformers", with the type of the weights."""
        weights = "converted" if self._is_converted else str(self.model.dtype).removeprefix("torch.")
        return f"{'transformers' if self._fused is None else 'fused'}, {weights}"

    @property
    def description(self) -> str:
        """What is run and how, for people and for what is remembered."""
        config = self.model.config.get_text_config()
        return f"{config.num_hidden_layers} layers of {config.hidden_size}, {self.forward_name}"

    def _convert(self, convert: Conversion) -> None:
        """Convert the linear layers. The dense weights go."""
        if self._fused is None:
            convert_modules(self.model, self.model.get_output_embeddings(), convert)
        else:
            self._fused.convert(convert)
            release_weights(self.model, self.embedding)
        self._is_converted = True

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Embeddings of N tokens, as the model's embedding module returns them, shape [N, D]."""
        embeddings: Tensor = self.embedding(to_device(token_ids, self.device))
        return embeddings

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        """Run rows of some texts and write their keys and values into the rows' own cells.

        Args:
            segments: S chains of rows. A row sees the positions of its own text up to itself.
            embeddings: the inputs of all N rows, segment after segment, shape [N, D].
            kept: rows whose logits to return.

        Returns:
            Logits, shape [len(kept), V].
        """
        return self._forward(embeddings, self.cache, segments, kept)

    @torch.inference_mode()
    def exact_logprobs(self, token_ids: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
        """The exact next-token log-probabilities along whole token sequences, without cache or superposition.

        Args:
            token_ids: R sequences, none empty.
            start: the first position to return; earlier tokens are only context.

        Returns:
            For each sequence of length T the log-softmax after its tokens from `start` on, shape [T - start, V],
            float32.
        """
        if self._fused is None or not self._is_converted:
            return logprobs_of_model(self.model, token_ids, start)
        # The module's own weights are gone.
        longest = max(len(ids) for ids in token_ids)
        plan = CachePlan(len(token_ids), longest, self.cache.plan.bytes_per_position)
        scratch = SlotKVCache(self._shapes, plan, self.cache.layers[0].keys)
        segments = [Segment.plain(slot, 0, len(ids)) for slot, ids in enumerate(token_ids)]
        nums = [len(ids) - start for ids in token_ids]
        logits = self._forward(self.embed(joined(token_ids)), scratch, segments, last_rows(token_ids, nums))
        return [torch.log_softmax(rows.float(), dim=-1) for rows in torch.split(logits, nums)]

    def _self_check(self) -> None:
        """Compare trees, masks and embeddings with the plain model, on a few tokens and two texts of different lengths.

        Raises:
            UnsupportedModelError: the model cannot be run this way, or gives other probabilities.
        """
        count = min(SELF_CHECK_TOKENS, self.max_model_len)
        ids = [(7 * i + 1) % min(self.vocab_size, 100) for i in range(count)]
        try:
            expected = self.exact_logprobs([ids, ids[1:]])
            texts = [ids, ids[1:]][: self.num_slots]
            # The last token of each text, once in its place and once in a cell behind another branch of the tree.
            prompts = [Segment.plain(slot, 0, len(text) - 1) for slot, text in enumerate(texts)]
            self.forward(prompts, self.embed([token for text in texts for token in text[:-1]]), [])
            rows = [
                Segment(slot, len(text) - 1, 1, len(text) - 1, (len(text) - 1 + twin,))
                for slot, text in enumerate(texts)
                for twin in range(2)
            ]
            last = self.embed([ids[-1]] * len(rows))
            got = torch.log_softmax(self.forward(rows, last, range(len(rows))).float(), dim=-1)
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be run with embeddings as input and a KV cache in slots: {error}"
            ) from error
        wanted = torch.stack([logprobs[-1] for logprobs in expected[: len(texts)] for _ in range(2)])
        # bfloat16: rounding alone moved a probability of the default model by 0.048.
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.15
        difference = float((got.exp() - wanted.exp()).abs().max())
        if not difference <= tolerance:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} gives different probabilities when run with embeddings as input and a KV "
                f"cache in slots (largest difference {difference:.3g}, allowed {tolerance}), so Superposed Decoding "
                "would be wrong with it. Use another model."
            )


def logprobs_of_model(model: PreTrainedModel, token_ids: Sequence[Sequence[int]], start: int) -> list[Tensor]:
    """`TorchRunner.exact_logprobs` by the model itself."""
    # Padding on the right: under a causal mask it cannot influence the real tokens before it.
    longest = max(len(ids) for ids in token_ids)
    rows = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in token_ids]
    # Logits of every prompt token would be the largest tensor of all, so they are not computed.
    can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": longest - start} if can_keep else {}
    logits = model(input_ids=to_device(rows, model.device), use_cache=False, **keep).logits
    logits = logits[:, start - longest :]
    return [torch.log_softmax(logits[row, : len(ids) - start].float(), dim=-1) for row, ids in enumerate(token_ids)]
