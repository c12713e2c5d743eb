"""Decoding defaults: the engine parameters of requests that leave them open."""

from dataclasses import dataclass, fields, replace
from typing import Any

from superdraft.decoding.method.selection import RULES
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU, GenerationParams
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.server.settings import Settings

MIN_PROBABILITY = 0.01
"""With the selection "distinct", less probable drafts stop growing unless a request says otherwise."""

MAX_SHORT_TOKENS = 32
"""A request for more tokens wants a text rather than a suggestion: its best draft is not cut for being improbable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The engine parameters that a request sets, by the names of `GenerationParams`. None: it leaves this one open."""

    num_drafts: int
    max_tokens: int
    strategy: str | None = None
    selection: str | None = None
    alpha: float | None = None
    tau: float | None = None
    candidates_per_draft: int | None = None
    penalty: float | None = None
    max_branches: int | None = None
    min_probability: float | None = None
    min_draft_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    verify_top: int | None = None
    num_verified: int | None = None
    echo_logprobs: bool | None = None
    num_branches: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    reset_every: int | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    token_healing: bool | None = None
    corrections: bool | None = None
    single_line: bool | None = None
    trim: str | None = None
    min_score: float | None = None
    elastic: bool | None = None
    snapshots: bool | None = None

    def completed(self, *, strategy: str, selection: str | None, token_healing: bool) -> "Asked":
        """The same with these parameters where the request leaves them open."""
        return replace(
            self,
            strategy=self.strategy or strategy,
            selection=self.selection or selection,
            token_healing=token_healing if self.token_healing is None else self.token_healing,
        )


@dataclass(frozen=True, slots=True)
class DraftingDefaults:
    """What the server fills in.

    Attributes:
        selection: for requests that set none of the parameters of the paper's method; the others get "paper". Naming an
            n-gram model sets none of them.
        max_branches: with the selection "distinct".
        min_probability: with the selection "distinct".
        alpha: with the selection "paper".
        tau: with the selection "paper".
        candidates_per_draft: with the selection "paper", as tuned for the n-gram model; None: not tuned.
    """

    selection: str = "paper"
    max_branches: int = 1
    min_probability: float = 0.0
    alpha: float = DEFAULT_ALPHA
    tau: float = DEFAULT_TAU
    candidates_per_draft: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> "DraftingDefaults":
        """The defaults that the settings give."""
        return cls(settings.default_selection, settings.default_max_branches, MIN_PROBABILITY)

    def with_tuning(self, tuning: Tuning | None) -> "DraftingDefaults":
        """The defaults with what was tuned for an n-gram model; None: nothing was. It changes no selection."""
        if tuning is None:
            return self
        return replace(self, alpha=tuning.alpha, tau=tuning.tau, candidates_per_draft=tuning.candidates_per_draft)

    def num_candidates(self, num_drafts: int) -> int | None:
        """The default m; None: the engine's.

        The tuned m is used if it has at least two candidates per draft in the first step, where all drafts have the
        same parent.
        """
        tuned = self.candidates_per_draft
        return tuned if tuned is not None and tuned >= 2 * num_drafts else None

    def params(self, asked: Asked, *, asks_for_paper: bool = False, ngram_is_named: bool = False) -> GenerationParams:
        """The engine parameters of a request.

        Args:
            asked: the parameters that the request sets, the strategy among them.
            asks_for_paper: the request sets something that only the paper's method has, so its selection is "paper"
                unless it names another.
            ngram_is_named: the request names an n-gram model. The model then has a say with every selection.

        Raises:
            InvalidRequestError: a value is out of range, or two contradict each other.
        """
        selection = asked.selection or ("paper" if asks_for_paper else self.selection)
        if asked.strategy != "superposed":
            selection = "paper"
        rule = RULES[selection]
        defaults: dict[str, Any]
        if rule.divides:
            defaults = {
                "alpha": rule.named_alpha if ngram_is_named else rule.alpha,
                "tau": rule.tau,
                "max_branches": self.max_branches,
                "min_probability": self.min_probability,
                "elastic": True,
                "whole_best": asked.max_tokens > MAX_SHORT_TOKENS,
            }
        else:
            defaults = {
                "alpha": self.alpha,
                "tau": self.tau,
                "candidates_per_draft": self.num_candidates(asked.num_drafts),
            }
        named = {field.name: value for field in fields(asked) if (value := getattr(asked, field.name)) is not None}
        return GenerationParams(**{**defaults, **named, "selection": selection})
