"""Decoders by their names on the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import ValidationError

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.params import GenerationParams
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
}
KINDS = tuple(_FIELDS)
_WITH_NGRAMS = ("served", "paper", "nucleus+superposed")

# Short names of parameters, as in the paper; all others keep their names.
_LONG = {
    "k": "num_drafts",
    "m": "candidates_per_draft",
    "n": "max_tokens",
    "branches": "num_branches",
    "healing": "token_healing",
}
_OPTIONS = sorted({field.name for field in fields(GenerationParams)} & set(DraftsRequest.model_fields) - {"seed"})
OPTION_NAMES = ("ngram", *_LONG, *_OPTIONS)


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """One decoder of a comparison.

    Attributes:
        name: name in reports.
        kind: one of `KINDS`.
        ngram: n-gram model: "auto" (the server's default), "none", or the name of a model or mixture.
        options: fields of the request that are set; the server fills in the others.
        series: name that decoders with different values of one option share; empty: the decoder is none of these.
    """

    name: str
    kind: str
    ngram: str
    options: tuple[tuple[str, Any], ...] = ()
    series: str = ""

    def params(self, drafting: DraftingDefaults, settings: Settings) -> GenerationParams:
        """The decoder's parameters, made by the server's own code from the request that a client would send.

        Args:
            drafting: the server's defaults for the decoder's n-gram model.
            settings: settings of the server.

        Raises:
            CommandError: a value is out of range, or two values contradict each other.
        """
        named = {} if self.ngram == "auto" else {"ngram_model": None if self.ngram == "none" else self.ngram}
        asked = {**_FIELDS[self.kind], **named, **dict(self.options)}
        try:
            body = DraftsRequest(prompt="", **asked)
            return generation_params(body, drafting, token_healing=settings.token_healing)
        except ValidationError as error:
            raise CommandError(f"decoder {self.name!r}: {invalid_request(error)}") from None
        except InvalidRequestError as error:
            raise CommandError(f"decoder {self.name!r}: {error}") from None


def parse_decoders(text: str, ngram: str, shared: Mapping[str, Any]) -> list[DecoderSpec]:
    """Decoders from `[NAME: ]KIND [option=value ...]`, such as `unhealed: served healing=off`.

    An option with several values, such as `k=1,3,5`, makes a decoder for each value.

    Args:
        text: the text; without a name, the decoder is named after the text.
        ngram: n-gram model unless the text names one.
        shared: options that the text need not set.

    Raises:
        CommandError: there is no such decoder or option, or several options have several values.
    """
    label, colon, rest = text.partition(": ")
    name, spec = (label.strip(), rest) if colon else (text.strip(), text)
    kind, *pairs = spec.split() or [""]
    if kind not in KINDS:
        raise CommandError(f"--decoder {text!r}: {kind!r} is not a decoder; choose one of {', '.join(KINDS)}.")
    options = {key: [value] for key, value in shared.items()}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key == "ngram" and value:
            ngram = value
            continue
        key = _LONG.get(key, key)
        if key not in _OPTIONS or not value:
            raise CommandError(
                f"--decoder {text!r}: {pair!r} is not option=value with one of {', '.join(OPTION_NAMES)}."
            )
        options[key] = [_value_of(item) for item in value.split(",")]
    if kind == "greedy":
        options["num_drafts"] = [1]
    return _expand(DecoderSpec(name, kind, ngram if kind in _WITH_NGRAMS else "none"), options)


def _value_of(text: str) -> Any:
    """A number, True for "on", False for "off", or else the text; the request's schema checks which may be there."""
    if text in ("on", "off"):
        return text == "on"
    try:
        return json.loads(text)
    except ValueError:
        return text


def _expand(base: DecoderSpec, options: Mapping[str, Sequence[Any]]) -> list[DecoderSpec]:
    """One spec per value of the option that has several."""
    swept = [key for key, values in options.items() if len(values) > 1]
    if len(swept) > 1:
        raise CommandError(
            f"decoder {base.name!r}: only one option may have several values, got {' and '.join(swept)}."
        )
    plain = replace(base, options=tuple((key, values[0]) for key, values in options.items() if key not in swept))
    if not swept:
        return [plain]
    (option,) = swept
    series = " ".join(word for word in base.name.split() if _LONG.get(key := word.partition("=")[0], key) != option)
    return [
        replace(plain, name=f"{series} {option}={value}", options=(*plain.options, (option, value)), series=series)
        for value in options[option]
    ]
