"""Covers of a prompt's end with their weights: the model's distribution over continuations of the typed text.

`healing` defines the terms. Each stem is added with the model's distribution after it, beginning with the stems at the
end of the shared tokens. `next_unrun` proposes a further stem whose covers may matter, and `starts` ranks the possible
first tokens of a draft.
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

MIN_STEM_SHARE = 0.05
"""A stem counts if its covers may have this share of P(text begins with the typed bytes)."""

MIN_CHECKED_SHARE = 0.01
"""Starts with a smaller share count towards that probability without a check that they are canonical. Each start is
checked before it is chosen."""

_CHECKED_AT_ONCE = 32
_NEAR = 6.0
"""Starts whose ln p is more than this below the best are sorted only if the others are too few."""

Row = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Stem:
    """A cover without its last token, and all starts that may follow.

    Attributes:
        path: its tokens after the shared ones.
        rest: the typed bytes that a start has to begin with.
        logprob: ln of the stem's weight, the product of the probabilities of the path's tokens.
        token_ids: the starts, shape [N].
        logprobs: ln p of each start after the stem, shape [N]; -inf: not canonical.
        is_checked: which starts have been checked for being canonical, shape [N].
        log_mass: ln of the sum of the weights of all covers of this stem.
    """

    path: tuple[int, ...]
    rest: bytes
    logprob: float
    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    is_checked: NDArray[np.bool_] = field(init=False)
    log_mass: float = field(init=False)

    def __post_init__(self) -> None:
        self.is_checked = np.zeros(len(self.token_ids), dtype=np.bool_)
        self.log_mass = self._sum()

    def rule_out(self, places: Sequence[int]) -> None:
        """Give starts that are not canonical the probability zero."""
        self.logprobs[places] = -np.inf
        self.log_mass = self._sum()

    def _sum(self) -> float:
        return self.logprob + _log(float(np.exp(self.logprobs).sum(dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class UnrunStem:
    """A stem whose distribution is unknown. `logprob` is ln of its weight, an upper bound for all of its covers."""

    path: tuple[int, ...]
    rest: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Start:
    """The last token of a cover, with which a draft may begin.

    Attributes:
        stem: index of its stem.
        token_id: the token.
        logprob: ln of the cover's weight. `logprob - Covers.log_total` is ln of the start's probability.
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
        start_logits: Tensor,
    ) -> "Covers":
        """The covers of a prompt, with the stem that has no tokens after the shared ones.

        Args:
            plan: the end of the prompt.
            tokenizer: the tokenizer.
            index: finds tokens by their bytes.
            logits: the model's output after the shared tokens, shape [V].
            start_logits: the same logits with the logit biases of drafts.
        """
        covers = cls(plan, tokenizer, index)
        covers.add(UnrunStem((), tokenizer.bytes_of(plan.tail), 0.0), logits, start_logits)
        return covers

    def add(self, stem: UnrunStem, logits: Tensor, start_logits: Tensor) -> None:
        """Add a stem that has been run: its logits, shape [V], and the same logits with the logit biases of drafts."""
        row = _logprobs(logits)
        start_row = row if start_logits is logits else _logprobs(start_logits)
        self._unrun = [one for one in self._unrun if one.path != stem.path]
        self._add(stem.path, stem.rest, stem.logprob, row, start_row)
        self._check_probable()

    def _add(self, path: tuple[int, ...], rest: bytes, logprob: float, row: Row, start_row: Row) -> None:
        token_ids = self._index.beyond(rest) if rest else self._tokenizer.draftable_ids
        self.stems.append(Stem(path, rest, logprob, token_ids, start_row[token_ids]))
        for token_id in self._index.inside(rest):
            longer = (*path, token_id)
            if longer not in self._proposed:
                self._proposed.add(longer)
                shorter = rest[len(self._tokenizer.token_bytes[token_id]) :]
                self._unrun.append(UnrunStem(longer, shorter, logprob + float(row[token_id])))

    @property
    def log_total(self) -> float:
        """Ln P(text begins with the typed bytes), given the shared tokens; -inf if there is no start."""
        return float(np.logaddexp.reduce([stem.log_mass for stem in self.stems]))

    def next_unrun(self) -> UnrunStem | None:
        """The most probable of the other stems whose covers may matter, for `add`; None if there are no more."""
        while self._unrun:
            best = max(self._unrun, key=lambda stem: stem.logprob)
            if not self.may_matter(best):
                return None
            self._unrun.remove(best)
            is_own = self._tail[: len(best.path)] == best.path
            if is_own or (self._are_canonical.may_begin(best.path) and self._leads_on(best.path, best.rest)):
                return best
        return None

    def own_stem(self, length: int) -> UnrunStem | None:
        """The stem of the first `length` tokens of the prompt's tail; None: it has been added, or a shorter one not."""
        return next((stem for stem in self._unrun if stem.path == self._tail[:length]), None)

    def may_matter(self, stem: UnrunStem) -> bool:
        """Whether the covers of a stem may have a share that counts."""
        return stem.logprob >= self.log_total + _log(MIN_STEM_SHARE)

    def _leads_on(self, path: tuple[int, ...], rest: bytes) -> bool:
        """Whether any canonical cover begins with this stem."""
        if not rest:
            return True
        beyond = self._index.beyond(rest)
        # A few at a time: half of a vocabulary begins with a space, and the first few usually decide.
        parts = (beyond[start : start + _CHECKED_AT_ONCE].tolist() for start in range(0, len(beyond), _CHECKED_AT_ONCE))
        if any(any(self._are_canonical(path, part)) for part in parts):
            return True
        return any(
            self._are_canonical.may_begin((*path, token_id))
            and self._leads_on((*path, token_id), rest[len(self._tokenizer.token_bytes[token_id]) :])
            for token_id in self._index.inside(rest)
        )

    def starts(self, num: int, stem: int | None = None) -> list[Start]:
        """The `num` most probable starts, all canonical, best first; fewer if there are no more.

        Args:
            num: at least 1.
            stem: index of the stem whose starts to return; None: of all stems.
        """
        while True:
            top = self._top(num, stem)
            if not self._rule_out(top):
                return [self._start(number, place) for number, place in top]

    def _start(self, number: int, place: int) -> Start:
        stem = self.stems[number]
        return Start(number, int(stem.token_ids[place]), stem.logprob + float(stem.logprobs[place]))

    def shares(self) -> NDArray[np.float64]:
        """Ln of each start's probability given the typed bytes, stem after stem; see `start_at`."""
        log_total = self.log_total
        return np.concatenate([stem.logprobs.astype(np.float64) + (stem.logprob - log_total) for stem in self.stems])

    def start_at(self, index: int) -> Start | None:
        """The start at an index of `shares`; None if it turns out not to be canonical, and its share becomes -inf."""
        for number, stem in enumerate(self.stems):
            if index < len(stem.token_ids):
                if self._rule_out([(number, index)]):
                    return None
                return self._start(number, index)
            index -= len(stem.token_ids)
        raise IndexError(index)

    def _top(self, num: int, only: int | None = None) -> list[tuple[int, int]]:
        """(stem, place) of the most probable starts, best first; ties in order of stem and place."""
        chosen = [(n, stem) for n, stem in enumerate(self.stems) if only in (None, n) and len(stem.logprobs)]
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

    def _rule_out(self, starts: Sequence[tuple[int, int]]) -> bool:
        """Check starts that have not been checked and rule out those not canonical; whether there were any."""
        unchecked: dict[int, list[int]] = {}
        for number, place in starts:
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
        verdicts = self._are_canonical(stem.path, token_ids)
        for index, token_id in enumerate(token_ids):
            if not self._tokenizer.token_bytes[token_id]:  # end of text: only the stem has to be canonical
                verdicts[index] = not stem.path or self._are_canonical(stem.path[:-1], stem.path[-1:])[0]
        return verdicts

    def _check_probable(self) -> None:
        """Check all starts with a share of at least `MIN_CHECKED_SHARE`."""
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
