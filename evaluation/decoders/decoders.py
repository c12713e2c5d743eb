"""Decoders to compare: all strategies of the engine, and beam search by transformers."""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from superdraft.client import DraftsAnswer
from superdraft.decoding.engine.admission import prompt_token_ids
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.decoders.decoder_spec import Sweep

_BEAM_BATCH = 16

ScorerOf = Callable[[str], NgramScorer[Any] | None]


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to decode.

    Attributes:
        prompt: the text before the cursor.
        seed_key: source of the seed, so that results do not depend on the order of prompts.
        domain: kind of text.
        suffix: the text after the cursor, for decoders of gaps.
    """

    prompt: str
    seed_key: str
    domain: str = ""
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class DecodedDraft:
    """One draft.

    Attributes:
        text: text of the draft.
        token_ids: tokens of the draft.
        score: score that drafts are ranked by.
        token_logprobs: log-probability of each token in the step that chose it.
        exact_logprobs: log-probabilities of the text's tokens under the evaluator, given the typed text; None: not
            judged.
    """

    text: str
    token_ids: tuple[int, ...]
    score: float
    token_logprobs: tuple[float, ...]
    exact_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The drafts of one prompt, best first.

    Attributes:
        drafts: the drafts.
        forward_rows: model rows of all decode steps, without the prompt's own pass; None: unknown.
        wall_s: the prompt's share of the time to decode all prompts together, including their own passes.
    """

    drafts: tuple[DecodedDraft, ...]
    forward_rows: int | None
    wall_s: float


class Decoder(Protocol):
    """Makes drafts for many prompts together."""

    def decode(self, asks: Sequence[Ask]) -> list[Decoded]:
        """The drafts of each prompt, in order."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One decoder of a comparison.

    Attributes:
        name: name in reports.
        decoder: makes the drafts.
        settings: everything that the drafts depend on.
        num_steps: decode steps of a draft that is not cut short.
        sweep: the series that the decoder belongs to, if any.
    """

    name: str
    decoder: Decoder
    settings: Mapping[str, Any]
    num_steps: int
    sweep: Sweep | None = None


class EngineDecoder:
    """Decodes with the engine. It gets all prompts at once and runs as many together as it has slots.

    Args:
        engine: engine without other requests.
        params: parameters of each request, except the seed.
        scorer_of: returns the n-gram model for a domain; None: the language model alone.
        seed: each prompt's seed is made from this one and the prompt's key.
    """

    def __init__(self, engine: Engine, params: GenerationParams, scorer_of: ScorerOf, seed: int = 0) -> None:
        self._engine = engine
        self._params = params
        self._scorer_of = scorer_of
        self._seed = seed

    def decode(self, asks: Sequence[Ask]) -> list[Decoded]:
        """The drafts of each prompt, in order.

        Raises:
            SuperdraftError: a prompt is refused, or decoding it failed.
        """
        self._engine.forget_prompts()  # what another decoder has drafted would cost this one nothing
        started_s = time.perf_counter()
        # Prompts that run together are padded to the longest one: similar lengths go together.
        for index, ask in sorted(enumerate(asks), key=lambda entry: len(entry[1].prompt)):
            seed = zlib.crc32(f"{self._seed} {ask.seed_key}".encode())
            params = replace(self._params, seed=seed)
            self._engine.add_request(EngineRequest(str(index), ask.prompt, params, self._scorer_of(ask.domain)))
        outputs: dict[str, GenerationOutput] = {}
        while self._engine.has_unfinished:
            for step_output in self._engine.step():
                if step_output.error is not None:
                    raise step_output.error
                if step_output.output is not None:
                    outputs[step_output.request_id] = step_output.output
        wall_s = (time.perf_counter() - started_s) / max(len(asks), 1)
        return [decoded_of(outputs[str(index)], wall_s) for index in range(len(asks))]


def decoded_of(answer: GenerationOutput | DraftsAnswer, wall_s: float) -> Decoded:
    """The drafts of an engine's or a server's answer."""
    drafts = tuple(
        DecodedDraft(draft.text, draft.token_ids, draft.score, draft.token_logprobs) for draft in answer.drafts
    )
    return Decoded(drafts, answer.usage.forward_rows, wall_s)


class BeamDecoder:
    """Beam search by transformers' `generate`: k beams, all returned, k rows per step, without token healing.

    Args:
        loaded: the model.
        tokenizer: tokenizer of the model.
        params: only `num_drafts` and `max_tokens` are used.
        document_start: begin texts with the start-of-document token.
    """

    def __init__(
        self, loaded: LoadedModel, tokenizer: Tokenizer, params: GenerationParams, *, document_start: bool = True
    ) -> None:
        self._model = loaded.model
        self._tokenizer = tokenizer
        self._params = params
        self._document_start = document_start

    def decode(self, asks: Sequence[Ask]) -> list[Decoded]:
        """The drafts of each prompt, in order. The score is the mean log-probability of a draft's tokens."""
        decoded: list[Decoded] = []
        for start in range(0, len(asks), _BEAM_BATCH):
            decoded += self._decode_batch([ask.prompt for ask in asks[start : start + _BEAM_BATCH]])
        return decoded

    @torch.inference_mode()
    def _decode_batch(self, asked: Sequence[str]) -> list[Decoded]:
        started_s = time.perf_counter()
        k, max_tokens = self._params.num_drafts, self._params.max_tokens
        prompts = [prompt_token_ids(one, self._tokenizer, document_start=self._document_start) for one in asked]
        width = max(map(len, prompts))
        ends = sorted(self._tokenizer.eos_token_ids)
        padding = ends[0] if ends else 0
        answer = self._model.generate(
            torch.tensor([[padding] * (width - len(ids)) + ids for ids in prompts], device=self._model.device),
            attention_mask=torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=self._model.device
            ),
            num_beams=k,
            num_return_sequences=k,
            max_new_tokens=max_tokens,
            do_sample=False,
            suppress_tokens=list(self._tokenizer.suppressed_token_ids) or None,
            eos_token_id=ends or None,
            pad_token_id=padding,
            return_dict_in_generate=True,
            output_scores=True,
        )
        num_steps = answer.sequences.shape[1] - width
        wall_s = (time.perf_counter() - started_s) / len(asked)
        rows = zip(answer.sequences.tolist(), answer.sequences_scores.tolist(), strict=True)
        drafts = [self._draft(ids[width:], score) for ids, score in rows]
        return [Decoded(tuple(drafts[i * k : i * k + k]), k * (num_steps - 1), wall_s) for i in range(len(asked))]

    def _draft(self, token_ids: list[int], score: float) -> DecodedDraft:
        end = next((i for i, token_id in enumerate(token_ids) if token_id in self._tokenizer.eos_token_ids), None)
        kept = tuple(token_ids[:end])
        return DecodedDraft(self._tokenizer.decode(kept), kept, score, ())
