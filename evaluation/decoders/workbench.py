"""The models of an evaluation: the drafting model with its engine, the n-gram models, and the judging model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.admission import prompt_token_ids
from superdraft.decoding.loading.loader import LoadedModel, ModelOptions, load_model
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.decoders import Contender, EngineDecoder
from superdraft.evaluation.decoders.ngram_choice import NgramModels
from superdraft.evaluation.measures.evaluator import Evaluator
from superdraft.server.settings import Settings
from superdraft.server.settings_sources import load_settings

NUM_SLOTS = 64
_KV_MEMORY_BYTES = 3 * 1024**3
_MAX_PREFILL_TOKENS = 1024
# A text that is typed word by word may have a few more tokens than in one piece.
_SPARE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The language models of an evaluation; names, dtype and device as in the server's settings.

    Attributes:
        model: the drafting model.
        dtype: data type of its weights.
        device: device it runs on.
        evaluator: the judging model; None: the drafting model.
    """

    model: str
    dtype: str
    device: str
    evaluator: str | None = None

    def server_settings(self) -> Settings:
        """The settings of `superdraft serve` with this model on torch; others: the environment's or the defaults."""
        return load_settings({"model": self.model, "runner": "torch", "dtype": self.dtype, "device": self.device})


class Workbench:
    """Everything needed to decode some texts and to judge the drafts.

    A decoder is a request: the server's own code fills in its defaults, and the engine admits it as usual. Only the
    engine's limits differ, because all texts are decoded together.

    Args:
        choice: the language models.
        texts: all texts to decode; slots are as long as the longest one needs.
        specs: all decoders to use.
        seed: seed of the sampling decoders.
    """

    def __init__(
        self,
        choice: ModelChoice,
        texts: Sequence[str],
        specs: Sequence[DecoderSpec],
        *,
        seed: int = 0,
    ) -> None:
        self.choice = choice
        self.server_settings = choice.server_settings()
        self.loaded = self._load()
        tokenizer = Tokenizer(self.loaded.tokenizer)
        self.ngram_models = NgramModels(self.server_settings, tokenizer)
        self._seed = seed
        params = [self.params(spec) for spec in specs]
        self._max_tokens = max(one.max_tokens for one in params)
        longest = max(len(prompt_token_ids(text, tokenizer)) for text in texts)
        self._max_len = longest + self._max_tokens + _SPARE_TOKENS
        # A conversion frees the dense weights, which the evaluator needs.
        loaded = self.loaded if self.loaded.convert is None else self._load()
        self.engine = build_engine(loaded, self._engine_config(params))

    @classmethod
    def of_prompts(
        cls, choice: ModelChoice, prompts: Sequence[Prompt], specs: Sequence[DecoderSpec], *, seed: int = 0
    ) -> Self:
        """A workbench for prompts whose references are typed."""
        texts = [prompt.text + prompt.continuation for prompt in prompts]
        return cls(choice, texts, specs, seed=seed)

    def _load(self) -> LoadedModel:
        return load_model(
            ModelOptions(
                model=self.choice.model,
                home=self.server_settings.home,
                dtype=self.choice.dtype,
                device=self.choice.device,
                trust_remote_code=self.server_settings.trust_remote_code,
            )
        )

    def _engine_config(self, params: Sequence[GenerationParams]) -> EngineConfig:
        return replace(
            self.server_settings.engine_config(),
            max_model_len=self._max_len,
            kv_memory_bytes=_KV_MEMORY_BYTES,
            num_slots=NUM_SLOTS,
            max_num_rows=max(one.num_rows for one in params),
            max_prefill_tokens=max(_MAX_PREFILL_TOKENS, self._max_len),
            max_num_drafts=max(one.num_drafts for one in params),
            max_candidates_per_draft=max(one.num_candidates for one in params),
            max_tokens=self._max_tokens,
            target_latency_s=None,  # prompts are sent all at once, but no one waits: no draft is shortened
        )

    def params(self, spec: DecoderSpec) -> GenerationParams:
        """A decoder's parameters, as the server makes them."""
        return spec.params(self.ngram_models.drafting(spec.ngram), self.server_settings)

    def decoder(self, spec: DecoderSpec) -> EngineDecoder:
        """The decoder of a spec."""
        return EngineDecoder(self.engine, self.params(spec), self.ngram_models.scorer(spec.ngram), self._seed)

    def contenders(self, specs: Sequence[DecoderSpec]) -> list[Contender]:
        """The decoders with their names and settings."""
        return [
            Contender(spec.name, self.decoder(spec), self.settings(spec), self.params(spec).max_tokens - 1)
            for spec in specs
        ]

    def settings(self, spec: DecoderSpec) -> dict[str, Any]:
        """Everything that a decoder's drafts depend on."""
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
        """Load the evaluator that judges the drafts."""
        choice = self.choice
        if choice.evaluator is None:
            return Evaluator(self.loaded)
        return Evaluator(load_model(ModelOptions(model=choice.evaluator, dtype=choice.dtype, device=choice.device)))
