"""The covers of one prompt's end, with their weights: what the model says of how the typed text goes on.

The words are those of `token_healing`. Stems are added with the model's distribution after them, first those on the
prompt's own borders; `next_unrun` names another one whose covers may matter, and `starts` ranks what follows.
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
"""A stem off the prompt's own borders is run if its covers may be this share of P(text begins with the typed bytes)."""

MIN_CHECKED_SHARE = 0.01
"""Starts with a smaller share are counted in that probability without asking the tokenizer whether they are canonical.
None is chosen unasked."""

_ASKED_AT_ONCE = 32
_NEAR = 6.0
"""Starts whose ln p is less than the best one's by more are sorted only if so many are wanted."""

Row = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Stem:
    """A cover without its last token, and all starts that may follow.

    Attributes:
        path: its tokens after the shared ones.
        rest: what of the typed bytes a start has to begin with.
        logprob: ln of its weight, that of the path's tokens.
        token_ids: the starts, shape [N].
        logprobs: ln p of each of them after the stem, shape [N]; -inf: not canonical.
        is_asked: which of them the tokenizer has been asked for, shape [N].
        log_mass: ln of the sum of the weights of all its covers.
    """

    path: tuple[int, ...]
    rest: bytes
    logprob: float
    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    is_asked: NDArray[np.bool_] = field(init=False)
    log_mass: float = field(init=False)

    def __post_init__(self) -> None:
        self.is_asked = np.zeros(len(self.token_ids), dtype=np.bool_)
        self.log_mass = self._sum()

    def rule_out(self, places: Sequence[int]) -> None:
        """Some starts turned out not to be canonical."""
        self.logprobs[places] = -np.inf
        self.log_mass = self._sum()

    def _sum(self) -> float:
        return self.logprob + _log(float(np.exp(self.logprobs).sum(dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class UnrunStem:
    """A stem whose distribution is not known. `logprob` is the ln of its weight, a bound for each of its covers."""

    path: tuple[int, ...]
    rest: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Start:
    """The last token of a cover: how a draft may begin.

    Attributes:
        stem: index of its stem.
        token_id: the token.
        logprob: ln of the cover's weight. Less `Covers.log_total`, it is how probable it is that this comes next.
    """

    stem: int
    token_id: int
    logprob: float


class Covers:
    """The covers of one prompt's end.

    Args:
        plan: where they part.
        tokenizer: the tokenizer.
        index: finds tokens by their bytes.

    Attributes:
        stems: those whose distributions are known.
    """

    def __init__(self, plan: HealingPlan, tokenizer: Tokenizer, index: TokenIndex) -> None:
        self.stems: list[Stem] = []
        self._tokenizer = tokenizer
        self._index = index
        self._are_canonical = CanonicalCheck(plan, tokenizer)
        self._known = {plan.tail[:length] for length in range(len(plan.tail) + 1)}
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
        """With the stems on the prompt's own borders.

        Args:
            plan: where covers part.
            tokenizer: the tokenizer.
            index: finds tokens by their bytes.
            logits: the model's output after the shared tokens and after each token of the tail, shape [len(tail) + 1,
                V].
            start_logits: the same with the biases that hold for drafts.
        """
        covers = cls(plan, tokenizer, index)
        rows = _logprobs(logits)
        start_rows = rows if start_logits is logits else _logprobs(start_logits)
        rest, logprob = tokenizer.bytes_of(plan.tail), 0.0
        for length, (row, start_row) in enumerate(zip(rows, start_rows, strict=True)):
            covers._add(plan.tail[:length], rest, logprob, row, start_row)
            if length < len(plan.tail):
                token_id = plan.tail[length]
                rest, logprob = rest[len(tokenizer.token_bytes[token_id]) :], logprob + float(row[token_id])
        covers._rule_out_probable()
        return covers

    def add(self, stem: UnrunStem, logits: Tensor, start_logits: Tensor) -> None:
        """Add a stem that has been run: its logits, shape [V], and the same with the biases that hold for drafts."""
        row = _logprobs(logits)
        start_row = row if start_logits is logits else _logprobs(start_logits)
        self._add(stem.path, stem.rest, stem.logprob, row, start_row)
        self._rule_out_probable()

    def _add(self, path: tuple[int, ...], rest: bytes, logprob: float, row: Row, start_row: Row) -> None:
        token_ids = self._index.beyond(rest) if rest else self._tokenizer.draftable_ids
        self.stems.append(Stem(path, rest, logprob, token_ids, start_row[token_ids]))
        for token_id in self._index.inside(rest):
            longer = (*path, token_id)
            if longer not in self._known:
                self._known.add(longer)
                shorter = rest[len(self._tokenizer.token_bytes[token_id]) :]
                self._unrun.append(UnrunStem(longer, shorter, logprob + float(row[token_id])))

    @property
    def log_total(self) -> float:
        """Ln P(text begins with the typed bytes), given the shared tokens; -inf if nothing follows."""
        return float(np.logaddexp.reduce([stem.log_mass for stem in self.stems]))

    def next_unrun(self) -> UnrunStem | None:
        """The most probable stem that should be run, because its covers may matter; None: there is none (any more)."""
        while self._unrun:
            best = max(self._unrun, key=lambda stem: stem.logprob)
            if best.logprob < self.log_total + _log(MIN_STEM_SHARE):
                return None
            self._unrun.remove(best)
            if self._are_canonical.may_begin(best.path) and self._leads_on(best.path, best.rest):
                return best
        return None

    def _leads_on(self, path: tuple[int, ...], rest: bytes) -> bool:
        """Whether any canonical cover begins with such a stem."""
        if not rest:
            return True
        beyond = self._index.beyond(rest)
        # A few at a time: half of a vocabulary begins with a space, and the first ones mostly tell.
        parts = (beyond[start : start + _ASKED_AT_ONCE].tolist() for start in range(0, len(beyond), _ASKED_AT_ONCE))
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
            stem: the only stem whose starts are wanted; None: those of all.
        """
        while True:
            top = self._top(num, stem)
            if not self._rule_out(top):
                return [self._start(number, place) for number, place in top]

    def _start(self, number: int, place: int) -> Start:
        stem = self.stems[number]
        return Start(number, int(stem.token_ids[place]), stem.logprob + float(stem.logprobs[place]))

    def shares(self) -> NDArray[np.float64]:
        """Ln of the probability of each start, given the typed bytes, stem after stem; see `start_at`."""
        log_total = self.log_total
        return np.concatenate([stem.logprobs.astype(np.float64) + (stem.logprob - log_total) for stem in self.stems])

    def start_at(self, index: int) -> Start | None:
        """The start at an index of `shares`; None if it turns out not to be canonical, and is then -inf."""
        for number, stem in enumerate(self.stems):
            if index < len(stem.token_ids):
                if self._rule_out([(number, index)]):
                    return None
                return self._start(number, index)
            index -= len(stem.token_ids)
        raise IndexError(index)

    def _top(self, num: int, only: int | None = None) -> list[tuple[int, int]]:
        """(stem, place) of the most probable starts, best first; equal ones in order."""
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
        """Ask the tokenizer for starts that it has not been asked for; whether some were not canonical."""
        unasked: dict[int, list[int]] = {}
        for number, place in starts:
            if not self.stems[number].is_asked[place]:
                unasked.setdefault(number, []).append(place)
        has_wrong = False
        for number, places in unasked.items():
            stem = self.stems[number]
            stem.is_asked[places] = True
            verdicts = self._verdicts(stem, stem.token_ids[places].tolist())
            wrong = [place for place, verdict in zip(places, verdicts, strict=True) if not verdict]
            if wrong:
                stem.rule_out(wrong)
                has_wrong = True
        return has_wrong

    def _verdicts(self, stem: Stem, token_ids: Sequence[int]) -> list[bool]:
        verdicts = self._are_canonical(stem.path, token_ids)
        for index, token_id in enumerate(token_ids):
            if not self._tokenizer.token_bytes[token_id]:  # an end of text: the stem alone has to be canonical
                verdicts[index] = not stem.path or self._are_canonical(stem.path[:-1], stem.path[-1:])[0]
        return verdicts

    def _rule_out_probable(self) -> None:
        """Leave only such starts unasked that hardly count."""
        while True:
            least = self.log_total + _log(MIN_CHECKED_SHARE)
            places = [np.flatnonzero(stem.logprobs >= least - stem.logprob).tolist() for stem in self.stems]
            if not self._rule_out([(number, place) for number, own in enumerate(places) for place in own]):
                return


def _logprobs(logits: Tensor) -> Row:
    values: Row = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return values


def _best(logprobs: Row, num: int) -> NDArray[np.int64]:
    """Places of the `num` highest values, in order of place, without -inf."""
    places = np.argpartition(-logprobs, num - 1)[:num] if len(logprobs) > num else np.arange(len(logprobs))
    return np.sort(places[logprobs[places] > -np.inf])


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
