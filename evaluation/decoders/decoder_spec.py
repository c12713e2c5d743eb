"""Decoders by their names on the command line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
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
        ngram: n-gram model: "auto" (the server's default), "none", or the name of a model.
        options: fields of the request that are set; the server fills in the others.
    """

    name: str
    kind: str
    ngram: str
    options: tuple[tuple[str, Any], ...] = ()

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


def parse_decoder(text: str, ngram: str, shared: Mapping[str, Any]) -> DecoderSpec:
    """A decoder from `[NAME: ]KIND [option=value ...]`, such as `unhealed: served healing=off`.

    Args:
        text: the text; without a name, the decoder is named after the text.
        ngram: n-gram model unless the text names one.
        shared: options that the text need not set.

    Raises:
        CommandError: there is no such decoder or option.
    """
    label, colon, rest = text.partition(": ")
    name, spec = (label.strip(), rest) if colon else (text.strip(), text)
    kind, *pairs = spec.split() or [""]
    if kind not in KINDS:
        raise CommandError(f"--decoder {text!r}: {kind!r} is not a decoder; choose one of {', '.join(KINDS)}.")
    options = dict(shared)
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
        options[key] = _value_of(value)
    if kind == "greedy":
        options["num_drafts"] = 1
    return DecoderSpec(name, kind, ngram if kind in _WITH_NGRAMS else "none", tuple(options.items()))


def _value_of(text: str) -> Any:
    """A number, True for "on", False for "off", or else the text; the request's schema checks which may be there."""
    if text in ("on", "off"):
        return text == "on"
    try:
        return json.loads(text)
    except ValueError:
        return text
