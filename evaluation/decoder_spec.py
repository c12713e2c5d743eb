"""How a decoder is named on the command line, and what that means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.params import DISTINCT_DEFAULTS, GenerationParams
from superdraft.server.errors import CommandError

_STRATEGIES = {
    "superposed": "superposed",
    "nucleus": "sample",
    "greedy": "greedy",
    "nucleus+superposed": "sample+superposed",
    "beam": "greedy",  # the engine has no beam search: only num_drafts and max_tokens count
}
KINDS = tuple(_STRATEGIES)
# What sampling is compared at unless it is asked for otherwise.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "nucleus": {"temperature": 0.6, "top_p": 0.9},
    "nucleus+superposed": {"temperature": 0.6, "top_p": 0.9},
}
# Short names, as in the paper, for parameters; all others have their own.
_LONG = {"k": "num_drafts", "m": "candidates_per_draft", "n": "max_tokens", "branches": "num_branches"}
_TYPES: dict[str, type] = {
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
}
OPTION_NAMES = ("ngram", *_LONG, *_TYPES)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Decoders that differ in one option: the name they have in common, the option, and its value."""

    series: str
    option: str
    value: float


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """One decoder of a comparison.

    Attributes:
        name: what it is called in reports.
        kind: one of `KINDS`.
        ngram: the n-gram model: a name, "auto", "none", or a mixture.
        options: parameters that were asked for by name; the others take their defaults.
        sweep: the series of decoders that it is one of, if it is.
    """

    name: str
    kind: str
    ngram: str
    options: tuple[tuple[str, Any], ...] = ()
    sweep: Sweep | None = None

    @property
    def is_distinct(self) -> bool:
        """Its drafts begin differently, and no n-gram model has a say unless alpha is given."""
        return dict(self.options).get("selection") == "distinct"

    def params(self, tuned: Mapping[str, Any]) -> GenerationParams:
        """The decoder's parameters.

        Args:
            tuned: defaults that go with the n-gram model.

        Raises:
            CommandError: a value is out of range.
        """
        options = {**_DEFAULTS.get(self.kind, {}), **dict(self.options)}
        if self.kind.endswith("superposed"):
            options = {**(DISTINCT_DEFAULTS if self.is_distinct else tuned), **options}
        try:
            params = GenerationParams(strategy=_STRATEGIES[self.kind], **options)
        except InvalidRequestError as error:
            raise CommandError(f"decoder {self.name!r}: {error}") from None
        if self.kind == "beam" and params.num_drafts < 2:
            raise CommandError(f"decoder {self.name!r}: beam needs num_drafts of at least 2; with 1 it is greedy.")
        return params


def parse_decoders(text: str, ngram: str, shared: Mapping[str, Sequence[Any]]) -> list[DecoderSpec]:
    """Decoders from `[NAME: ]KIND [option=value ...]`, for instance `plain: superposed alpha=0 ngram=none`.

    An option with several values, `k=1,3,5`, gives a decoder for each.

    Args:
        text: what was asked for; without a name it is called what it says.
        ngram: the n-gram model unless it names one.
        shared: values of options that it does not give itself.

    Raises:
        CommandError: it names no decoder, or an option that there is not, or it has several options of several values.
    """
    label, colon, rest = text.partition(": ")
    name, spec = (label.strip(), rest) if colon else (text.strip(), text)
    kind, *pairs = spec.split() or [""]
    if kind not in KINDS:
        raise CommandError(f"--decoder {text!r}: {kind!r} is no decoder; there are {', '.join(KINDS)}.")
    options = {key: list(values) for key, values in shared.items() if values}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key == "ngram" and value:
            ngram = value
            continue
        key = _LONG.get(key, key)
        if key not in _TYPES or not equals:
            raise CommandError(
                f"--decoder {text!r}: {pair!r} is not option=value with one of {', '.join(OPTION_NAMES)}."
            )
        try:
            options[key] = [_TYPES[key](item) for item in value.split(",")]
        except ValueError:
            raise CommandError(f"--decoder {text!r}: {pair!r} needs a number.") from None
    if kind == "greedy":
        options["num_drafts"] = [1]
    if not kind.startswith("nucleus"):
        options.pop("num_branches", None)
    return _expand(DecoderSpec(name, kind, ngram), options)


def _expand(base: DecoderSpec, options: Mapping[str, Sequence[Any]]) -> list[DecoderSpec]:
    """A decoder for each value of the option that has several."""
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
    # "superposed k=1,3" and "superposed" with -k 1 -k 3 give the same names.
    series = " ".join(word for word in base.name.split() if _LONG.get(word.partition("=")[0]) != option)
    return [
        _without_idle_ngram(
            replace(
                plain,
                name=f"{series} {option}={value}",
                options=(*plain.options, (option, value)),
                sweep=None if isinstance(value, str) else Sweep(series, option, float(value)),
            )
        )
        for value in options[option]
    ]


def _without_idle_ngram(spec: DecoderSpec) -> DecoderSpec:
    """With alpha 0, and outside Superposed Decoding, no n-gram model has a say: none need be loaded."""
    if spec.kind.endswith("superposed") and dict(spec.options).get("alpha", 0 if spec.is_distinct else None) != 0:
        return spec
    return replace(spec, ngram="none")
