"""Covers of a prompt's end with their weights: the model's distribution over continuations of the typed text.

`healing` defines the terms. Each stem is added with the model's distribution after it, beginning with the stems at the
end of the shared tokens. `next_unrun` proposes a further stem whose covers may matter, and `openings` ranks the
possible first tokens of a draft.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superdraft.decoding.text.healing import CanonicalCheck, HealingPlan, TokenIndex
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.decoding.text.typos import MAX_EDIT_PROBABILITY, Corrections, TypedWord

MIN_STEM_SHARE = 0.05
"""A stem counts if its covers may have this share of P(text begins with the typed bytes)."""

MIN_CHECKED_SHARE = 0.01
"""Openings with a smaller share count towards that probability without a check that they are canonical. Each opening is
checked before it is chosen."""

MIN_CORRECTED_SHARE = 0.05
"""Corrections are looked for, and kept, if they may have this share of P(text begins with what was meant)."""

MIN_WORD_PROBABILITY = 5e-6
"""A word that the model finds less probable at its place is no correction: the typed one may be as good a name."""

MAX_CORRECTED_WORDS = 2
"""Corrections of a finished word; each takes a row."""

_CHECKED_AT_ONCE = 32
_NEAR = 6.0
"""Openings whose ln p is more than this below the best are sorted only if the others are too few."""

Row = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Stem:
    """A cover without its last token, and all openings that may follow.

    Attributes:
        stem_ids: its tokens after the shared ones.
        rest: the typed bytes that an opening has to begin with.
        logprob: ln of the stem's weight, the product of the probabilities of these tokens.
        token_ids: the openings, shape [N].
        logprobs: ln p of each opening after the stem, shape [N]; -inf: not canonical.
        is_checked: which openings have been checked for being canonical, shape [N].
        replaced: the typed bytes that the openings, with the stem, take the place of, as they were mistyped.
        log_mass: ln of the sum of the weights of all covers of this stem.
    """

    stem_ids: tuple[int, ...]
    rest: bytes
    logprob: float
    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    replaced: bytes = b""
    is_checked: NDArray[np.bool_] = field(init=False)
    log_mass: float = field(init=False)

    def __post_init__(self) -> None:
        self.is_checked = np.zeros(len(self.token_ids), dtype=np.bool_)
        self.log_mass = self._sum()

    def rule_out(self, places: Sequence[int]) -> None:
        """Give openings that are not canonical the probability zero."""
        self.logprobs[places] = -np.inf
        self.log_mass = self._sum()

    def _sum(self) -> float:
        return self.logprob + _log(float(np.exp(self.logprobs).sum(dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class UnrunStem:
    """A stem whose distribution is unknown. `logprob` is ln of its weight, an upper bound for all of its covers."""

    stem_ids: tuple[int, ...]
    rest: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Opening:
    """The last token of a cover, with which a draft may begin.

    Attributes:
        stem: index of its stem.
        token_id: the token.
        logprob: ln of the cover's weight. `logprob - Covers.log_total` is ln of the opening's probability.
    """

    stem: int
    token_id: int
    logprob: float


class Covers:
    """The covers of one prompt's end.

    Args:
        plan: the end of the prompt.
        tokenizer: the tokenizer.
        index: finds tokens by their bytes.

    Attributes:
        stems: the stems whose distributions are known.
    """

    def __init__(self, plan: HealingPlan, tokenizer: Tokenizer, index: TokenIndex) -> None:
        self.stems: list[Stem] = []
        self._tokenizer = tokenizer
        self._index = index
        self._are_canonical = CanonicalCheck(plan, tokenizer)
        self._tail = plan.tail
        self._proposed: set[tuple[int, ...]] = set()
        self._unrun: list[UnrunStem] = []

    @classmethod
    def of_prompt(
        cls,
        plan: HealingPlan,
        tokenizer: Tokenizer,
        index: TokenIndex,
        logits: Tensor,
        opening_logits: Tensor,
    ) -> "Covers":
        """The covers of a prompt, with the stem that has no tokens after the shared ones.

        Args:
            plan: the end of the prompt.
            tokenizer: the tokenizer.
            index: finds tokens by their bytes.
            logits: the model's output after the shared tokens, shape [V].
            opening_logits: the same logits with the logit biases of drafts.
        """
        covers = cls(plan, tokenizer, index)
        covers.add(UnrunStem((), tokenizer.bytes_of(plan.tail), 0.0), logits, opening_logits)
        return covers

    def add(self, stem: UnrunStem, logits: Tensor, opening_logits: Tensor) -> None:
        """Add a stem that has been run: its logits, shape [V], and the same logits with the logit biases of drafts."""
        row = _logprobs(logits)
        opening_row = row if opening_logits is logits else _logprobs(opening_logits)
        self._unrun = [one for one in self._unrun if one.stem_ids != stem.stem_ids]
        self._add(stem.stem_ids, stem.rest, stem.logprob, row, opening_row)
        self._check_probable()

    def _add(self, stem_ids: tuple[int, ...], rest: bytes, logprob: float, row: Row, opening_row: Row) -> None:
        token_ids = self._index.beyond(rest) if rest else self._tokenizer.draftable_ids
        self.stems.append(Stem(stem_ids, rest, logprob, token_ids, opening_row[token_ids]))
        for token_id in self._index.inside(rest):
            longer = (*stem_ids, token_id)
            if longer not in self._proposed:
                self._proposed.add(longer)
                shorter = rest[len(self._tokenizer.token_bytes[token_id]) :]
                self._unrun.append(UnrunStem(longer, shorter, logprob + float(row[token_id])))

    @property
    def log_total(self) -> float:
        """Ln P(text begins with the typed bytes), given the shared tokens; -inf if there is no opening."""
        return float(np.logaddexp.reduce([stem.log_mass for stem in self.stems]))

    def next_unrun(self) -> UnrunStem | None:
        """The most probable of the other stems whose covers may matter, for `add`; None if there are no more."""
        while self._unrun:
            best = max(self._unrun, key=lambda stem: stem.logprob)
            if not self.may_matter(best):
                return None
            self._unrun.remove(best)
            is_own = self._tail[: len(best.stem_ids)] == best.stem_ids
            if is_own or (self._are_canonical.may_begin(best.stem_ids) and self._leads_on(best.stem_ids, best.rest)):
                return best
        return None

    def corrections(self, word: TypedWord) -> Corrections | None:
        """What a word may have been meant to be; None: it is so probable that no correction has a share that counts."""
        if self.log_total >= _log(MAX_EDIT_PROBABILITY / MIN_CORRECTED_SHARE) or word.is_repeated:
            return None
        return Corrections.of(word)

    def add_corrections(self, fixes: Corrections, own: Sequence[Tensor]) -> list[UnrunStem]:
        """What may have been meant: openings in place of a word's beginning are added, stems for a whole one returned.

        Args:
            fixes: what may have been meant.
            own: the logits after the shared tokens, and after those of the tail that have been run, each of shape [V].

        Returns:
            Of a finished word, the most probable words, best first, for `add_corrected`.
        """
        logprob, words, least = 0.0, list[UnrunStem](), self.log_total + _log(MIN_CORRECTED_SHARE)
        for length, logits in enumerate(own):
            stem_ids = self._tail[:length]
            token_ids, edits = self._index.meant(self._tokenizer.bytes_of(stem_ids), fixes)
            row = _logprobs(logits)
            known = logprob + row[token_ids] >= _log(MIN_WORD_PROBABILITY)
            token_ids, logprobs = token_ids[known], row[token_ids][known] + edits[known]
            if not fixes.is_finished:
                stem = Stem(stem_ids, b"", logprob, token_ids, logprobs, fixes.typed)
                if stem.log_mass >= least:
                    self.stems.append(stem)
            else:
                words += [
                    UnrunStem((*stem_ids, token_id), b" ", logprob + float(logprobs[place]))
                    for place, token_id in enumerate(token_ids.tolist())
                    if logprob + logprobs[place] >= least and self._are_canonical(stem_ids, [token_id])[0]
                ]
            if length + 1 < len(own):
                logprob += float(row[self._tail[length]])
        self._check_probable()
        return sorted(words, key=lambda word: -word.logprob)[:MAX_CORRECTED_WORDS]

    def add_corrected(self, stem: UnrunStem, fixes: Corrections, opening_logits: Tensor) -> None:
        """Add a whole word that may have been meant, and the openings behind it; arguments as in `add`."""
        token_ids = self._index.beyond(stem.rest)
        logprobs = _logprobs(opening_logits)[token_ids]
        self.stems.append(Stem(stem.stem_ids, b"", stem.logprob, token_ids, logprobs, fixes.typed))
        self._check_probable()

    def own_stem(self, length: int) -> UnrunStem | None:
        """The stem of the first `length` tokens of the prompt's tail; None: it has been added, or a shorter one not."""
        return next((stem for stem in self._unrun if stem.stem_ids == self._tail[:length]), None)

    def may_matter(self, stem: UnrunStem) -> bool:
        """Whether the covers of a stem may have a share that counts."""
        return stem.logprob >= self.log_total + _log(MIN_STEM_SHARE)

    def _leads_on(self, stem_ids: tuple[int, ...], rest: bytes) -> bool:
        """Whether any canonical cover begins with this stem."""
        if not rest:
            return True
        beyond = self._index.beyond(rest)
        # A few at a time: half of a vocabulary begins with a space, and the first few usually decide.
        parts = (beyond[start : start + _CHECKED_AT_ONCE].tolist() for start in range(0, len(beyond), _CHECKED_AT_ONCE))
        if any(any(self._are_canonical(stem_ids, part)) for part in parts):
            return True
        return any(
            self._are_canonical.may_begin((*stem_ids, token_id))
            and self._leads_on((*stem_ids, token_id), rest[len(self._tokenizer.token_bytes[token_id]) :])
            for token_id in self._index.inside(rest)
        )

    def openings(self, num: int, stems: Sequence[int] | None = None) -> list[Opening]:
        """The `num` most probable openings, all canonical, best first; fewer if there are no more.

        Args:
            num: at least 1.
            stems: indices of the stems whose openings to return; None: of all.
        """
        while True:
            top = self._top(num, stems)
            if not self._rule_out(top):
                return [self._opening(number, place) for number, place in top]

    def _opening(self, number: int, place: int) -> Opening:
        stem = self.stems[number]
        return Opening(number, int(stem.token_ids[place]), stem.logprob + float(stem.logprobs[place]))

    def shares(self) -> NDArray[np.float64]:
        """Ln of each opening's probability given the typed bytes, stem after stem; see `opening_at`."""
        log_total = self.log_total
        return np.concatenate([stem.logprobs.astype(np.float64) + (stem.logprob - log_total) for stem in self.stems])

    def opening_at(self, index: int) -> Opening | None:
        """The opening at an index of `shares`; None if it turns out not to be canonical, and its share becomes -inf."""
        for number, stem in enumerate(self.stems):
            if index < len(stem.token_ids):
                if self._rule_out([(number, index)]):
                    return None
                return self._opening(number, index)
            index -= len(stem.token_ids)
        raise IndexError(index)

    def _top(self, num: int, only: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """(stem, place) of the most probable openings, best first; ties in order of stem and place."""
        chosen = [(n, stem) for n, stem in enumerate(self.stems) if (only is None or n in only) and len(stem.logprobs)]
        peak = max((stem.logprob + float(stem.logprobs.max()) for _, stem in chosen), default=-math.inf)
        near = [np.flatnonzero(stem.logprobs > peak - _NEAR - stem.logprob) for _, stem in chosen]
        if sum(map(len, near)) < num:
            near = [_best(stem.logprobs, num) for _, stem in chosen]
        if not near:
            return []
        stems = np.concatenate([np.full(len(own), number) for (number, _), own in zip(chosen, near, strict=True)])
        places = np.concatenate(near)
        logprobs = np.concatenate(
            [stem.logprobs[own] + stem.logprob for (_, stem), own in zip(chosen, near, strict=True)], dtype=np.float64
        )
        order = np.argsort(-logprobs, kind="stable")[:num]
        return list(zip(stems[order].tolist(), places[order].tolist(), strict=True))

    def _rule_out(self, openings: Sequence[tuple[int, int]]) -> bool:
        """Check openings that have not been checked and rule out those not canonical; whether there were any."""
        unchecked: dict[int, list[int]] = {}
        for number, place in openings:
            if not self.stems[number].is_checked[place]:
                unchecked.setdefault(number, []).append(place)
        has_wrong = False
        for number, places in unchecked.items():
            stem = self.stems[number]
            stem.is_checked[places] = True
            verdicts = self._verdicts(stem, stem.token_ids[places].tolist())
            wrong = [place for place, verdict in zip(places, verdicts, strict=True) if not verdict]
            if wrong:
                stem.rule_out(wrong)
                has_wrong = True
        return has_wrong

    def _verdicts(self, stem: Stem, token_ids: Sequence[int]) -> list[bool]:
        verdicts = self._are_canonical(stem.stem_ids, token_ids)
        for index, token_id in enumerate(token_ids):
            if not self._tokenizer.token_bytes[token_id]:  # end of text: only the stem has to be canonical
                verdicts[index] = not stem.stem_ids or self._are_canonical(stem.stem_ids[:-1], stem.stem_ids[-1:])[0]
        return verdicts

    def _check_probable(self) -> None:
        """Check all openings with a share of at least `MIN_CHECKED_SHARE`."""
        while True:
            least = self.log_total + _log(MIN_CHECKED_SHARE)
            places = [np.flatnonzero(stem.logprobs >= least - stem.logprob).tolist() for stem in self.stems]
            if not self._rule_out([(number, place) for number, own in enumerate(places) for place in own]):
                return


def _logprobs(logits: Tensor) -> Row:
    values: Row = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return values


def _best(logprobs: Row, num: int) -> NDArray[np.int64]:
    """Places of the `num` highest values, without -inf, in ascending order of place."""
    places = np.argpartition(-logprobs, num - 1)[:num] if len(logprobs) > num else np.arange(len(logprobs))
    return np.sort(places[logprobs[places] > -np.inf])


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
