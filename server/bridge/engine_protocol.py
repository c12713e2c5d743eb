"""What the server asks of an engine: `superdraft.decoding.engine.engine.Engine`, or a test's."""

from collections.abc import Sequence
from typing import Protocol

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.outputs import StepOutput
from superdraft.decoding.request import EngineRequest


class TextTokenizer(Protocol):
    """What the server asks of the engine's tokenizer."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these token ids."""


class DecodingEngine(Protocol):
    """Runs requests step by step. All but the attributes is for one thread only."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""

    @property
    def config(self) -> EngineConfig:
        """The engine's limits."""

    @property
    def max_model_len(self) -> int:
        """The longest prompt and draft together, in tokens."""

    @property
    def num_slots(self) -> int:
        """Rows that it decodes together."""

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has something to do."""

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request; it ends an unfinished one of the same session. Raises InvalidRequestError."""

    def cancel(self, request_id: str) -> bool:
        """Forget a request; no output follows for it."""

    def step(self) -> list[StepOutput]:
        """Advance every running sequence; whatever there is to say of them."""
