"""Examples for the OpenAPI pages: requests and the default model's answers."""

from typing import Any

COMPLETION_REQUEST: dict[str, Any] = {"prompt": "Thank you for your email. I will", "n": 3, "max_tokens": 10}
COMPLETION_RESPONSE: dict[str, Any] = {
    "id": "cmpl-f5a2d2bdbc5843f4a2b7c39552ef11b3",
    "object": "text_completion",
    "created": 1795655514,
    "model": "smollm2-135m",
    "choices": [
        {"index": 0, "text": " be in touch with more", "logprobs": None, "finish_reason": "stop", "score": -1.4859},
        {"index": 1, "text": " definitely be in touch", "logprobs": None, "finish_reason": "stop", "score": -1.8609},
        {"index": 2, "text": " keep an eye out for your", "logprobs": None, "finish_reason": "stop", "score": -2.2359},
    ],
    "system_fingerprint": None,
    "usage": {
        "prompt_tokens": 8,
        "completion_tokens": 15,
        "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 6},
        "forward_rows": 12,
        "limited_by_load": False,
    },
    "warnings": [],
}
DRAFTS_REQUEST: dict[str, Any] = {"prompt": "Thank you for your email. I will", "num_drafts": 3, "max_tokens": 10}
DRAFTS_RESPONSE: dict[str, Any] = {
    "id": "drafts-61b726cb4814478792557409b2a957d6",
    "object": "drafts",
    "model": "smollm2-135m",
    "drafts": [
        {
            "index": 0,
            "text": " be in touch with more",
            "tokens": [" be", " in", " touch", " with", " more"],
            "token_ids": [325, 281, 5895, 351, 540],
            "score": -1.4859,
            "token_logprobs": [-1.4859, -1.7189, -0.2614, -0.928, -1.2341],
            "finish_reason": "improbable",
        },
        {
            "index": 1,
            "text": " definitely be in touch",
            "tokens": [" definitely", " be", " in", " touch"],
            "token_ids": [9048, 325, 281, 5895],
            "score": -1.8609,
            "token_logprobs": [-1.8609, -1.5739, -2.5347, -0.1428],
            "finish_reason": "improbable",
        },
        {
            "index": 2,
            "text": " keep an eye out for your",
            "tokens": [" keep", " an", " eye", " out", " for", " your"],
            "token_ids": [1446, 354, 3323, 578, 327, 469],
            "score": -2.2359,
            "token_logprobs": [-2.2359, -1.0206, -0.1798, -0.2366, -0.1213, -1.254],
            "finish_reason": "improbable",
        },
    ],
    "usage": {
        "prompt_tokens": 8,
        "completion_tokens": 15,
        "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 0},
        "cached_tokens": 0,
        "forward_rows": 12,
        "rows_by_depth": [3, 3, 2, 2, 1, 1],
        "reused_drafts": 0,
        "limited_by_load": False,
    },
    "timings": {"queue_ms": 0.06, "prefill_ms": 71.246, "decode_ms": 111.702, "ngram_ms": 0.0, "total_ms": 183.791},
    "warnings": [],
}
