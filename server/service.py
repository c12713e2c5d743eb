"""The served model and the pipeline of its requests.

Every wire parses a request, calls `draft` or `stream`, and renders the outputs.
"""

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import GenerationOutput, StepOutput, kept
from superdraft.decoding.params import DEFAULT_STRATEGY, SELECTIONS, STRATEGIES, GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.fim import FimTokens
from superdraft.server.bridge.async_engine import AsyncEngine
from superdraft.server.bridge.fan_out import FanOut, Share
from superdraft.server.bridge.output_stream import MergedOutputs, OutputStream, open_all
from superdraft.server.bridge.typists import Typist
from superdraft.server.display import Display
from superdraft.server.drafting import Asked, DraftingDefaults
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.feedback import Feedback
from superdraft.server.ngrams.mixture import Scorer
from superdraft.server.ngrams.registry import NgramChoice, NgramModels
from superdraft.server.observe.metrics import Metrics
from superdraft.server.settings import Settings

MODEL_ALIAS = "superdraft"  # editors send ids that start with "gpt" or "o" to the chat route, but not this one

OutputsT = TypeVar("OutputsT")


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request.

    Attributes:
        name: of the API key; empty on a server without keys.
        counted_as: whom the request counts for: the key, or the network address on a server without keys.
    """

    name: str = ""
    counted_as: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingRequest:
    """A request for drafts, from any wire.

    Attributes:
        id: of the answer.
        sender: who sent it.
        asked: the engine parameters that the request sets. The server's defaults fill in the others.
        prompts: by the engine's request id of each.
        asks_for_paper: see `DraftingDefaults.params`.
        model: the model's name, which may be an alias that names a method; None: the served model.
        names_ngram_model: False: the n-gram model is the server's default.
        ngram_model: which one, if the request names one; None: no n-gram model.
        twin_key: see `bridge.fan_out.twin_key`; None: the request shares no run. Only for a single prompt.
        session_id: the sender's typing session, of which a newer request ends this one; None: it names none.
        deadline_s: when the drafts so far are the answer, on time.monotonic; None: no limit.
        draft_timeout_s: seconds after which they are, counted from their first tokens on; None: no limit.
        is_warm_up: it only runs its prompts, for later requests.
        cut: shortens the drafts that a request id got.
        display: selects and tidies them after that; None: all are shown as they are.
        num_shown: drafts of each prompt in the answer, at most; None: all.
        takes_feedback: False: clients cannot refer to the answer, so it is not remembered for feedback.
    """

    id: str
    sender: Sender
    asked: Asked
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    asks_for_paper: bool = False
    model: str | None = None
    names_ngram_model: bool = False
    ngram_model: NgramChoice = None
    twin_key: str | None = None
    session_id: str | None = None
    deadline_s: float | None = None
    draft_timeout_s: float | None = None
    is_warm_up: bool = False
    cut: Callable[[str, GenerationOutput], GenerationOutput] = lambda _, output: output
    display: Display | None = None
    num_shown: int | None = None
    takes_feedback: bool = True


@dataclass(frozen=True, slots=True)
class Drafted(Generic[OutputsT]):
    """The result of a request.

    Attributes:
        outputs: one per prompt, in order; or the stream of all prompts' outputs.
        params: the engine parameters, with the server's defaults.
        has_ngram_model: whether there was an n-gram model to score with.
    """

    outputs: OutputsT
    params: GenerationParams
    has_ngram_model: bool


@dataclass(frozen=True, slots=True)
class Service:
    """One served model.

    Attributes:
        settings: the server's settings.
        engine: runs the requests.
        model_name: the model's name in answers.
        ngram_models: the models that requests may name.
        feedback: what users did with drafts.
        drafting: defaults of requests.
        created: when the model was loaded, in Unix seconds.
        metrics: for Prometheus.
        fim: the model's fill-in-the-middle tokens; None: it has none, or they are not used.
        fan_out: shares runs among twin requests.
    """

    settings: Settings
    engine: AsyncEngine
    model_name: str
    ngram_models: NgramModels
    feedback: Feedback
    drafting: DraftingDefaults
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)
    fim: FimTokens | None = None
    fan_out: FanOut = field(default_factory=FanOut)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The served model's names; answers give the first."""
        return tuple(dict.fromkeys((self.model_name, MODEL_ALIAS)))

    @property
    def method_aliases(self) -> Mapping[str, Mapping[str, str]]:
        """Names that choose a strategy or a selection together with the model, and the parameters that they set.

        They are `<model>:<strategy>` and `<model>:<selection>`; `<model>:paper` is Superposed Decoding as published.
        """
        methods: dict[str, dict[str, str]] = {strategy: {"strategy": strategy} for strategy in STRATEGIES}
        methods |= {selection: {"strategy": "superposed", "selection": selection} for selection in SELECTIONS}
        return {f"{name}:{method}": sets for name in self.model_names for method, sets in methods.items()}

    def method_of(self, model: str | None) -> Mapping[str, str]:
        """The strategy, and perhaps the selection, of a request that names this model and does not set them.

        Raises:
            NotFoundError: the model is not served here.
        """
        alias = self.method_aliases.get(model or "")
        if alias is None and model is not None and model not in self.model_names:
            message = f"The model in the request is not served here; served: {', '.join(self.model_names)}."
            raise NotFoundError(message, param="model", code="model_not_found")
        return alias or {"strategy": DEFAULT_STRATEGY}

    async def draft(self, request: DraftingRequest) -> Drafted[list[GenerationOutput]]:
        """Run a request to its end. Cancelling the caller ends it.

        Raises:
            NotFoundError: a model that the request names is not here.
            SuperdraftError: raised by the engine, for any of the prompts.
        """
        drafted = await self.stream(request)
        outputs = await drafted.outputs.results()
        return Drafted([outputs[request_id] for request_id in request.prompts], drafted.params, drafted.has_ngram_model)

    async def stream(self, request: DraftingRequest) -> Drafted[MergedOutputs]:
        """The outputs of a request as they come; returns when the engine has taken it. Closing the stream ends it.

        Raises:
            NotFoundError: a model that the request names is not here.
            SuperdraftError: the engine refused one of the prompts.
        """
        params, scorer = await self._prepared(request)
        typist = self.engine.typists.of(request.sender.counted_as, request.session_id)
        shares: dict[str, Share] = {}

        def finish(step: StepOutput) -> StepOutput:
            if step.output is None:
                return step
            share = shares.get(step.request_id) or Share(_cut(request, step.request_id, step.output, params))
            self._remember(request, params, typist, step.request_id, share)
            self._look_ahead(request, params, scorer, share.output)
            return replace(step, output=share.output)

        def start(run: EngineRequest) -> Coroutine[Any, Any, OutputStream]:
            open_stream = partial(self.engine.stream, typist=typist)
            if request.twin_key is None:
                return open_stream(run)
            cut = partial(_cut, request, run.request_id, params=params)
            return self.fan_out.stream(
                request.twin_key, run, open_stream, cut, partial(shares.__setitem__, run.request_id)
            )

        outputs = await open_all([start(run) for run in self._runs(request, params, scorer)], finish)
        return Drafted(outputs, params, scorer is not None)

    async def _prepared(self, request: DraftingRequest) -> tuple[GenerationParams, Scorer | None]:
        """Strategy, n-gram model and its tuning, and the parameters that follow from them."""
        method = self.method_of(request.model)
        if request.names_ngram_model:
            scorer = await self.ngram_models.choose(request.ngram_model)
            drafting = self.drafting.with_tuning(await self.ngram_models.tuning(request.ngram_model))
        else:
            scorer, drafting = await self.ngram_models.current_default(), self.drafting
        asked = request.asked.completed(
            strategy=method["strategy"],
            selection=method.get("selection"),
            token_healing=self.settings.token_healing,
        )
        params = drafting.params(
            asked, asks_for_paper=request.asks_for_paper, ngram_is_named=request.ngram_model is not None
        )
        self._check_work(len(request.prompts), params)
        return params, scorer

    def _check_work(self, num_prompts: int, params: GenerationParams) -> None:
        """Refuse a request that asks for more tokens than one may, unless the engine has a closer limit to name."""
        num_rows, max_tokens = params.num_rows, params.max_tokens
        work, limit = num_prompts * num_rows * max_tokens, self.settings.max_request_tokens
        if work > limit and num_rows <= self.engine.num_slots and max_tokens <= self.engine.config.max_tokens:
            raise InvalidRequestError(
                f"The request asks for {work} tokens ({num_prompts} prompts x {num_rows} rows x max_tokens "
                f"{max_tokens}), this server allows at most {limit} per request. Lower max_tokens, ask for fewer "
                "drafts, or send the prompts in several requests.",
                param="max_tokens",
            )

    def _look_ahead(
        self, request: DraftingRequest, params: GenerationParams, scorer: Scorer | None, output: GenerationOutput
    ) -> None:
        """Let the engine run what a typist would ask for next, who accepts the first draft that was shown.

        Args:
            request: the one that was answered; only typing sessions continue.
            params: its parameters.
            scorer: its n-gram model.
            output: what is shown.
        """
        ((request_id, prompt), *_) = request.prompts.items()
        is_typing = request.session_id is not None and params.divides and len(request.prompts) == 1
        if self.settings.speculate == "off" or not is_typing or not output.drafts or not isinstance(prompt, str):
            return
        first = output.drafts[0]
        text = type(prompt)(kept(prompt, first.replaces) + first.text)
        likely = replace(request, prompts={f"{request_id}-ahead": text}, deadline_s=None, draft_timeout_s=None)
        (run,) = self._runs(likely, params, scorer)
        self.engine.look_ahead(run)

    def _remember(
        self, request: DraftingRequest, params: GenerationParams, typist: Typist, request_id: str, share: Share
    ) -> None:
        if not request.takes_feedback:
            return
        shown, prompt = share.output.drafts[: request.num_shown], request.prompts[request_id]
        origins = None
        if typist.session and len(request.prompts) == 1 and isinstance(prompt, str):
            origins = typist.answered(prompt, [draft.text for draft in shown], request.id)
        self.feedback.remember(
            request.sender.name,
            request.id,
            shown,
            first_index=list(request.prompts).index(request_id) * (request.num_shown or 0),
            first_rank=share.rank,
            are_probabilities=params.scores_are_probabilities,
            origins=origins,
        )

    def _runs(self, request: DraftingRequest, params: GenerationParams, scorer: Scorer | None) -> list[EngineRequest]:
        isolation = request.sender.name if self.settings.prefix_isolation == "key" else ""
        return [
            EngineRequest(
                request_id,
                prompt,
                params,
                scorer,
                deadline_s=request.deadline_s,
                draft_timeout_s=request.draft_timeout_s,
                is_warm_up=request.is_warm_up,
                isolation=isolation,
            )
            for request_id, prompt in request.prompts.items()
        ]


def _cut(
    request: DraftingRequest, request_id: str, output: GenerationOutput, params: GenerationParams
) -> GenerationOutput:
    """What the request shows of an output."""
    output = request.cut(request_id, output)
    return output if request.display is None else request.display.shown(output, params)
