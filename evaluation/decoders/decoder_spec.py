"""Decoders by their names on the command line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.params import DEFAULT_STRATEGY, GenerationParams
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.edge.error_map import invalid_request
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings
from superdraft.server.wires.native.mapping import generation_params
from superdraft.server.wires.native.schemas import DraftsRequest

_NUCLEUS = {"temperature": 0.6, "top_p": 0.9}  # the defaults of sampling decoders
# The fields of `POST /v1/drafts` for each kind; options of the same name override them.
_FIELDS: dict[str, dict[str, Any]] = {
    "served": {},
    "paper": {"strategy": "superposed", "selection": "paper"},
    "nucleus": {"strategy": "sample", **_NUCLEUS},
    "greedy": {"strategy": "greedy"},
    "nucleus+superposed": {"strategy": "sample+superposed", **_NUCLEUS},
    "beam": {"strategy": "greedy"},  # the engine has no beam search: only num_drafts and max_tokens are used
}
KINDS = tuple(_FIELDS)
_ALIASES = {"superposed": "paper"}
_WITH_NGRAMS = ("served", "paper", "nucleus+superposed")


def _switch(text: str) -> bool:
    """True for "on", False for "off".

    Raises:
        ValueError: the text is neither.
    """
    return ("off", "on").index(text) == 1


# Short names of parameters, as in the paper; all others keep their names.
_LONG = {
    "k": "num_drafts",
    "m": "candidates_per_draft",
    "n": "max_tokens",
    "branches": "num_branches",
    "healing": "token_healing",
}
_TYPES: dict[str, Callable[[str], Any]] = {
    "num_drafts": int,
    "max_tokens": int,
    "alpha": float,
    "tau": float,
    "candidates_per_draft": int,
    "penalty": float,
    "selection": str,
    "max_branches": int,
    "min_probability": float,
    "min_draft_tokens": int,
    "num_branches": int,
    "temperature": float,
    "top_p": float,
    "reset_every": int,
    "trim": str,
    "min_score": float,
    "token_healing": _switch,
    "document_start": _switch,
}
_NO_FIELDS = ("penalty", "document_start")  # not fields of requests: set in the library, in the engine
OPTION_NAMES = ("ngram", *_LONG, *_TYPES)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Membership in a series of decoders that differ in one option: the common name, the option, and its value."""

    series: str
    option: str
    value: float


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """One decoder of a comparison.

    Attributes:
        name: name in reports.
        kind: one of `KINDS`.
        ngram: n-gram model: "auto" (the server's default), "none", or the name of a model or mixture.
        options: fields of the request that are set; the server fills in the others.
        sweep: the series that the decoder belongs to, if any.
    """

    name: str
    kind: str
    ngram: str
    options: tuple[tuple[str, Any], ...] = ()
    sweep: Sweep | None = None

    def request(self) -> DraftsRequest:
        """The request that a client would send, with an empty prompt.

        Raises:
            CommandError: a value is out of range.
        """
        named = {} if self.ngram == "auto" else {"ngram_model": None if self.ngram == "none" else self.ngram}
        options = {name: value for name, value in self.options if name not in _NO_FIELDS}
        fields = {"strategy": DEFAULT_STRATEGY, **_FIELDS[self.kind], **named, **options}
        try:
            return DraftsRequest(prompt="", **fields)
        except ValidationError as error:
            raise CommandError(f"decoder {self.name!r}: {invalid_request(error)}") from None

    @property
    def document_start(self) -> bool:
        """Whether the engine begins texts with the start-of-document token, as the server's does."""
        return bool(dict(self.options).get("document_start", True))

    def params(self, drafting: DraftingDefaults, settings: Settings) -> GenerationParams:
        """The decoder's parameters, made from its request by the server's own code.

        Args:
            drafting: the server's defaults for the decoder's n-gram model.
            settings: settings of the server.

        Raises:
            CommandError: a value is out of range, or two values contradict each other.
        """
        body = self.request()
        library = {name: value for name, value in self.options if name in _NO_FIELDS and name != "document_start"}
        try:
            params = replace(generation_params(body, drafting, token_healing=settings.token_healing), **library)
        except InvalidRequestError as error:
            raise CommandError(f"decoder {self.name!r}: {error}") from None
        if self.kind == "beam" and params.num_drafts < 2:
            raise CommandError(f"decoder {self.name!r}: beam needs num_drafts of at least 2; with 1 it is greedy.")
        return params


def parse_decoders(text: str, ngram: str, shared: Mapping[str, Sequence[Any]]) -> list[DecoderSpec]:
    """Decoders from `[NAME: ]KIND [option=value ...]`, such as `unhealed: served healing=off`.

    An option with several values, such as `k=1,3,5`, makes a decoder for each value.

    Args:
        text: the text; without a name, the decoder is named after the text.
        ngram: n-gram model unless the text names one.
        shared: values of options that the text does not set.

    Raises:
        CommandError: there is no such decoder or option, or several options have several values.
    """
    label, colon, rest = text.partition(": ")
    name, spec = (label.strip(), rest) if colon else (text.strip(), text)
    kind, *pairs = spec.split() or [""]
    kind = _ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise CommandError(f"--decoder {text!r}: {kind!r} is not a decoder; choose one of {', '.join(KINDS)}.")
    options = {key: list(values) for key, values in shared.items() if values}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key == "ngram" and value:
            ngram = value
            continue
        key = _long(key)
        if key not in _TYPES or not equals:
            raise CommandError(
                f"--decoder {text!r}: {pair!r} is not option=value with one of {', '.join(OPTION_NAMES)}."
            )
        try:
            options[key] = [_TYPES[key](item) for item in value.split(",")]
        except ValueError:
            wanted = "on or off" if _TYPES[key] is _switch else "a number"
            raise CommandError(f"--decoder {text!r}: {pair!r} needs {wanted}.") from None
    if kind == "greedy":
        options["num_drafts"] = [1]
    if not kind.startswith("nucleus"):
        options.pop("num_branches", None)
    return _expand(DecoderSpec(name, kind, ngram), options)


def _long(name: str) -> str:
    return _LONG.get(name, name)


def _expand(base: DecoderSpec, options: Mapping[str, Sequence[Any]]) -> list[DecoderSpec]:
    """A decoder per value of the option that has several values."""
    single = {key: values[0] for key, values in options.items() if len(values) == 1}
    swept = [key for key in options if key not in single]
    if len(swept) > 1:
        raise CommandError(
            f"decoder {base.name!r}: only one option may have several values, got {' and '.join(swept)}."
        )
    plain = replace(base, options=tuple(single.items()))
    if not swept:
        return [_without_idle_ngram(plain)]
    (option,) = swept
    # "served k=1,3" and "served" with -k 1 -k 3 give the same names.
    series = " ".join(word for word in base.name.split() if _long(word.partition("=")[0]) != option)
    return [
        _without_idle_ngram(
            replace(
                plain,
                name=f"{series} {option}={value}",
                options=(*plain.options, (option, value)),
                sweep=None if isinstance(value, str | bool) else Sweep(series, option, float(value)),
            )
        )
        for value in options[option]
    ]


def _without_idle_ngram(spec: DecoderSpec) -> DecoderSpec:
    """The spec with ngram "none" if its kind uses no n-gram model, so that none is loaded."""
    return spec if spec.kind in _WITH_NGRAMS else replace(spec, ngram="none")
