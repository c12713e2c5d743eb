"""A server in this process whose requests can be changed before the engine, for `superdraft lab eval infill`."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast, get_args

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.model.kv_cache import cells_per_slot
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.fim import Budget, FimTokens, Gap, Layout, gap_prompt
from superdraft.evaluation.decoders.workbench import ModelChoice
from superdraft.evaluation.measures.evaluator import position_bytes
from superdraft.server.app import create_app
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.errors import CommandError
from superdraft.server.loading import LoadedService, load_language_model, service_of
from superdraft.server.serving import HttpServer
from superdraft.server.settings import Settings
from superdraft.server.wires.editors import fim_tokens_of

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
NUM_SLOTS = 8
_START_TIMEOUT_S = 30.0
_FOR_ONE_USER = {
    "fan_out": False,
    "runner": "torch",
    **dict.fromkeys(("api_keys", "api_keys_file", "rate_limit", "max_concurrent")),
}


@dataclass(frozen=True, slots=True)
class Variation:
    """Changes to requests.

    Attributes:
        layout: layout of the prompt, one of `LAYOUTS`; None: the server's.
        heals: whether tokens are healed; None: as the server does.
    """

    layout: Layout | None = None
    heals: bool | None = None


AS_SERVED = Variation()


class VariedEngine:
    """An engine whose requests for gaps are changed on their way in. All other calls go to the engine itself.

    Attributes:
        variation: changes to the following requests.
        gap: gap of the next request.
        output: the engine's output for the latest request; None: there is none yet.
        defaults: the server's defaults.
        max_tokens: maximum number of new tokens per draft.
    """

    def __init__(self, service: LoadedService, settings: Settings) -> None:
        engine = service.engine
        self._engine = engine
        self.defaults = {
            **asdict(service.drafting),
            **{name: getattr(settings, name) for name in ("default_strategy", "token_healing", "fim", "max_model_len")},
        }
        self.max_tokens = min(settings.editor_max_tokens, engine.max_model_len // 2)
        self._fim: FimTokens | None = fim_tokens_of(engine, settings)
        self.variation = AS_SERVED
        self.gap = Gap("")
        self.output: GenerationOutput | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request after applying the variation."""
        heals, layout = self.variation.heals, self.variation.layout
        if heals is not None:
            request = replace(request, params=replace(request.params, token_healing=heals))
        if layout is not None:
            request = replace(request, prompt=self._laid_out(layout, request.params.max_tokens))
        self._engine.add_request(request)

    def step(self) -> list[StepOutput]:
        """Advance every running request."""
        outputs = self._engine.step()
        for output in outputs:
            if output.output is not None:
                self.output = output.output
        return outputs

    def _laid_out(self, layout: Layout, max_tokens: int) -> Prompt:
        budget = Budget(self._engine.max_model_len - max_tokens, 0)
        return gap_prompt(self.gap, self._fim, self._engine.tokenizer, budget, layout).prompt

    def check(self, variation: Variation) -> None:
        """Check that the model supports a variation.

        Raises:
            CommandError: there is no such layout, or the model has no layouts.
        """
        layout = variation.layout
        if layout is None:
            return
        if layout not in LAYOUTS:
            raise CommandError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
        if self._fim is None:
            raise CommandError(
                f"layout={layout}: this model has no tokens to fill gaps, or they are off, so its prompts have "
                "no layouts. Leave the option out."
            )


@contextlib.contextmanager
def served_here(choice: ModelChoice, *, keeps_prompts: bool = False) -> Iterator[tuple[str, VariedEngine]]:
    """A server on a free local port with the settings that `superdraft serve` would have; yields its URL and engine.

    Some settings differ: repeated requests do not share a run, and because no one else uses the server, it has neither
    keys nor limits.

    Args:
        choice: the model.
        keeps_prompts: cache prompts, as a server does. If False, no decoder finds the prompts of the one before.

    Raises:
        ModelLoadError: the model cannot be used.
    """
    settings = choice.server_settings().model_copy(update=_FOR_ONE_USER)
    loaded = load_language_model(settings)
    assert isinstance(loaded, LoadedModel)
    config = settings.engine_config() if keeps_prompts else _with_few_slots(loaded, settings)
    service = service_of(loaded, settings, config)
    engine = VariedEngine(service, settings)
    app = create_app(
        settings,
        cast(DecodingEngine, engine),
        model_name=service.model_name,
        ngram_models=service.ngram_models,
        drafting=service.drafting,
        is_local=True,
    )
    with _listening(HttpServer(app)) as url:
        yield url, engine


def _with_few_slots(loaded: LoadedModel, settings: Settings) -> EngineConfig:
    """The server's configuration, with memory for a few slots."""
    config = settings.engine_config()
    num_slots = config.num_slots or NUM_SLOTS
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    max_len = min(config.max_model_len, context or config.max_model_len)
    return replace(
        config, num_slots=num_slots, kv_memory_bytes=position_bytes(loaded) * num_slots * cells_per_slot(max_len)
    )


@contextlib.contextmanager
def _listening(server: HttpServer) -> Iterator[str]:
    """Serve during the context; yields the URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="superdraft-http")
        thread.start()
        try:
            deadline_s = time.monotonic() + _START_TIMEOUT_S
            while not server.started and thread.is_alive() and time.monotonic() < deadline_s:
                time.sleep(0.01)
            if not server.started:
                raise CommandError(f"the server in this process did not start within {_START_TIMEOUT_S:g} s.")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
