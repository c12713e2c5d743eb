"""Requests that say a secret to every route in every way, for tests of what must never be seen."""

import json

from starlette.testclient import TestClient

SECRET = "Zanzibar"


def bodies() -> list[bytes]:
    words = f"{SECRET} sells spices"
    objects = [
        {"prompt": words},
        {"prompt": words, "stream": True},
        {"prompt": [words]},
        {"prompt": {"text": words}},
        {"prompt": words, "max_tokens": words},
        {"prompt": words, "model": words},
        {"prompt": words, "ngram_model": words},
        {"prompt": words, "strategy": words},
        {"prompt": words, "stop": [words], "max_tokens": 2},
        {"prompt": words, "suffix": words},
        {"prompt": words * 500},
        {"prompt": words, words: 1},
        {"prompt": words, "logit_bias": {words: 1}},
        {"input_prefix": words, "input_suffix": words, "input_extra": [{"text": words, "filename": words}]},
        {"segments": {"prefix": words, "suffix": words}, "language": words},
        {"completion_id": words, "event": words, "index": 0},
        {"type": words, "completion_id": words, "choice_index": 0},
    ]
    whole = [json.dumps(item).encode() for item in objects]
    broken = [f'{{"prompt": "{words}'.encode(), f"prompt={words}".encode(), f'["{words}"]'.encode()]
    return [*whole, *broken, f'{{"prompt": "{words} \xff"}}'.encode("latin-1")]


def talk(client: TestClient) -> set[int]:
    """Say the secret to every route in every way, the wrong ones too."""
    statuses = set()
    for path, operations in client.app.openapi()["paths"].items():
        for body in bodies() if "post" in operations else []:
            statuses.add(client.post(path, content=body, headers={"x-session-id": SECRET}).status_code)
        statuses.add(client.get(f"{path}?q={SECRET}").status_code)
    for path in (f"/{SECRET}", f"/v1/models/{SECRET}", f"/v1/{SECRET}/completions"):
        statuses.add(client.get(path).status_code)
        statuses.add(client.request(SECRET.upper(), path).status_code)
    statuses.add(client.post("/v1/drafts", content=b"x" * 3000 + SECRET.encode()).status_code)
    return statuses
