"""One request to the engine."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What the engine needs to know to make drafts.

    Attributes:
        request_id: a name that no unfinished request has.
        prompt: text, token ids that are fed as they are, or both.
        params: what is wanted.
        scorer: the n-gram model; None: the language model alone.
        session_id: a typing session. An unfinished request of the same session ends: this one supersedes it.
        timeout_s: seconds after which the request is answered with the drafts it has by then; None: no limit.
    """

    request_id: str
    prompt: Prompt
    params: GenerationParams
    scorer: NgramScorer[Any] | None = None
    _: KW_ONLY
    session_id: str | None = None
    timeout_s: float | None = None
