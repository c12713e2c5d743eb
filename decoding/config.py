"""Settings of the engine, fixed when it starts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of the engine.

    Attributes:
        max_model_len: the longest prompt and draft together, in tokens; the model's own context if that is shorter.
        num_slots: KV-cache slots, one a running sequence; the memory for all is taken at start.
        max_num_drafts: largest k a request may ask for.
        max_candidates_per_draft: largest m a request may ask for.
        max_tokens: most new tokens a draft may ask for.
        prompt_too_long: refuse such a prompt ("error"), or drop its oldest tokens and say so ("truncate_left").
    """

    max_model_len: int = 2048
    num_slots: int = 4
    max_num_drafts: int = 32
    max_candidates_per_draft: int = 1024
    max_tokens: int = 512
    prompt_too_long: Literal["error", "truncate_left"] = "error"
