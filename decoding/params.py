"""Parameters of one generation, checked once, then frozen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.selection import PAPER, RULES, SelectionRule

DEFAULT_ALPHA = PAPER.alpha
DEFAULT_TAU = PAPER.tau
SELECTIONS = tuple(RULES)
DEFAULT_MIN_DRAFT_TOKENS = 4
Strategy = Literal["superposed", "sample", "greedy", "sample+superposed"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DEFAULT_STRATEGY: Strategy = "superposed"
Trim = Literal["none", "word", "sentence"]
TRIMS: tuple[Trim, ...] = get_args(Trim)

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "alpha": (0, 1),
    "tau": (0.001, 100),
    "penalty": (0, 1e6),
    "min_probability": (0, 1),
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
"""The least and the largest value of each parameter that is a number."""

LEAST: Final[Mapping[str, int]] = {
    "num_drafts": 1,
    "max_tokens": 0,
    "candidates_per_draft": 1,
    "max_branches": 1,
    "min_draft_tokens": 1,
    "num_verified": 1,
    "num_branches": 1,
    "reset_every": 1,
}
"""The least value of each parameter that is a count."""

_OPTIONAL = frozenset({"candidates_per_draft", "num_verified", "num_branches", "reset_every"})
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
MAX_BIAS = 100


def _check(ok: bool, param: str, value: object, limit: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{param} must be {limit}, got {value!r}.", param=param)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(number: float) -> str:
    return f"{number:f}".rstrip("0").rstrip(".")


def _is_within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """Parameters of one generation. Symbols are those of the paper (Shen et al., 2024).

    Attributes:
        num_drafts: k, the number of drafts to return.
        max_tokens: G, the most new tokens per draft. 0 runs the prompt and drafts nothing.
        alpha: weight of the n-gram model in the interpolation (eq. 6), from 0 (language model alone) to 1 (n-gram model
            alone).
        tau: temperature of the language model's distribution before the interpolation, above 0.
        candidates_per_draft: m, the number of most probable next tokens from which every draft's children are made.
            None means k squared, as in the paper's text; the paper's published parameter files use about 3k.
        penalty: subtracted from the scores of a draft's children if the n-gram model supports none of the m tokens
            after that draft (eq. 7).
        selection: the rule that selects the drafts that a step keeps. "paper" keeps the k best of all children.
            "distinct" begins one draft with each of the k most probable first tokens and continues each draft with its
            own best child.
        max_branches: the most model rows that the drafts of a request take after the first token. Above 1 only with
            strategy "superposed" and selection "distinct". The most probable drafts get a row each, where nothing is
            superposed; the others share the last row.
        min_probability: a draft of at least `min_draft_tokens` tokens ends when the language model's probability of the
            whole draft is lower. 0 lets every draft reach `max_tokens`. Above 0 only with strategy "superposed" and
            selection "distinct".
        min_draft_tokens: no draft ends because of `min_probability` before it has this many tokens. Lower values save
            model rows; the drafts are then shorter and harder to read as suggestions.
        whole_best: the row of the most probable draft is exempt from `min_probability` and runs to `max_tokens`.
        stop: stop strings. A draft ends before the first of them in its text.
        verify_top: an integer n runs one more pass over the finished drafts, which gives each token's exact
            log-probability and its n most probable alternatives. None runs no such pass.
        num_verified: how many of the best drafts the pass of `verify_top` covers. None means all.
        echo_logprobs: whether the pass of `verify_top` also reports the log-probabilities of the prompt's own tokens.
        strategy: how the next tokens are chosen. "superposed" writes k drafts on one branch. "sample" draws
            `num_branches` nucleus samples, one row each. "greedy" writes one draft with the language model alone.
            "sample+superposed" draws `num_branches` nucleus samples of a few tokens, then writes k superposed drafts
            from each (section 4.5).
        num_branches: n, the number of branches of the strategies that sample. None means `num_drafts`.
        temperature: temperature of sampling, from 0 to 2. 0 takes the most probable token.
        top_p: probability mass of the nucleus. Sampling uses the smallest set of tokens that reaches it.
        seed: seed of sampling and of the draws of `reset_every`. None gives different random numbers each time.
        reset_every: s; every s steps one draft is drawn by its probability and all drafts continue from it (section
            5.3). Only with strategy "superposed" and selection "paper". None means no resets.
        logit_bias: pairs (token id, value added to the token's logit), applied before the cut to m candidates. -100 or
            less forbids the token.
        frequency_penalty: subtracted from a token's logit for each time the draft already has the token.
        presence_penalty: subtracted from a token's logit once if the draft already has the token.
        token_healing: whether drafts of a text prompt follow the probabilities of the typed text instead of those of
            its tokens, so that a half-typed word is completed.
        corrections: whether drafts may replace the word at the prompt's end if it was probably mistyped. Only with
            token healing.
        single_line: whether a draft ends before its first line break.
        trim: "word" removes a last word that may be unfinished, "sentence" removes everything after the first whole
            sentence, "none" removes nothing.
        min_score: drafts with a lower score are left out, so the answer may be empty. None keeps all.
        elastic: whether drafts may end sooner, and fewer of them grow, while the engine has much to do
            (`decoding.engine.load`). Only with strategy "superposed" and a selection that divides rows.
        snapshots: whether to report the drafts after every step, not only at the end.
    """

    num_drafts: int = 3
    max_tokens: int = 16
    alpha: float = DEFAULT_ALPHA
    tau: float = DEFAULT_TAU
    candidates_per_draft: int | None = None
    penalty: float = 200.0
    selection: str = "paper"
    max_branches: int = 1
    min_probability: float = 0.0
    min_draft_tokens: int = DEFAULT_MIN_DRAFT_TOKENS
    whole_best: bool = False
    stop: tuple[str, ...] = ()
    verify_top: int | None = None
    num_verified: int | None = None
    echo_logprobs: bool = False
    strategy: Strategy = DEFAULT_STRATEGY
    num_branches: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    reset_every: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    token_healing: bool = False
    corrections: bool = False
    single_line: bool = False
    trim: Trim = "none"
    min_score: float | None = None
    elastic: bool = False
    snapshots: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            if not _is_within(value := getattr(self, name), low, high):
                _check(False, name, value, f"a number from {_plain(low)} to {_plain(high)}")
        for name, least in LEAST.items():
            value, is_optional = getattr(self, name), name in _OPTIONAL
            if not (_is_int(value) and value >= least) and not (value is None and is_optional):
                _check(False, name, value, f"an integer of at least {least}{', or null' if is_optional else ''}")
        for name, choices in (("selection", tuple(RULES)), ("strategy", STRATEGIES), ("trim", TRIMS)):
            value = getattr(self, name)
            _check(value in choices, name, value, f"one of {', '.join(choices)}")
        self._check_drafts()
        self._check_strategy()
        self._check_selection()

    def _check_drafts(self) -> None:
        _check(all(isinstance(s, str) and s for s in self.stop), "stop", list(self.stop), "strings that are not empty")
        top, low, seed = self.verify_top, self.min_score, self.seed
        _check(top is None or (_is_int(top) and 0 <= top <= 20), "logprobs", top, "an integer from 0 to 20, or null")
        _check(low is None or _is_within(low, -math.inf, 0), "min_score", low, "a number of at most 0, or null")
        is_seed = seed is None or (_is_int(seed) and MIN_SEED <= seed <= MAX_SEED)
        _check(is_seed, "seed", seed, "an integer of 64 bits, or null")
        for token_id, bias in self.logit_bias:
            _check(_is_int(token_id) and token_id >= 0, "logit_bias", token_id, "keyed by token ids")
            is_bias = _is_within(bias, -MAX_BIAS, MAX_BIAS)
            _check(is_bias, "logit_bias", bias, f"a number from {-MAX_BIAS} to {MAX_BIAS} for each token id")

    def _check_strategy(self) -> None:
        n, reset, strategy = self.num_branches, self.reset_every, self.strategy
        _check(n in (None, 1) or self.samples, "num_branches", n, f"1 with strategy {strategy}")
        _check(reset is None or strategy == "superposed", "reset_every", reset, f"null with strategy {strategy}")

    def _check_selection(self) -> None:
        """Check that `max_branches` and `min_probability` are used only with a rule that divides rows."""
        branches, low, reset = self.max_branches, self.min_probability, self.reset_every
        if self.divides:
            _check(
                reset is None, "reset_every", reset, f"null with selection {self.selection}; use selection {PAPER.name}"
            )
        else:
            chosen = f"selection {self.selection}" if self.strategy == "superposed" else f"strategy {self.strategy}"
            _check(branches == 1, "max_branches", branches, f"1 with {chosen}")
            _check(low == 0, "min_probability", low, f"0 with {chosen}")
            _check(not self.elastic, "elastic", self.elastic, f"false with {chosen}")

    @property
    def samples(self) -> bool:
        """Whether branches begin with nucleus samples, `num_branches` of them."""
        return self.strategy in ("sample", "sample+superposed")

    @property
    def superposes(self) -> bool:
        """Whether drafts share rows."""
        return self.strategy in ("superposed", "sample+superposed")

    @property
    def rule(self) -> SelectionRule:
        """The selection rule."""
        return RULES[self.selection]

    @property
    def ranking_rule(self) -> SelectionRule:
        """The rule whose score ranks the drafts. It is the paper's unless the strategy is "superposed"."""
        return self.rule if self.strategy == "superposed" else PAPER

    @property
    def divides(self) -> bool:
        """Whether the drafts of the request may be divided among several rows."""
        return self.strategy == "superposed" and self.rule.divides

    @property
    def scores_are_probabilities(self) -> bool:
        """Whether exp(score) is the probability of a draft's first word."""
        return self.ranking_rule.scores_are_probabilities

    @property
    def sampling_temperature(self) -> float:
        """The temperature of the next sampled token. The strategy "greedy" samples at temperature 0."""
        return 0.0 if self.strategy == "greedy" else self.temperature

    @property
    def has_penalties(self) -> bool:
        """Whether repetition penalties change the logits."""
        return bool(self.frequency_penalty or self.presence_penalty)

    @property
    def uses_ngrams(self) -> bool:
        """Whether an n-gram model takes part in the scores."""
        return self.alpha > 0 and self.superposes

    @property
    def num_rows(self) -> int:
        """The most branches of the request, that is, model rows per decode step."""
        if not self.samples:
            return min(self.max_branches, self.num_drafts)
        return self.num_drafts if self.num_branches is None else self.num_branches

    @property
    def least_work(self) -> tuple[int, int]:
        """Rows, and tokens per draft, that the request gets in any case: all, unless it is elastic."""
        if not self.elastic:
            return self.num_rows, self.max_tokens
        return 1, min(self.max_tokens, self.min_draft_tokens)

    @property
    def num_shown(self) -> int:
        """The most drafts of the answer."""
        return self.num_rows * self.drafts_per_branch if self.samples else self.drafts_per_branch

    @property
    def drafts_per_branch(self) -> int:
        """The most drafts that share a branch: k, or 1 for "sample" and "greedy"."""
        return self.num_drafts if self.superposes else 1

    @property
    def num_candidates(self) -> int:
        """m, with the default of k squared filled in."""
        return self.drafts_per_branch**2 if self.candidates_per_draft is None else self.candidates_per_draft
