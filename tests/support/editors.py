"""Requests exactly as editors send them, and parsers as strict as the editors' own."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

_PREFIX = "def add(a, b):\n    return a"
_SUFFIX = "\n\nprint(add(1, 2))\n"

LLAMA_VIM = {
    "input_prefix": "def add(a, b):\n",
    "input_suffix": "\n\nprint(add(1, 2))\n\n",
    "input_extra": [{"text": "import os\n", "time": [1, 2], "filename": "other.py"}],
    "prompt": "    return a",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}
# Version 0.1, with `n_cmpl`; the time is that of a place's first request.
LLAMA_VIM_SEVERAL = LLAMA_VIM | {"id_slot": 0, "n_cmpl": 3, "top_p": 0.9, "t_max_predict_ms": 250}
LLAMA_VIM_WARM_UP = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": [{"text": "import os\n", "time": [1, 2], "filename": "other.py"}],
    "prompt": "",
    "n_predict": 0,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}
LLAMA_VSCODE = {
    "input_prefix": "def add(a, b):\n",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "input_extra": [{"text": "import os\n", "time": 1700000000000, "filename": "other.py"}],
    "prompt": "    return a",
    "n_predict": 128,
    "n_cmpl": 3,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "n_indent": 4,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 2500,
    "lora": [{"id": 0, "scale": 0.5}],
}
LLAMA_VSCODE_WARM_UP = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": [{"text": "import os\n", "time": 1700000000000, "filename": "other.py"}],
    "prompt": "",
    "n_predict": 0,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1,
}
_CONTINUE_STOP = [
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<file_sep>",
    "<|endoftext|>",
    "/src/",
    "#- coding: utf-8",
]
CONTINUE_OPENAI = {
    "model": "superdraft",
    "prompt": _PREFIX,
    "max_tokens": 64,
    "temperature": 0.01,
    "top_p": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "stop": [*_CONTINUE_STOP, "\n\n", "\r\n\r\n"],
    "stream": True,
}
CONTINUE_VLLM = {**CONTINUE_OPENAI, "min_p": None, "keep_alive": 1800, "options": {}}
CONTINUE_FIM = {
    "model": "superdraft",
    "prompt": _PREFIX,
    "suffix": _SUFFIX,
    "max_tokens": 4096,
    "temperature": 0.01,
    "top_p": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "stop": _CONTINUE_STOP,
    "stream": True,
}
CONTINUE_LLAMACPP = {
    "prompt": _PREFIX,
    "stream": True,
    "n_predict": 4096,
    "frequency_penalty": None,
    "presence_penalty": None,
    "min_p": None,
    "mirostat": None,
    "stop": _CONTINUE_STOP,
    "top_k": None,
    "top_p": None,
    "temperature": 0.01,
}
ZED = {
    "model": "superdraft",
    "prompt": _PREFIX,
    "max_tokens": 64,
    "stop": ["<|endoftext|>", "<|file_separator|>", "<|fim_pad|>"],
}
TABBY = {
    "language": "python",
    "segments": {
        "prefix": _PREFIX,
        "suffix": _SUFFIX,
        "filepath": "src/add.py",
        "git_url": "https://example.org/add.git",
        "declarations": [{"filepath": "src/other.py", "body": "def other(): ..."}],
        "relevant_snippets_from_changed_files": [{"filepath": "src/new.py", "body": "x = 1", "score": 0.5}],
        "clipboard": "a + b",
        "edit_history": None,
    },
    "user": None,
}
TABBY_MANUAL = {**TABBY, "temperature": 0.8}
TABBY_VIEW = {"type": "view", "completion_id": "", "choice_index": 0, "view_id": "view-cmpl-1-at-1700000000000"}
MINUET = {
    "model": "superdraft",
    "prompt": "# language: python\n" + _PREFIX,
    "suffix": _SUFFIX,
    "max_tokens": 56,
    "top_p": 0.9,
    "stream": True,
}
CMP_AI = {"prompt": _PREFIX, "suffix": None, "max_tokens": 100, "temperature": 0.1, "model": "superdraft", "n": 1}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _ZedChoice(_Strict):
    text: StrictStr
    finish_reason: StrictStr | None


class _ZedUsage(_Strict):
    prompt_tokens: StrictInt
    completion_tokens: StrictInt
    total_tokens: StrictInt


class ZedAnswer(_Strict):
    """Zed's serde struct: every field is required."""

    id: StrictStr
    object: StrictStr
    created: StrictInt
    model: StrictStr
    choices: list[_ZedChoice]
    usage: _ZedUsage


class _TabbyChoice(_Strict):
    index: StrictInt
    text: StrictStr


class TabbyAnswer(_Strict):
    id: StrictStr
    choices: list[_TabbyChoice]


class LlamaVimAnswer(BaseModel):
    """Flat keys, which may contain slashes, and no other keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    content: StrictStr
    truncated: bool
    tokens_cached: StrictInt

    @classmethod
    def read(cls, raw: str) -> "LlamaVimAnswer":
        """Parse like the plugin: search the raw text, then parse the JSON."""
        assert '"content":"' in raw
        fields = json.loads(raw)
        for name in ("prompt", "predicted"):
            for unit in ("n", "ms", "per_token_ms", "per_second"):
                assert isinstance(fields.pop(f"timings/{name}_{unit}"), int | float)
        return cls.model_validate(fields)


def llama_vim_ring(raw: str, n_cmpl: int) -> list[str]:
    """What version 0.1 cycles through at a place: a ring that forgets the oldest, without texts that it has already."""
    assert re.match(r"\s*[{[]", raw)
    assert re.search(r'"content"\s*:"', raw)
    answers = json.loads(raw)
    ring: list[str] = []
    for answer in [answers] if isinstance(answers, dict) else answers:
        content = LlamaVimAnswer.read(json.dumps(answer, separators=(",", ":"))).content
        if content not in ring:
            ring = [*ring, content][-n_cmpl:]
    return ring


def continue_events(raw: str) -> list[dict[str, Any]]:
    """Continue's parser: every line must be data, except blank lines and one kind of comment."""
    events = []
    for line in raw.split("\n"):
        if not line.strip() or line.startswith(": keep-alive"):
            continue
        assert line.startswith("data:"), line
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return events
        event = json.loads(data)
        assert "error" not in event
        events.append(event)
    return events


def tabby_as_client(raw: str) -> str:
    """Tabby's client for OpenAI servers, which panics on `[DONE]` if there was no finish_reason before it."""
    text, finish_reason = "", None
    for block in re.split(r"\n\n", raw.strip()):
        data = block.removeprefix("data: ")
        if data == "[DONE]":
            assert finish_reason is not None, "panic"
            return text
        (choice,) = json.loads(data)["choices"]
        assert choice["finish_reason"] != ""
        text += choice["text"]
        finish_reason = choice["finish_reason"] or finish_reason
    raise AssertionError("no [DONE]")


@dataclass
class LlamaVscode:
    """The suggestions shown by llama.vscode, from one response object or an array of them."""

    contents: list[str]

    @classmethod
    def read(cls, answer: Any, kind: Literal["object", "array"]) -> "LlamaVscode":
        assert isinstance(answer, list if kind == "array" else dict)
        answers = answer if isinstance(answer, list) else [answer]
        for one in answers:
            assert isinstance(one["content"], str)
            assert isinstance(one["tokens_cached"], int)
            assert isinstance(one["truncated"], bool)
            for name in ("prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms"):
                assert isinstance(one["timings"][name], int | float)
        return cls([one["content"] for one in answers])
