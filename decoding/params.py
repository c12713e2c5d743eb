"""What a caller may ask of one generation, checked once, then frozen."""

from dataclasses import dataclass

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.selection import PAPER, RULES, SelectionRule

DEFAULT_ALPHA = PAPER.alpha
DEFAULT_TAU = PAPER.tau
SELECTIONS = tuple(RULES)
DEFAULT_MIN_DRAFT_TOKENS = 4
STRATEGIES = ("superposed", "sample", "greedy", "sample+superposed")
TRIMS = ("none", "word", "sentence")


def _check(ok: bool, param: str, value: object, limit: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{param} must be {limit}, got {value!r}.", param=param)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """Parameters of one generation. Symbols are those of the paper (Shen et al., 2024).

    Attributes:
        num_drafts: k, the drafts to return.
        max_tokens: G, the new tokens of each draft.
        alpha: weight of the n-gram model in the interpolation, 0 (language model alone) to 1 (n-gram model alone).
        tau: temperature of the language model's distribution before it is interpolated; > 0.
        candidates_per_draft: m, the language model's most probable tokens that every draft may go on with;
            None means k squared, as in the paper's text; its published parameter files use about 3k.
        penalty: subtracted from the score of a draft whose n-gram model supports none of the m tokens (eq. 7).
        selection: the rule that picks the k drafts a step keeps. "paper": the k best of all children. "distinct": the k
            most probable first tokens begin one draft each, and each draft goes on with its own best child.
        max_branches: superposed and distinct: rows that the drafts of a request may take after the first token. The
            most probable drafts get a row of their own, where nothing is superposed; the others share the last row.
        min_probability: superposed and distinct: a draft of `min_draft_tokens` or more grows no further when the
            language model's probability of all of it is lower; 0: every draft gets `max_tokens`.
        min_draft_tokens: with `min_probability`: shorter drafts are cheaper, and harder to read as a suggestion.
        whole_best: with `min_probability`: the row of the most probable draft goes on to `max_tokens` all the same.
        stop: a draft ends before the first of these strings.
        verify_top: None: no verification. An integer n: one more pass over the finished drafts gives each token's exact
            log-probability and its n most probable alternatives.
        num_verified: with `verify_top`: how many drafts are verified, the best ones; None: all.
        echo_logprobs: with `verify_top`: the prompt's own log-probabilities too.
        strategy: "superposed": one branch of k drafts. "sample": `num_branches` nucleus samples, one row each.
            "greedy": one draft, the language model alone. "sample+superposed": `num_branches` nucleus samples of a
            few tokens, then k superposed drafts from each (section 4.5).
        num_branches: n, rows of the sampling strategies; None: as many as `num_drafts`.
        temperature: of sampling; 0 takes the most probable token.
        top_p: of sampling: the smallest set of tokens with this probability.
        seed: of sampling and of resets; None: another one each time.
        reset_every: superposed: every s steps draw one draft by its probability and go on from it alone (section 5.3).
        logit_bias: (token id, what is added to its logit) before the cut to m candidates; -100 or less forbids a token.
        frequency_penalty: taken from a token's logit for each time the draft has it already.
        presence_penalty: taken from a token's logit once if the draft has it already.
        token_healing: drafts of a text prompt follow the probabilities of how the typed text goes on, whatever tokens
            its end has, so that a half typed word is finished.
        single_line: a draft ends before its first line break.
        trim: "word" cuts a last word that may be unfinished, "sentence" cuts after the first whole sentence.
        min_score: drafts with a lower score are left out; the answer may then be empty.
        snapshots: report the drafts after every step, not only at the end.
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
    strategy: str = "superposed"
    num_branches: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    reset_every: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    token_healing: bool = False
    single_line: bool = False
    trim: str = "none"
    min_score: float | None = None
    snapshots: bool = False

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
        num = self.num_verified
        _check(num is None or (_is_int(num) and num >= 1), "num_verified", num, "an integer of at least 1, or null")
        self._check_sampling()
        self._check_selection()
        _check(self.trim in TRIMS, "trim", self.trim, f"one of {', '.join(TRIMS)}")
        low = self.min_score
        _check(low is None or (_is_number(low) and low <= 0), "min_score", low, "a number of at most 0, or null")

    def _check_sampling(self) -> None:
        n, reset, seed = self.num_branches, self.reset_every, self.seed
        _check(self.strategy in STRATEGIES, "strategy", self.strategy, f"one of {', '.join(STRATEGIES)}")
        _check(n is None or (_is_int(n) and n >= 1), "num_branches", n, "an integer of at least 1, or null")
        _check(
            n in (None, 1) or self.strategy.startswith("sample"), "num_branches", n, f"1 with strategy {self.strategy}"
        )
        _check(_is_within(self.temperature, 0, 2), "temperature", self.temperature, "a number from 0 to 2")
        _check(_is_within(self.top_p, 1e-6, 1), "top_p", self.top_p, "a number from 0.000001 to 1")
        _check(seed is None or (_is_int(seed) and abs(seed) < 2**63), "seed", seed, "an integer of 64 bits, or null")
        _check(
            reset is None or (_is_int(reset) and reset >= 1), "reset_every", reset, "an integer of at least 1, or null"
        )
        _check(
            reset is None or self.strategy == "superposed", "reset_every", reset, f"null with strategy {self.strategy}"
        )
        for name in ("frequency_penalty", "presence_penalty"):
            _check(_is_within(getattr(self, name), -2, 2), name, getattr(self, name), "a number from -2 to 2")
        for token_id, bias in self.logit_bias:
            _check(_is_int(token_id) and token_id >= 0, "logit_bias", token_id, "keyed by token ids")
            _check(_is_within(bias, -100, 100), "logit_bias", bias, "a number from -100 to 100 for each token id")

    def _check_selection(self) -> None:
        """Rows of their own and early ends go with the strategy "superposed" and a rule that divides rows."""
        branches, low, reset = self.max_branches, self.min_probability, self.reset_every
        _check(_is_int(branches) and branches >= 1, "max_branches", branches, "an integer of at least 1")
        _check(_is_within(low, 0, 1), "min_probability", low, "a number from 0 to 1")
        least = self.min_draft_tokens
        _check(_is_int(least) and least >= 1, "min_draft_tokens", least, "an integer of at least 1")
        if self.divides:
            _check(
                reset is None, "reset_every", reset, f"null with selection {self.selection}; use selection {PAPER.name}"
            )
        else:
            chosen = f"strategy {self.strategy} and selection {self.selection}"
            _check(branches == 1, "max_branches", branches, f"1 with {chosen}")
            _check(low == 0, "min_probability", low, f"0 with {chosen}")

    @property
    def rule(self) -> SelectionRule:
        """The selection rule."""
        return RULES[self.selection]

    @property
    def ranking_rule(self) -> SelectionRule:
        """The rule whose score ranks the drafts: with the sampling strategies, the paper's."""
        return self.rule if self.strategy == "superposed" else PAPER

    @property
    def divides(self) -> bool:
        """Whether the drafts of a request may be divided among several rows."""
        return self.strategy == "superposed" and self.rule.divides

    @property
    def sampling_temperature(self) -> float:
        """That of the next sampled token; "greedy" is sampling at temperature 0."""
        return 0.0 if self.strategy == "greedy" else self.temperature

    @property
    def has_penalties(self) -> bool:
        """Whether a draft's own tokens change its logits."""
        return bool(self.frequency_penalty or self.presence_penalty)

    @property
    def uses_ngrams(self) -> bool:
        """Whether an n-gram model has a say."""
        return self.alpha > 0 and self.strategy.endswith("superposed")

    @property
    def num_rows(self) -> int:
        """Branches at most, that is model rows of a decode step and KV-cache slots."""
        if not self.strategy.startswith("sample"):
            return min(self.max_branches, self.num_drafts)
        return self.num_drafts if self.num_branches is None else self.num_branches

    @property
    def num_shown(self) -> int:
        """Drafts of an answer, at most."""
        return self.num_rows * self.drafts_per_branch if self.strategy.startswith("sample") else self.drafts_per_branch

    @property
    def drafts_per_branch(self) -> int:
        """How many drafts share a branch (k)."""
        return self.num_drafts if self.strategy.endswith("superposed") else 1

    @property
    def num_candidates(self) -> int:
        """m, with the default of k squared filled in."""
        return self.drafts_per_branch**2 if self.candidates_per_draft is None else self.candidates_per_draft
