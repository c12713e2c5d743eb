"""Settings of the engine, fixed when it starts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of the engine.

    Attributes:
        max_model_len: the longest prompt and draft together, in tokens; the model's own context if that is shorter.
        kv_memory_bytes: memory for all keys and values, reserved at start (on a CPU taken as it is used), never grown.
        num_slots: KV-cache slots, one a running branch; None: as many as fit in three quarters of that memory, at most
            64. What is left keeps prompts for reuse.
        max_prefill_tokens: prompt tokens that may be run between two decode steps.
        max_num_drafts: largest k a request may ask for.
        max_candidates_per_draft: largest m a request may ask for.
        max_tokens: most new tokens a draft may ask for.
        document_start: put the token that begins a document in front of every text prompt; False: feed a text's own
            tokens alone. Without such a token a model predicts the first words of a text badly.
        prompt_too_long: refuse such a prompt ("error"), or drop its oldest tokens and say so ("truncate_left").
    """

    max_model_len: int = 2048
    kv_memory_bytes: int = 4 * 1024**3
    num_slots: int | None = None
    max_prefill_tokens: int = 256
    max_num_drafts: int = 32
    max_candidates_per_draft: int = 1024
    max_tokens: int = 512
    document_start: bool = True
    prompt_too_long: Literal["error", "truncate_left"] = "error"
