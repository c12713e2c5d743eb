"""A request to the engine."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt, PromptTokens


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A prompt and everything that determines its drafts.

    Attributes:
        request_id: an id that no other unfinished request has.
        prompt: text, token ids that are fed unchanged, or both; or what `Engine.prepare` made of it.
        params: the generation's parameters.
        scorer: the n-gram model; None: the language model alone.
        key_gap_s: the usual seconds until a typist's next request, after which this one's answer is of no use; None:
            unknown.
        waiting_since_s: since when drafts have been waited for, on the engine's clock; None: since it was added.
        deadline_s: when the request is answered with the drafts so far, on the engine's clock; None: no limit.
        draft_timeout_s: seconds after which it is answered at the latest, from the drafts' first tokens on, so that the
            prompt does not count; None: no limit.
        is_ahead: it has not been sent yet, but is likely to be: it must not take a tree from other requests.
        is_warm_up: it only runs its prompt, so that later requests find it; it gives way to all others.
        isolation: requests share kept prompts only if this is equal.
    """

    request_id: str
    prompt: Prompt | PromptTokens
    params: GenerationParams
    scorer: NgramScorer[Any] | None = None
    _: KW_ONLY
    key_gap_s: float | None = None
    waiting_since_s: float | None = None
    deadline_s: float | None = None
    draft_timeout_s: float | None = None
    is_ahead: bool = False
    is_warm_up: bool = False
    isolation: str = ""
