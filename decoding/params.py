"""What a caller may ask of one generation, checked once, then frozen."""

from dataclasses import dataclass

from superdraft.decoding.errors import InvalidRequestError

DEFAULT_ALPHA = 0.54
DEFAULT_TAU = 0.06
SELECTIONS = ("paper",)


def _check(ok: bool, param: str, value: object, limit: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{param} must be {limit}, got {value!r}.", param=param)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """Parameters of one generation. Symbols are those of the paper (Shen et al., 2024, sections 3 and 4).

    Attributes:
        num_drafts: k, the drafts to return.
        max_tokens: G, the new tokens of each draft.
        alpha: weight of the n-gram model in the interpolation, 0 (language model alone) to 1 (n-gram model alone).
        tau: temperature of the language model's distribution before it is interpolated; > 0.
        candidates_per_draft: m, the language model's most probable tokens that every draft may go on with;
            None means k squared, the paper's published 9 for k = 3.
        penalty: subtracted from the score of a draft whose n-gram model supports none of the m tokens (eq. 7).
        selection: the rule that picks the k drafts a step keeps.
        stop: a draft ends before the first of these strings.
        verify_top: None: no verification. An integer n: one more pass over the finished drafts gives each token's exact
            log-probability and its n most probable alternatives.
        echo_logprobs: with `verify_top`: the prompt's own log-probabilities too.
    """

    num_drafts: int = 3
    max_tokens: int = 16
    alpha: float = DEFAULT_ALPHA
    tau: float = DEFAULT_TAU
    candidates_per_draft: int | None = None
    penalty: float = 200.0
    selection: str = "paper"
    stop: tuple[str, ...] = ()
    verify_top: int | None = None
    echo_logprobs: bool = False

    def __post_init__(self) -> None:
        k, m = self.num_drafts, self.candidates_per_draft
        _check(_is_int(k) and k >= 1, "num_drafts", k, "an integer of at least 1")
        _check(
            _is_int(self.max_tokens) and self.max_tokens >= 0, "max_tokens", self.max_tokens, "an integer of at least 0"
        )
        _check(_is_number(self.alpha) and 0 <= self.alpha <= 1, "alpha", self.alpha, "a number from 0 to 1")
        _check(_is_number(self.tau) and 0.001 <= self.tau <= 100, "tau", self.tau, "a number from 0.001 to 100")
        _check(m is None or (_is_int(m) and m >= 1), "candidates_per_draft", m, "an integer of at least 1, or null")
        _check(_is_number(self.penalty) and 0 <= self.penalty <= 1e6, "penalty", self.penalty, "a number from 0 to 1e6")
        _check(self.selection in SELECTIONS, "selection", self.selection, f"one of {', '.join(SELECTIONS)}")
        _check(all(isinstance(s, str) and s for s in self.stop), "stop", list(self.stop), "strings that are not empty")
        top = self.verify_top
        _check(top is None or (_is_int(top) and 0 <= top <= 20), "logprobs", top, "an integer from 0 to 20, or null")

    @property
    def num_candidates(self) -> int:
        """m, with the default of k squared filled in."""
        return self.num_drafts**2 if self.candidates_per_draft is None else self.candidates_per_draft
