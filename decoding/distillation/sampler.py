"""Samples texts from a language model, many rows in step: the corpus of a distilled n-gram model.

A row is a fixed number of tokens. Its first text begins with nothing but the start token, which is not part of the row;
when a text ends, the next one begins in the same row and sees nothing of the one before it. So every text is what the
model writes on its own, only the last of a row is cut off, and no step of any row is wasted.

Index arithmetic: at step t every row runs one input token, whose keys and values go to position t of the row's part of
the cache, and the token chosen from its logits is the row's token t. A row whose text began at step b sees positions
[b, t] and counts its position ids from b.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from superdraft.decoding.distillation.static_kv_cache import StaticKVCache
from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.text.tokenizer import Tokenizer

_READ_STEP = 64
"""The cache is read up to a multiple of this many positions: few shapes, so few graphs, and little that is masked."""
_NONE = -1

OnStep = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """How texts are sampled.

    Attributes:
        num_rows: rows that run in step.
        row_tokens: tokens of each row.
        temperature: the logits are divided by it; 0 takes the most probable token.
        top_p: tokens are drawn from the smallest set whose probability reaches this; 1: from all.

    Raises:
        ValueError: a value is out of range.
    """

    num_rows: int
    row_tokens: int
    temperature: float = 1.0
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.row_tokens < 1:
            raise ValueError(f"Rows and their tokens must be 1 or more, got {self.num_rows} x {self.row_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"The temperature must be 0 or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, got {self.top_p}.")


class TextSampler:
    """Samples rows of texts with a KV cache of fixed size.

    On a GPU the forward of a step runs as a CUDA graph: a step of a small model is hundreds of short kernels, and
    launching them one by one would take longer than they do. Everything else, `_forward` included, is the same code
    on every device; the graph only records it. (The graph has not been run where this was written: no GPU was there.)

    Args:
        model: the model, in evaluation mode.
        tokenizer: tells the start token, the tokens that end a text, and those that no text holds.
        config: rows, tokens and the choice of tokens.
        prompts: token ids of the beginnings of texts; each text begins with one of them, at random. They are part of
            the rows.

    Raises:
        UnsupportedModelError: the model keeps something else than keys and values, has no start token, or its context
            is shorter than a row.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, config: SamplerConfig, prompts: Sequence[Sequence[int]] = ()
    ) -> None:
        self._model, self._config = model, config
        text_config = model.config.get_text_config()
        context = getattr(text_config, "max_position_embeddings", None)
        if context is not None and config.row_tokens > context:
            raise UnsupportedModelError(
                f"A row of {config.row_tokens} tokens does not fit in the model's context of {context} tokens."
            )
        if tokenizer.start_token_id is None:
            raise UnsupportedModelError("The tokenizer has no token that begins a text, so nothing can be sampled.")
        self._sliding_window: int | None = getattr(text_config, "sliding_window", None)
        self._layer_types: set[str] = set(getattr(text_config, "layer_types", None) or ())
        device = model.device
        self._suppressed = torch.tensor(tokenizer.suppressed_token_ids, dtype=torch.long, device=device)
        self._ends = torch.tensor(sorted(tokenizer.eos_token_ids), dtype=torch.long, device=device)
        self._starts = _table([[tokenizer.start_token_id, *prompt] for prompt in prompts or [()]]).to(device)
        # The step reads these and the cache, and a graph remembers where they lie: they are written in place.
        self._tokens = torch.zeros(config.num_rows, dtype=torch.long, device=device)
        self._begins = torch.zeros(config.num_rows, dtype=torch.long, device=device)
        self._cache = StaticKVCache(model, config.num_rows, config.row_tokens)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @torch.inference_mode()
    def sample(self, seed: int, part: int = 0, on_step: OnStep = lambda: None) -> NDArray[np.int64]:
        """Sample the rows of one part of a corpus.

        The same seed and part give the same rows on the same machine with the same versions and number of threads: the
        random numbers are the same everywhere, but logits differ in their last digits between kernels.

        Args:
            seed: of the whole corpus, not negative.
            part: its parts have independent random numbers.
            on_step: called after every step.

        Returns:
            Token ids, shape [num_rows, row_tokens].

        Raises:
            BrokenModelError: the logits are not numbers.
        """
        num_rows, row_tokens = self._config.num_rows, self._config.row_tokens
        uniforms, picks = self._random_numbers(seed, part)
        temperatures, top_ps = [self._config.temperature] * num_rows, [self._config.top_p] * num_rows
        rows = torch.empty(num_rows, row_tokens, dtype=torch.long, device=self._tokens.device)
        pick = picks[0]
        self._tokens.copy_(self._starts[pick, 0])
        self._begins.zero_()
        for step in range(row_tokens):
            self._cache.position.fill_(step)
            logits = self._logits(min((step // _READ_STEP + 1) * _READ_STEP, row_tokens))
            if not bool(torch.isfinite(logits.amax(-1)).all()):
                raise BrokenModelError("the model's output holds values that are not numbers; try another dtype.")
            chosen = nucleus_sample(logits.float(), temperatures, top_ps, uniforms[step])
            given = self._starts[pick, (step + 1 - self._begins).clamp(max=self._starts.shape[1] - 1)]
            chosen = torch.where(given == _NONE, chosen, given)
            rows[:, step] = chosen
            ended = torch.isin(chosen, self._ends)
            pick = torch.where(ended, picks[step + 1], pick)
            self._begins.masked_fill_(ended, step + 1)
            self._tokens.copy_(torch.where(ended, self._starts[pick, 0], chosen))
            on_step()
        return rows.cpu().numpy()

    def _random_numbers(self, seed: int, part: int) -> tuple[Tensor, Tensor]:
        """For each step and row a number in [0, 1), [row_tokens, B], and the start of a text, [row_tokens + 1, B]."""
        num_rows, row_tokens = self._config.num_rows, self._config.row_tokens
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part,)))
        # 24 bits, so that a product with a float64 never rounds up to the next number.
        uniforms = torch.from_numpy(rng.random((row_tokens, num_rows), dtype=np.float32)).double()
        picks = torch.from_numpy(rng.integers(len(self._starts), size=(row_tokens + 1, num_rows)))
        return uniforms.to(self._tokens.device), picks.to(self._tokens.device)

    def _logits(self, read_length: int) -> Tensor:
        """`_forward`, as a graph where there are graphs."""
        if self._tokens.device.type != "cuda":
            return self._forward(read_length)
        if read_length not in self._graphs:
            self._graphs[read_length] = self._record(read_length)
        graph, logits = self._graphs[read_length]
        graph.replay()
        return logits

    def _record(self, read_length: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of `_forward` and the tensor that it writes its logits to."""
        # What loads on first use must not be recorded. Running a step twice is harmless: it writes the same keys and
        # values to the same position.
        self._forward(read_length)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._forward(read_length)
        return graph, logits

    def _forward(self, read_length: int) -> Tensor:
        """Logits of every row's next token, shape [B, V], `-inf` for tokens that no text holds.

        Args:
            read_length: positions of the cache that attention looks at; above the current one they are masked.
        """
        self._cache.read(read_length)
        logits: Tensor = self._model(
            input_ids=self._tokens.unsqueeze(1),
            attention_mask=self._attention_mask(read_length),
            position_ids=(self._cache.position - self._begins).unsqueeze(1),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits[:, -1].index_fill(1, self._suppressed, -torch.inf)

    def _attention_mask(self, read_length: int) -> Tensor | dict[str, Tensor]:
        """What each row may see: additive, shape [B, 1, 1, read_length], or one such mask a layer type."""
        keys = torch.arange(read_length, device=self._tokens.device)
        visible = (keys <= self._cache.position) & (keys >= self._begins.unsqueeze(1))
        full = self._additive(visible)
        if self._sliding_window is None:
            return full
        sliding = self._additive(visible & (keys > self._cache.position - self._sliding_window))
        if len(self._layer_types) > 1:
            return {"full_attention": full, "sliding_attention": sliding}
        return full if self._layer_types == {"full_attention"} else sliding

    def _additive(self, visible: Tensor) -> Tensor:
        dtype = self._model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None, None]


def _table(lists: Sequence[Sequence[int]]) -> Tensor:
    """The lists as rows of a table that ends with a column of `_NONE`."""
    width = max(len(row) for row in lists) + 1
    return torch.tensor([[*row, *[_NONE] * (width - len(row))] for row in lists])
