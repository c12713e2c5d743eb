"""The engine as the server needs it: `superdraft.decoding.engine.engine.Engine`, or a test's."""

from collections.abc import Collection, Sequence
from typing import Protocol

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.load import Load
from superdraft.decoding.outputs import StepOutput, StepReport
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.fim import FimTokenizer
from superdraft.server.observe.metrics import WatchedEngine


class EngineTokenizer(FimTokenizer, Protocol):
    """The model's tokenizer. Any thread may use it."""

    @property
    def eos_token_ids(self) -> Collection[int]:
        """Ids that end a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these token ids."""


class DecodingEngine(WatchedEngine, Protocol):
    """Runs requests step by step. Any thread may read the attributes and call `prepare`; the rest is for one thread."""

    @property
    def tokenizer(self) -> EngineTokenizer:
        """The model's tokenizer."""

    @property
    def config(self) -> EngineConfig:
        """The engine's limits."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and a draft together."""

    @property
    def load(self) -> Load:
        """What its steps cost. Any thread may ask."""

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""

    @property
    def has_room_ahead(self) -> bool:
        """Whether a request with `is_ahead` would take no other request's place."""

    @property
    def last_step(self) -> StepReport:
        """The latest step. For the engine's thread only."""

    def num_needed(self, params: GenerationParams) -> int:
        """The most slots that a request needs. Any thread may ask."""

    def prepare(self, request: EngineRequest) -> EngineRequest:
        """Encode a request's text, so that `add_request` need not.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside the engine's limits.
        """

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request; it ends an unfinished one of the same session.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside the engine's limits.
        """

    def cancel(self, request_id: str) -> bool:
        """Drop a request; no output follows for it."""

    def step(self) -> list[StepOutput]:
        """Advance every running sequence by one step; returns what there is to report."""
