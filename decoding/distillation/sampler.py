"""Corpus sampler: rows of texts that a language model writes, for an n-gram model distilled from it.

A row has a fixed number of tokens. Its first text begins right after the start token, which is not part of the row.
When a text ends, the next one begins in the same row and sees nothing of the one before. The last text of a row is cut
off. Each text is one request to the engine, with the strategy "sample". All rows of a part run together, one token per
engine step, so no step waits for a few long texts.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.model.kv_cache import cells_per_slot
from superdraft.decoding.model.transformers_cache import probe_layer_shapes
from superdraft.decoding.outputs import StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

_MAX_PREFILL_TOKENS = 4096
"""Many prompts run in one step, so that the rows of a part begin together."""
_NUMBERS_PER_TENSOR = 16

OnTokens = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """Shape of a part and choice of tokens.

    Attributes:
        num_rows: rows of a part, which run together.
        row_tokens: tokens per row, at least 2.
        temperature: 0 to 2; the logits are divided by it, and 0 takes the most probable token.
        top_p: above 0, at most 1; tokens are drawn from the smallest set that has this probability.
    """

    num_rows: int
    row_tokens: int
    temperature: float = 1.0
    top_p: float = 0.95


@dataclass(slots=True)
class _Row:
    """One row so far.

    Attributes:
        seeds: source of the seeds of its texts.
        token_ids: its prompts and finished texts, including the tokens that end a text.
    """

    seeds: np.random.SeedSequence
    token_ids: list[int] = field(default_factory=list)


class TextSampler:
    """Samples rows of texts with an engine of its own.

    Args:
        loaded: the model and its tokenizer.
        config: shape of a part and choice of tokens.
        prompts: token ids of beginnings of texts. Each text begins with one of them, drawn at random, which is part of
            its row. If there are none, texts begin with their first sampled token.

    Raises:
        UnsupportedModelError: the engine cannot run the model, the model has no start token, or its context is too
            short for a row.
        InvalidRequestError: the temperature or top-p is out of range.
    """

    def __init__(self, loaded: LoadedModel, config: SamplerConfig, prompts: Sequence[Sequence[int]] = ()) -> None:
        self._config, self._prompts = config, prompts or [()]
        self._params = GenerationParams(
            strategy="sample", num_drafts=1, temperature=config.temperature, top_p=config.top_p
        )
        max_len = config.row_tokens + 1
        context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and max_len > context:
            raise UnsupportedModelError(
                f"A row of {config.row_tokens} tokens and its start token do not fit in the model's context of "
                f"{context} tokens."
            )
        numbers_per_position = sum(shape.num_numbers for shape in probe_layer_shapes(loaded.model))
        row_bytes = cells_per_slot(max_len) * numbers_per_position * loaded.model.dtype.itemsize
        self._engine = build_engine(
            loaded,
            EngineConfig(
                max_model_len=max_len,
                num_slots=config.num_rows,
                kv_memory_bytes=config.num_rows * row_bytes,
                max_prefill_tokens=_MAX_PREFILL_TOKENS,
                max_tokens=config.row_tokens,
            ),
        )
        tokenizer = self._engine.tokenizer
        if tokenizer.start_token_id is None:
            raise UnsupportedModelError("The tokenizer has no token that begins a text, so nothing can be sampled.")
        self._start_token_id = tokenizer.start_token_id
        # The engine does not report which token ended a text. An n-gram model treats all of them alike.
        own: int | None = tokenizer.hf_tokenizer.eos_token_id
        self._end_token_id = min(tokenizer.eos_token_ids, default=-1) if own is None else own

    def sample(self, seed: int, part: int = 0, on_tokens: OnTokens = lambda _: None) -> NDArray[np.int64]:
        """Sample the rows of one part of a corpus.

        The same seed and part give the same rows on the same machine with the same versions and number of threads. The
        random numbers are the same everywhere: those of a text depend only on the seed, the part, the row, and how many
        texts precede it in the row. But the last digits of logits differ between kernels.

        Args:
            seed: seed of the whole corpus, not negative.
            part: parts have independent random numbers.
            on_tokens: called after every step with the number of new tokens.

        Returns:
            Token ids, shape [num_rows, row_tokens].

        Raises:
            BrokenModelError: the logits are not numbers.
        """
        engine = self._engine
        engine.forget_prompts()  # rows must not depend on the parts before, which differ when a run is resumed
        rows = [_Row(seeds) for seeds in np.random.SeedSequence(seed, spawn_key=(part,)).spawn(self._config.num_rows)]
        for index, row in enumerate(rows):
            self._begin_text(index, row)
        num_tokens = 0
        while engine.has_unfinished:
            for output in engine.step():
                index = int(output.request_id)
                self._end_text(rows[index], output)
                self._begin_text(index, rows[index])
            num_new = engine.last_step.num_rows + len(engine.last_step.first_draft_s)
            num_tokens += num_new
            on_tokens(num_new)
        on_tokens(len(rows) * self._config.row_tokens - num_tokens)  # prompts
        return np.array([row.token_ids for row in rows], dtype=np.int64)

    def _begin_text(self, index: int, row: _Row) -> None:
        """Draw a prompt and let the engine continue it, as far as the row has room."""
        rng = np.random.default_rng(row.seeds.spawn(1)[0])
        prompt = self._prompts[int(rng.integers(len(self._prompts)))]
        row.token_ids += prompt[: self._config.row_tokens - len(row.token_ids)]
        room = self._config.row_tokens - len(row.token_ids)
        if room:
            params = replace(self._params, max_tokens=room, seed=int(rng.integers(2**63)))
            self._engine.add_request(EngineRequest(str(index), (self._start_token_id, *prompt), params))

    def _end_text(self, row: _Row, ended: StepOutput) -> None:
        """Add what the engine wrote to the row."""
        if ended.error is not None:
            raise ended.error.__cause__ or BrokenModelError(
                "the model's output holds values that are not numbers; try another dtype."
            )
        assert ended.output is not None
        (draft,) = ended.output.drafts
        row.token_ids += draft.token_ids
        if draft.finish_reason == "stop":
            row.token_ids.append(self._end_token_id)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of the name, shape and first numbers of every weight.

    It tells two models apart without reading all of their weights. Training changes all tensors of a model, so a
    fine-tuned model has another fingerprint. A change of a single number may go unnoticed.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        numbers = weight.detach().flatten()[:_NUMBERS_PER_TENSOR].float().tolist()
        digest.update(json.dumps([name, list(weight.shape), numbers]).encode())
    return digest.hexdigest()
