"""Options that an editor sends as `initializationOptions`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from superdraft.client import SessionOptions


@dataclass(frozen=True, slots=True)
class EditorOptions:
    """The options, under the names that they have in JSON without capital letters.

    Attributes:
        url: URL of a server; None: that of the command line, or else the engine in this process.
        api_key: API key of the server; None: that of the command line, if it names this server.
        model: name of a model that the server knows; None: the served one.
        num_drafts: suggestions to choose from.
        max_tokens: maximum number of new tokens per suggestion.
        single_line: whether suggestions end at the first line break.
        report: whether to tell the server which suggestions were shown, accepted and dismissed.
        requests_per_key: see `SessionOptions`.
        max_delay_ms: see `SessionOptions.max_delay_s`.
        max_prefix_chars: see `SessionOptions.max_prompt_chars`.
        max_suffix_chars: see `SessionOptions`.
        languages: ids of the languages to make suggestions in; empty: all.
    """

    url: str | None = None
    api_key: str | None = None
    model: str | None = None
    num_drafts: int = 3
    max_tokens: int = 16
    single_line: bool = False
    report: bool = True
    requests_per_key: float = 0.3
    max_delay_ms: int = 500
    max_prefix_chars: int = 4000
    max_suffix_chars: int = 2000
    languages: tuple[str, ...] = ()

    @property
    def session_options(self) -> SessionOptions:
        """Options of the typing sessions."""
        return SessionOptions(
            requests_per_key=self.requests_per_key,
            max_delay_s=self.max_delay_ms / 1000,
            max_prompt_chars=self.max_prefix_chars,
            max_suffix_chars=self.max_suffix_chars,
        )


_KINDS: dict[str, tuple[str, str]] = {
    "url": ("url", "text"),
    "apiKey": ("api_key", "text"),
    "model": ("model", "text"),
    "numDrafts": ("num_drafts", "count"),
    "maxTokens": ("max_tokens", "count"),
    "singleLine": ("single_line", "switch"),
    "report": ("report", "switch"),
    "requestsPerKey": ("requests_per_key", "share"),
    "maxDelayMs": ("max_delay_ms", "duration"),
    "maxPrefixChars": ("max_prefix_chars", "count"),
    "maxSuffixChars": ("max_suffix_chars", "duration"),
    "languages": ("languages", "texts"),
}
"""The option and the kind of its value, by the name in JSON."""

_RULES = {
    "text": "a string that is not empty",
    "count": "a whole number of at least 1",
    "duration": "a whole number of at least 0",
    "share": "a number above 0 and at most 1",
    "switch": "true or false",
    "texts": "a list of strings",
}


def read_options(sent: Any) -> tuple[EditorOptions, list[str]]:
    """Read `initializationOptions`. Wrong ones keep their defaults.

    Returns:
        The options, and a message for each value that is wrong.
    """
    if sent is None:
        return EditorOptions(), []
    if not isinstance(sent, Mapping):
        return EditorOptions(), [f"initializationOptions must be an object, got {_kind_of(sent)}."]
    values: dict[str, Any] = {}
    faults = []
    for name, value in sent.items():
        if name not in _KINDS:
            faults.append(f"initializationOptions has no {name}; there are {', '.join(_KINDS)}.")
        elif value is not None:
            field, kind = _KINDS[name]
            if _is_valid(value, kind):
                values[field] = tuple(value) if kind == "texts" else value
            else:
                faults.append(f"initializationOptions: {name} must be {_RULES[kind]}, got {_shown(name, value)}.")
    return EditorOptions(**values), faults


def _is_valid(value: Any, kind: str) -> bool:
    if kind == "switch":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str) and value != ""
    if kind == "texts":
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return False
    if kind == "share":
        return isinstance(value, int | float) and 0 < value <= 1
    return isinstance(value, int) and value >= (1 if kind == "count" else 0)


def _shown(name: str, value: Any) -> str:
    """A wrong value for a message; keys are not shown."""
    return repr(value) if isinstance(value, bool | int | float) and name != "apiKey" else _kind_of(value)


def _kind_of(value: Any) -> str:
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
