"""Drafts as they are shown: those that are probable enough and fit their place, tidied, each text once."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os.path import commonprefix

from superdraft.decoding.outputs import DraftOutput, GenerationOutput, Replaced, Snapshot, kept
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.fim import Gap
from superdraft.decoding.text.gap_cut import has_text_after, joins
from superdraft.decoding.text.tidying import tidy


@dataclass(frozen=True, slots=True)
class Display:
    """How the drafts for a place in a text are shown.

    Attributes:
        gap: the place.
        min_probability: drafts whose first word is less probable are withheld. It applies where scores are
            probabilities.
        is_tidy: drafts are tidied, and inside a line only those are shown that end where the text after them begins.
            One that ends with the line was about to continue with the next one, and not with the text after the cursor.
    """

    gap: Gap
    min_probability: float = 0.0
    is_tidy: bool = False

    def shown(self, output: GenerationOutput, params: GenerationParams) -> GenerationOutput:
        """An output with the drafts to show, possibly none; their texts may be shorter than their tokens'."""
        by_text: dict[tuple[Replaced | None, str], DraftOutput] = {}
        for draft in output.drafts:
            if self._is_probable(draft.score, params):
                text = self._tidied(draft) if self.is_tidy else draft.text
                if text or not self.is_tidy:
                    by_text.setdefault((draft.replaces, text), replace(draft, text=text))
        return replace(output, drafts=_ranked(by_text.values()))

    def shown_so_far(self, snapshot: Snapshot, params: GenerationParams) -> Snapshot:
        """A snapshot with the drafts to show. Inside a line there are none, since only a finished draft can fit.

        A draft is tidied as if it ended here, so that nothing appears that would vanish if it did. Its last word stays.
        """
        probable = (draft for draft in snapshot.drafts if draft.text and self._is_probable(draft.score, params))
        if not self.is_tidy:
            drafts = tuple(probable)
        elif has_text_after(self.gap):
            drafts = ()
        else:
            texts = (
                (draft, tidy(draft.text, kept(self.gap.prefix, draft.replaces), _last_word(draft.text)))
                for draft in probable
            )
            drafts = tuple(replace(draft, text=text) for draft, text in texts if text)
        stable_text = commonprefix([snapshot.stable_text, drafts[0].text]) if drafts else ""  # noqa: RUF071 (no paths)
        return replace(snapshot, drafts=drafts, stable_text=stable_text)

    def _is_probable(self, score: float, params: GenerationParams) -> bool:
        return not params.scores_are_probabilities or math.exp(min(score, 0.0)) >= self.min_probability

    def _tidied(self, draft: DraftOutput) -> str:
        if not has_text_after(self.gap):
            return tidy(draft.text, kept(self.gap.prefix, draft.replaces), _last_token(draft))
        is_fit = draft.finish_reason == "stop" and not _ends_its_line(draft) and joins(draft.text, self.gap)
        return draft.text if is_fit and tidy(draft.text, self.gap.prefix) == draft.text.rstrip() else ""


def display_warnings(min_probability: float | None, params: GenerationParams) -> list[str]:
    """A warning if a request sets a minimum and its scores are no probabilities."""
    if not min_probability or params.scores_are_probabilities:
        return []
    return ["min_probability_shown has no effect: only with selection distinct are scores probabilities."]


def _ranked(drafts: Iterable[DraftOutput]) -> tuple[DraftOutput, ...]:
    return tuple(replace(draft, index=index) for index, draft in enumerate(drafts))


def _last_token(draft: DraftOutput) -> str | None:
    """The last token of a draft that a limit ended; None if it ended by itself, has been cut already, or has none."""
    whole = "".join(draft.tokens).rstrip("\ufffd")
    is_cut = draft.finish_reason == "stop" or len(draft.text) < len(whole)
    return None if is_cut or not draft.tokens else draft.tokens[-1]


def _last_word(text: str) -> str:
    return (text.split() or [""])[-1]


def _ends_its_line(draft: DraftOutput) -> bool:
    """Whether a line break follows the text in the draft's tokens."""
    return "".join(draft.tokens).startswith((draft.text + "\n", draft.text + "\r"))
