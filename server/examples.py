"""Examples for the OpenAPI pages: requests and what the default model answered."""

from typing import Any

COMPLETION_REQUEST: dict[str, Any] = {"prompt": "Thank you for your email. I will", "n": 3, "max_tokens": 10}
COMPLETION_RESPONSE: dict[str, Any] = {
    "id": "cmpl-5af83260fcbc44d5a3d3448a5dba9412",
    "object": "text_completion",
    "created": 1795477753,
    "model": "smollm2-135m",
    "choices": [
        {
            "index": 0,
            "text": " be in touch with the details of your project.",
            "logprobs": None,
            "finish_reason": "length",
            "score": -1.7857,
        },
        {
            "index": 1,
            "text": " be in touch with the details of the project.",
            "logprobs": None,
            "finish_reason": "length",
            "score": -1.8151,
        },
        {
            "index": 2,
            "text": " be in touch with the details of the event.",
            "logprobs": None,
            "finish_reason": "length",
            "score": -2.0729,
        },
    ],
    "system_fingerprint": None,
    "usage": {
        "prompt_tokens": 8,
        "completion_tokens": 30,
        "total_tokens": 38,
        "prompt_tokens_details": {"cached_tokens": 0},
        "forward_rows": 9,
    },
    "warnings": [],
}
DRAFTS_REQUEST: dict[str, Any] = {"prompt": "Thank you for your email. I will", "num_drafts": 3, "max_tokens": 10}
DRAFTS_RESPONSE: dict[str, Any] = {
    "id": "drafts-654a5c1d4e4b40499d25453adbe1e3f2",
    "object": "drafts",
    "model": "smollm2-135m",
    "drafts": [
        {
            "index": 0,
            "text": " be in touch with the details of your project.",
            "tokens": [" be", " in", " touch", " with", " the", " details", " of", " your", " project", "."],
            "token_ids": [325, 281, 5895, 351, 260, 3841, 282, 469, 1391, 30],
            "score": -1.7857,
            "token_logprobs": [-1.4411, -1.592, -0.0536, -1.1508, -1.1712, -1.4974, -1.1422, -1.029, -2.25, -1.3418],
            "finish_reason": "length",
        },
        {
            "index": 1,
            "text": " be in touch with the details of the project.",
            "tokens": [" be", " in", " touch", " with", " the", " details", " of", " the", " project", "."],
            "token_ids": [325, 281, 5895, 351, 260, 3841, 282, 260, 1391, 30],
            "score": -1.8151,
            "token_logprobs": [-1.4411, -1.592, -0.0536, -1.1508, -1.1712, -1.4974, -1.1422, -0.9944, -2.25, -1.3418],
            "finish_reason": "length",
        },
        {
            "index": 2,
            "text": " be in touch with the details of the event.",
            "tokens": [" be", " in", " touch", " with", " the", " details", " of", " the", " event", "."],
            "token_ids": [325, 281, 5895, 351, 260, 3841, 282, 260, 2121, 30],
            "score": -2.0729,
            "token_logprobs": [-1.4411, -1.592, -0.0536, -1.1508, -1.1712, -1.4974, -1.1422, -0.9944, -2.5725, -1.3418],
            "finish_reason": "length",
        },
    ],
    "usage": {
        "prompt_tokens": 8,
        "completion_tokens": 30,
        "total_tokens": 38,
        "prompt_tokens_details": {"cached_tokens": 0},
        "cached_tokens": 0,
        "forward_rows": 9,
    },
    "timings": {"queue_ms": 0.017, "prefill_ms": 174.389, "decode_ms": 761.467, "ngram_ms": 0.958, "total_ms": 940.164},
    "warnings": [],
}
