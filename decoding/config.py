"""Engine configuration, fixed at start."""

from dataclasses import dataclass
from typing import Literal

TREE_CELLS = 256
"""Cells of each KV-cache slot beyond those of the longest text, for the drafts that share the slot; or as many as the
longest text has, if that is fewer."""

SPARE_CELLS = 64
"""How many of these cells are not promised to drafts: other tokenisations of the prompt's end use them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of the engine.

    Attributes:
        max_model_len: maximum length of a prompt plus a draft, in tokens; the model's context length applies if it is
            shorter.
        kv_memory_bytes: memory for all keys and values, reserved at start and never grown. On a CPU transformers'
            models use it only as it fills.
        num_slots: KV-cache slots, one per running request; None: as many as fit in that memory, at most 64 (8 with
            llama.cpp). A slot that is not in use keeps the last prompt for reuse.
        max_prefill_tokens: maximum prompt tokens per step.
        max_num_rows: most model rows that one request may ask for.
        target_latency_s: seconds in which requests should be answered: elastic requests get less work if they would not
            be; None: they always get all.
        max_num_drafts: largest k a request may ask for.
        max_candidates_per_draft: largest m a request may ask for.
        max_tokens: maximum number of new tokens per draft that one request may ask for.
        document_start: put the token that begins a document in front of every text prompt; False: feed only the text's
            own tokens. Without such a token a model predicts the first words of a text badly.
        prompt_too_long: refuse such a prompt ("error"), or drop its oldest tokens and warn ("truncate_left").
    """

    max_model_len: int = 2048
    kv_memory_bytes: int = 4 * 1024**3
    num_slots: int | None = None
    max_prefill_tokens: int = 256
    max_num_rows: int = 64
    target_latency_s: float | None = None
    max_num_drafts: int = 32
    max_candidates_per_draft: int = 1024
    max_tokens: int = 512
    document_start: bool = True
    prompt_too_long: Literal["error", "truncate_left"] = "error"
