"""What in a request has no effect under its strategy. Such fields are not errors: clients send them by habit."""

from superdraft.server.wires.native.schemas import DraftsRequest
from superdraft.server.wires.openai.schemas import CompletionRequest

SAMPLING = frozenset({"sample", "sample+superposed"})
_SUPERPOSING = frozenset({"superposed", "sample+superposed"})
_NOT_GREEDY = SAMPLING | _SUPERPOSING
_USED_BY = {
    "num_drafts": _NOT_GREEDY,
    "n": _NOT_GREEDY,
    "best_of": _NOT_GREEDY,
    "alpha": _SUPERPOSING,
    "tau": _SUPERPOSING,
    "candidates_per_draft": _SUPERPOSING,
    "ngram_model": _SUPERPOSING,
    "temperature": SAMPLING,
    "top_p": SAMPLING,
}


def strategy_warnings(body: DraftsRequest | CompletionRequest) -> list[str]:
    """A warning for each field that the request sets, to another value than its default, in vain."""
    in_vain = [
        name
        for name, strategies in _USED_BY.items()
        if body.strategy not in strategies and name in body.model_fields_set and not _is_neutral(body, name)
    ]
    uses_seed = body.strategy in SAMPLING or getattr(body, "reset_every", None) is not None
    if body.seed is not None and not uses_seed:
        in_vain.append("seed")
    return [f"{name} has no effect with strategy {body.strategy}." for name in in_vain]


def _is_neutral(body: DraftsRequest | CompletionRequest, name: str) -> bool:
    """The value asks for nothing that the strategy does not do anyway."""
    value = getattr(body, name)
    if name in ("num_drafts", "n", "best_of"):
        return bool(value == 1)
    if name == "alpha":
        return bool(value == 0)
    return bool(value == type(body).model_fields[name].default)
