"""The selection rule "distinct": one draft for each of the k best first tokens. Superdraft's own, not the paper's."""

import codecs
import math
from dataclasses import replace

from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, Extend
from superdraft.decoding.outputs import Extent, extents_within
from superdraft.decoding.text.tokenizer import valid_utf8_prefix
from superdraft.decoding.text.trimming import as_read, ends_word

MIN_START_PROBABILITY = 0.01
"""A new draft must be at least this probable, unless it is the only one."""

MIN_EXTENT_PROBABILITY = 0.01
"""Less probable beginnings of a draft are not reported."""

_MIN_EXTENT_LOGPROB = math.log(MIN_EXTENT_PROBABILITY)
_Utf8 = codecs.getincrementaldecoder("utf-8")

MAX_COMMON_WORDS = 3
"""Words within which a new draft must leave the others."""


class Distinct:
    """Every draft continues with its own best child, and new drafts begin while there are fewer than k.

    The first step begins a draft with each of the k best tokens, except improbable ones. A place that stays free goes
    to another child of a draft, at the first step where that child is probable enough. A new draft must leave the
    others within `MAX_COMMON_WORDS` words: after that it would only repeat their suggestion.
    """

    name = "distinct"
    # The first tokens are exact, and an n-gram model of general text did not improve them.
    alpha = 0.0
    # With this weight, a model of texts like those that are typed improved them, and one of other texts did no harm.
    named_alpha = 0.2
    tau = 1.0
    scores_are_probabilities = True
    divides = True
    # k of them begin drafts; the others stand in for those that have the same text as a better one.
    openings_per_draft: int | None = 2

    def select(self, drafts: DraftSet, children: Children, extend: Extend, num_drafts: int) -> DraftSet:
        """The next draft set; arguments as in `SelectionRule.select`."""
        alive: list[Draft] = []
        finished = list(drafts.finished)
        num_free = num_drafts - sum(bool(draft.text) for draft in finished)
        num_free -= sum(bool(draft.start) for draft in drafts.alive)
        heirless = {index for index, draft in enumerate(drafts.alive) if draft.start}
        seen: set[bytes] = set()
        for parent, child in children.each(extend):
            if parent in heirless:
                heirless.remove(parent)
            elif num_free > 0 and _may_begin(child, seen) and (_is_probable(child) or not alive):
                child = replace(child, start=child.text)
                num_free -= bool(child.text) or child.finish_reason is None
            elif not heirless and (num_free <= 0 or not _is_probable(child)):
                break
            else:
                continue
            seen.add(child.text)
            (alive if child.finish_reason is None else finished).append(child)
            if not heirless and num_free <= 0:
                break
        finished.sort(key=lambda draft: -draft.logprob)
        return DraftSet(tuple(alive), tuple(finished))

    def score(self, draft: Draft) -> float:
        """Ln of the language model's probability that the text continues with the draft's first word.

        Words are separated by white space. If the draft left another one after its first word, the words up to the one
        that differs count too. The value is exact if these tokens were chosen on a row of the draft's own.

        The first word of a draft that corrects a finished word is the corrected one.
        """
        if draft.word_logprob is not None:
            return draft.word_logprob
        text = b""
        total = 0.0
        for index, logprob in enumerate(draft.token_logprobs):
            piece = draft.pieces[index] if index < len(draft.pieces) else b""  # end of text
            if text.strip() and len(text) >= len(draft.start) and (not piece or piece[:1].isspace()):
                break
            text += piece
            total += logprob
        return total

    def extents(self, draft: Draft) -> tuple[Extent, ...]:
        """How probable the text is up to each of its words: the product of its tokens' probabilities.

        A word ends before a token that begins with white space; where a script has no spaces, after each token. Words
        from the one on with which the text becomes less probable than `MIN_EXTENT_PROBABILITY` have none.
        """
        if draft.word_logprob is not None:  # the text begins with the corrected word
            extents = [Extent(len(draft.text.split()[0].decode()), math.exp(draft.word_logprob))]
        else:
            extents = []
        decoder = _Utf8(errors="replace")
        num_characters, last, total = 0, "", 0.0
        for index, logprob in enumerate(draft.token_logprobs):
            if index == len(draft.pieces):  # end of text: the draft is as probable as its words
                break
            is_whole = not decoder.getstate()[0]
            text = decoder.decode(draft.pieces[index])
            if is_whole and text and ends_word(last, text):
                extents.append(Extent(num_characters, math.exp(total)))
            num_characters += len(text)
            last = (last + text)[-1:]
            total += logprob
            if total < _MIN_EXTENT_LOGPROB:
                break
        if total >= _MIN_EXTENT_LOGPROB:
            extents.append(Extent(num_characters, math.exp(total)))
        return extents_within(extents, len(valid_utf8_prefix(draft.text)))  # a stop string may have cut the text

    def as_read(self, text: str) -> str:
        """The text without blank lines, and without white space at the end of lines, which a reader does not see."""
        return as_read(text)


def _may_begin(child: Draft, seen: set[bytes]) -> bool:
    """Whether a child's text is new, and early enough for a draft of its own."""
    return child.text not in seen and len(child.text.split()) <= MAX_COMMON_WORDS


def _is_probable(child: Draft) -> bool:
    return child.lm_logprob >= math.log(MIN_START_PROBABILITY)
