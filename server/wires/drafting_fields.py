"""Fields of requests for drafts that the native and the OpenAI wire share, and the engine parameters made of them."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field

from superdraft.decoding.params import DEFAULT_STRATEGY, LEAST, MAX_SEED, MIN_SEED, RANGES, Strategy
from superdraft.server.drafting import Asked
from superdraft.server.settings import Selection
from superdraft.server.wires.common import Boolean, Integer, LogitBias, Number, Stop, WireRequest, bias_pairs

_PARAMETERS = frozenset(field.name for field in fields(Asked))

_SAMPLING = frozenset({"sample", "sample+superposed"})
_SUPERPOSING = frozenset({"superposed", "sample+superposed"})
_NOT_GREEDY = _SAMPLING | _SUPERPOSING
_USED_BY = {
    "num_drafts": _NOT_GREEDY,
    "n": _NOT_GREEDY,
    "best_of": _NOT_GREEDY,
    "alpha": _SUPERPOSING,
    "tau": _SUPERPOSING,
    "candidates_per_draft": _SUPERPOSING,
    "ngram_model": _SUPERPOSING,
    "temperature": _SAMPLING,
    "top_p": _SAMPLING,
}


def bounds(parameter: str) -> Any:
    """The constraints of a field that becomes this engine parameter."""
    if parameter in LEAST:
        return Field(ge=LEAST[parameter])
    least, most = RANGES[parameter]
    return Field(ge=least, le=most)


class DraftingFields(WireRequest):
    """The shared fields. One that has the name of an engine parameter becomes that parameter, unless it is null."""

    model: str | None = Field(default=None, description="Absent: the served model.")
    max_tokens: Annotated[Integer, bounds("max_tokens")] = Field(
        default=16, description="Maximum number of new tokens per draft."
    )
    stop: Stop = Field(default=(), description="A draft ends before the first of these strings.")
    strategy: Strategy = Field(
        default=DEFAULT_STRATEGY,
        description="How drafts are decoded; absent: the strategy of the model alias, else superposed.",
    )
    selection: Selection | None = Field(
        default=None,
        description="Rule by which superposed decoding keeps drafts; absent: that of the model alias, else the "
        "server's default.",
    )
    max_branches: Annotated[Integer | None, bounds("max_branches")] = Field(
        default=None,
        description="Most model rows for the drafts, with selection distinct; absent: the server's default.",
    )
    min_probability: Annotated[Number | None, bounds("min_probability")] = Field(
        default=None,
        description="Drafts less probable than this stop growing, with selection distinct; absent: the server's "
        "default.",
    )
    elastic: Boolean | None = Field(
        default=None,
        description="Whether drafts may end sooner, and fewer of them grow, while the server has much to do; absent: "
        "true with selection distinct.",
    )
    temperature: Annotated[Number, bounds("temperature")] = Field(
        default=1.0, description="For the sampling strategies; 0 takes the most probable token."
    )
    top_p: Annotated[Number, bounds("top_p")] = Field(
        default=1.0, description="Probability of the nucleus, for the sampling strategies."
    )
    seed: Integer | None = Field(
        default=None, ge=MIN_SEED, le=MAX_SEED, description="For sampling and resets; absent: a new one each time."
    )
    logit_bias: LogitBias = Field(
        default={}, description="{token id: number added to the token's logit}; -100 forbids the token."
    )
    frequency_penalty: Annotated[Number, bounds("frequency_penalty")] = Field(
        default=0.0, description="Subtracted from a token's logit for each time the draft contains it."
    )
    presence_penalty: Annotated[Number, bounds("presence_penalty")] = Field(
        default=0.0, description="Subtracted from a token's logit once if the draft contains it."
    )
    token_healing: Boolean | None = Field(
        default=None,
        description="Drafts continue the typed text whatever tokens it ends with, so that a half-typed word is "
        "completed. False: they continue the prompt's own tokens. Text prompts only; absent: the server's default.",
    )
    single_line: Boolean = Field(default=False, description="A draft ends before its first line break.")

    def asked(self, *, is_text: bool, **own: Any) -> Asked:
        """The engine parameters that the request sets.

        Args:
            is_text: the prompt is text; there is nothing to heal in token ids.
            own: parameters that the wire decides; they win over fields of the same name.
        """
        named = {name: getattr(self, name) for name in type(self).model_fields if name in _PARAMETERS}
        named["logit_bias"] = bias_pairs(self.logit_bias)
        if "strategy" not in self.model_fields_set:
            named["strategy"] = None
        if not is_text:
            named["token_healing"] = False
        return Asked(**(named | own))

    def strategy_warnings(self, strategy: Strategy) -> list[str]:
        """A warning for each field that the request sets although its strategy does not use it.

        Such fields are not errors, since clients send them by habit. Values that change nothing give no warning.

        Args:
            strategy: the one that the request runs under.
        """
        unused = [
            name
            for name, strategies in _USED_BY.items()
            if strategy not in strategies and name in self.model_fields_set and not self._is_neutral(name)
        ]
        uses_seed = strategy in _SAMPLING or getattr(self, "reset_every", None) is not None
        if self.seed is not None and not uses_seed:
            unused.append("seed")
        return [f"{name} has no effect with strategy {strategy}." for name in unused]

    def _is_neutral(self, name: str) -> bool:
        """Whether the value asks for something that the strategy does anyway."""
        value = getattr(self, name)
        if name in ("num_drafts", "n", "best_of"):
            return bool(value == 1)
        if name == "alpha":
            return bool(value == 0)
        return bool(value == type(self).model_fields[name].default)
