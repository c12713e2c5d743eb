"""Options that an editor sends as `initializationOptions`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from superdraft.client import SessionOptions


class _Kind(NamedTuple):
    """What an option's value must be."""

    rule: str
    is_valid: Callable[[Any], bool]


def _is_number(value: Any, kind: type = int) -> bool:
    return isinstance(value, int | kind) and not isinstance(value, bool)


_TEXT = _Kind("a string that is not empty", lambda value: isinstance(value, str) and value != "")
_COUNT = _Kind("a whole number of at least 1", lambda value: _is_number(value) and value >= 1)
_LENGTH = _Kind("a whole number of at least 0", lambda value: _is_number(value) and value >= 0)
_SHARE = _Kind("a number above 0 and at most 1", lambda value: _is_number(value, float) and 0 < value <= 1)
_SWITCH = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXTS = _Kind(
    "a list of strings",
    lambda value: isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
)


def _option(default: Any, kind: _Kind) -> Any:
    return field(default=default, metadata={"kind": kind})


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
        corrections: whether suggestions may replace a mistyped word. Their range is then not empty, which not every
            editor can show.
        report: whether to tell the server which suggestions were shown, accepted and dismissed.
        requests_per_key: see `SessionOptions`.
        max_delay_ms: see `SessionOptions.max_delay_s`.
        max_prefix_chars: see `SessionOptions.max_prompt_chars`.
        max_suffix_chars: see `SessionOptions`.
        languages: ids of the languages to make suggestions in; empty: all.
    """

    url: str | None = _option(None, _TEXT)
    api_key: str | None = _option(None, _TEXT)
    model: str | None = _option(None, _TEXT)
    num_drafts: int = _option(3, _COUNT)
    max_tokens: int = _option(16, _COUNT)
    single_line: bool = _option(False, _SWITCH)
    corrections: bool = _option(False, _SWITCH)
    report: bool = _option(True, _SWITCH)
    requests_per_key: float = _option(0.3, _SHARE)
    max_delay_ms: int = _option(500, _LENGTH)
    max_prefix_chars: int = _option(4000, _COUNT)
    max_suffix_chars: int = _option(2000, _LENGTH)
    languages: tuple[str, ...] = _option((), _TEXTS)

    @property
    def session_options(self) -> SessionOptions:
        """Options of the typing sessions."""
        return SessionOptions(
            requests_per_key=self.requests_per_key,
            max_delay_s=self.max_delay_ms / 1000,
            max_prompt_chars=self.max_prefix_chars,
            max_suffix_chars=self.max_suffix_chars,
            corrections=self.corrections,
        )


def _json_name(name: str) -> str:
    first, *more = name.split("_")
    return first + "".join(map(str.capitalize, more))


_FIELDS = {_json_name(option.name): option for option in fields(EditorOptions)}


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
        if name not in _FIELDS:
            faults.append(f"initializationOptions has no {name}; there are {', '.join(_FIELDS)}.")
        elif value is not None:
            kind = _FIELDS[name].metadata["kind"]
            if kind.is_valid(value):
                values[_FIELDS[name].name] = tuple(value) if kind is _TEXTS else value
            else:
                faults.append(f"initializationOptions: {name} must be {kind.rule}, got {_shown(name, value)}.")
    return EditorOptions(**values), faults


def _shown(name: str, value: Any) -> str:
    """A wrong value for a message; keys are not shown."""
    return repr(value) if isinstance(value, bool | int | float) and name != "apiKey" else _kind_of(value)


def _kind_of(value: Any) -> str:
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
