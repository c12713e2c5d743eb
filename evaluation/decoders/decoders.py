"""Decoders to compare, and what they return."""

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from superdraft.client import DraftsAnswer
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

BACKSPACE = "\b"


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to decode.

    Attributes:
        prompt: the text before the cursor.
        seed_key: source of the seed, so that results do not depend on the order of prompts.
        suffix: the text after the cursor, for decoders of gaps.
    """

    prompt: str
    seed_key: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class DecodedDraft:
    """One draft.

    Attributes:
        text: text of the draft.
        score: score that drafts are ranked by.
        exact_logprobs: log-probabilities of the text's tokens under the evaluator, given the typed text; None: not
            judged.
    """

    text: str
    score: float
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
    """

    name: str
    decoder: Decoder
    settings: Mapping[str, Any]
    num_steps: int


class EngineDecoder:
    """Decodes with the engine. It gets all prompts at once and runs as many together as it has slots.

    Args:
        engine: engine without other requests.
        params: parameters of each request, except the seed.
        scorer: n-gram model; None: the language model alone.
        seed: each prompt's seed is made from this one and the prompt's key.
    """

    def __init__(
        self, engine: Engine, params: GenerationParams, scorer: NgramScorer[Any] | None = None, seed: int = 0
    ) -> None:
        self._engine = engine
        self._params = params
        self._scorer = scorer
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
            self._engine.add_request(EngineRequest(str(index), ask.prompt, params, self._scorer))
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
    """The drafts of an engine's or a server's answer. One that replaces text begins with a backspace per character."""
    drafts = tuple(
        DecodedDraft(BACKSPACE * (draft.replaces.characters if draft.replaces else 0) + draft.text, draft.score)
        for draft in answer.drafts
    )
    return Decoded(drafts, answer.usage.forward_rows, wall_s)
