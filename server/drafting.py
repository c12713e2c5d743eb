"""How drafts are decoded for requests that don't say, or say a part of it."""

from dataclasses import dataclass, replace
from typing import Any

from superdraft.decoding.method.selection import RULES
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.server.settings import Settings

MAX_SHORT_TOKENS = 32
"""Who asks for more wants a text and no suggestion: the best draft of it is not cut short for being improbable."""


@dataclass(frozen=True, slots=True)
class DraftingDefaults:
    """What the server fills in.

    Attributes:
        selection: of requests that set nothing of the paper's method; the others get "paper".
        max_branches: with the selection "distinct".
        min_probability: likewise.
        alpha: with the selection "paper".
        tau: likewise.
        candidates_per_draft: likewise, as tuned for the n-gram model; None: it was not tuned.
    """

    selection: str = "paper"
    max_branches: int = 1
    min_probability: float = 0.0
    alpha: float = DEFAULT_ALPHA
    tau: float = DEFAULT_TAU
    candidates_per_draft: int | None = None

    @classmethod
    def of(
        cls, settings: Settings, num_slots: int, alpha: float, tau: float, candidates_per_draft: int | None
    ) -> "DraftingDefaults":
        """What the settings and the default n-gram model's tuning come to.

        An operator who set an n-gram model's weight, or tuned one, wants it to have a say: drafts are then the paper's.
        """
        uses_ngrams = settings.default_alpha is not None or candidates_per_draft is not None
        return cls(
            selection=settings.default_selection or ("paper" if uses_ngrams else "distinct"),
            max_branches=min(settings.default_max_branches, num_slots),
            min_probability=settings.default_min_probability,
            alpha=alpha,
            tau=tau,
            candidates_per_draft=candidates_per_draft,
        )

    def with_tuning(self, settings: Settings, tuning: Tuning | None) -> "DraftingDefaults":
        """The same for a request that names an n-gram model with this tuning; None: it names none, or an untuned one.

        The operator's own settings win over what was tuned.
        """
        if tuning is None:
            return self
        alpha, tau = settings.default_alpha, settings.default_tau
        return replace(
            self,
            alpha=tuning.alpha if alpha is None else alpha,
            tau=tuning.tau if tau is None else tau,
            candidates_per_draft=tuning.candidates_per_draft,
        )

    def num_candidates(self, num_drafts: int) -> int | None:
        """The m of a request that doesn't say; None: the engine's default.

        The tuned one as long as the first step, where all drafts have one parent, has enough of them: two a draft.
        """
        tuned = self.candidates_per_draft
        return tuned if tuned is not None and tuned >= 2 * num_drafts else None

    def fill(self, *, strategy: str, num_drafts: int, max_tokens: int, **asked: Any) -> dict[str, Any]:
        """Those fields of `GenerationParams` that the selection decides.

        Args:
            strategy: as settled for the request.
            num_drafts: k.
            max_tokens: of each draft.
            asked: what the request says of `selection`, `max_branches`, `min_probability`, `alpha`, `tau`,
                `candidates_per_draft` and `reset_every`; None: nothing. `ngram_model`: which one it names; None: it
                leaves that to the server, or wants none.
        """
        names = ("alpha", "tau", "candidates_per_draft", "reset_every", "ngram_model")
        asks_for_paper = any(asked.get(name) is not None for name in names)  # alpha 0, too: it is said, not absent
        selection = asked.get("selection") or ("paper" if asks_for_paper else self.selection)
        if strategy != "superposed":
            selection = "paper"
        defaults: dict[str, Any]
        if selection == "distinct":
            defaults = {
                "alpha": RULES[selection].alpha,
                "tau": RULES[selection].tau,
                "max_branches": self.max_branches,
                "min_probability": self.min_probability,
                "whole_best": max_tokens > MAX_SHORT_TOKENS,
            }
        else:
            defaults = {
                "alpha": self.alpha,
                "tau": self.tau,
                "candidates_per_draft": self.num_candidates(num_drafts),
            }
        given = {
            name: asked[name]
            for name in ("max_branches", "min_probability", "min_draft_tokens", "alpha", "tau", "candidates_per_draft")
            if asked.get(name) is not None
        }
        return {"selection": selection, **defaults, **given}
