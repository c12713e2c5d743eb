"""The models of an evaluation: the drafting model with its engine, the n-gram models, and who judges."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from superdraft.decoding.admission import prompt_token_ids
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine_builder import build_engine
from superdraft.decoding.model_loader import LoadedModel, load_model
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.tokenizer import Tokenizer
from superdraft.evaluation.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders import BeamDecoder, Decoder, EngineDecoder
from superdraft.evaluation.evaluator import Evaluator
from superdraft.evaluation.ngram_choice import NgramModels

NUM_SLOTS = 64
_KV_MEMORY_BYTES = 3 * 1024**3
_MAX_PREFILL_TOKENS = 1024
# A text that is typed word by word may have a few tokens more than in one piece.
_SPARE_TOKENS = 32
# An evaluator's tokenizer may cut the same draft into more tokens.
_MAX_TOKEN_RATIO = 8


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which language models take part; names, dtype and device as in the server's settings.

    Attributes:
        model: drafts.
        dtype: of its weights.
        device: where it runs.
        evaluator: judges the drafts; None: the drafting model does.
    """

    model: str
    dtype: str
    device: str
    evaluator: str | None = None


class Workbench:
    """Everything that is needed to decode some texts and to judge the drafts.

    Args:
        choice: the language models.
        texts: all that will be decoded; slots are made as long as the longest needs.
        specs: the decoders that will be asked for.
        seed: of the sampling decoders.
        domains: of the texts, for n-gram models named after them.
    """

    def __init__(
        self,
        choice: ModelChoice,
        texts: Sequence[str],
        specs: Sequence[DecoderSpec],
        *,
        seed: int = 0,
        domains: Sequence[str] = (),
    ) -> None:
        self.choice = choice
        self.loaded: LoadedModel = load_model(choice.model, dtype=choice.dtype, device=choice.device)
        tokenizer = Tokenizer(self.loaded.tokenizer)
        self.ngram_models = NgramModels(choice.model, tokenizer, domains)
        self._seed = seed
        self._texts = texts
        params = [self.params(spec) for spec in specs]
        self._max_tokens = max(one.max_tokens for one in params)
        self._max_len = _longest(texts, tokenizer) + self._max_tokens + _SPARE_TOKENS
        self.engine = build_engine(
            self.loaded,
            EngineConfig(
                max_model_len=self._max_len,
                kv_memory_bytes=_KV_MEMORY_BYTES,
                num_slots=max(NUM_SLOTS, *(one.num_rows for one in params)),
                max_prefill_tokens=max(_MAX_PREFILL_TOKENS, self._max_len),
                max_num_drafts=max(one.num_drafts for one in params),
                max_candidates_per_draft=max(one.num_candidates for one in params),
                max_tokens=self._max_tokens,
            ),
        )

    def params(self, spec: DecoderSpec) -> GenerationParams:
        """A decoder's parameters, those filled in that were tuned for its n-gram model."""
        return spec.params(self.ngram_models.tuned(spec.ngram))

    def decoder(self, spec: DecoderSpec) -> Decoder:
        """The decoder itself."""
        if spec.kind == "beam":
            return BeamDecoder(self.loaded, self.engine.tokenizer, self.params(spec))
        return EngineDecoder(
            self.engine, self.params(spec), lambda domain: self.ngram_models.scorer(spec.ngram, domain), self._seed
        )

    def settings(self, spec: DecoderSpec) -> dict[str, Any]:
        """All that a decoder's drafts depend on."""
        return {
            "model": self.loaded.name,
            "dtype": self.choice.dtype,
            "kind": spec.kind,
            "ngram": spec.ngram,
            "ngram_binaries": self.ngram_models.identity(spec.ngram),
            "seed": self._seed,
            "params": asdict(self.params(spec)),
        }

    def open_evaluator(self) -> Evaluator:
        """Whoever judges the drafts."""
        if self.choice.evaluator is None:
            return Evaluator(self.loaded, self._max_len, same_tokenizer=True)
        judge = load_model(self.choice.evaluator, dtype=self.choice.dtype, device=self.choice.device)
        if judge.tokenizer.get_vocab() == self.loaded.tokenizer.get_vocab():
            return Evaluator(judge, self._max_len, same_tokenizer=True)
        longest = _longest(self._texts, Tokenizer(judge.tokenizer))
        return Evaluator(judge, longest + _MAX_TOKEN_RATIO * self._max_tokens, same_tokenizer=False)


def _longest(texts: Sequence[str], tokenizer: Tokenizer) -> int:
    return max(len(prompt_token_ids(text, tokenizer)) for text in texts)
