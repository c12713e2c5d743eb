"""N-grams of what one user has accepted: counts that grow with each accepted completion, and forget the oldest."""

import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

from superdraft.ngram_models.scoring.counts import CountTable
from superdraft.ngram_models.scoring.in_context import DEFAULT_ORDER, Lease, TextContexts

DEFAULT_MAX_TOKENS: Final = 8192
# A context of four tokens is hardly ever longer; what is cut off is not kept anywhere.
_MAX_BEFORE_CHARACTERS: Final = 64

Encode = Callable[[str], Sequence[int]]


class AcceptedText(NamedTuple):
    """A completion that somebody accepted.

    Attributes:
        before: the end of what stood in front of it; gives its first n-grams their context and is not counted itself.
        text: what was accepted.
    """

    before: str
    text: str


def end_of(prompt: str) -> str:
    """As much of a prompt's end as `AcceptedText.before` needs, from the beginning of a word on if there is one."""
    if len(prompt) <= _MAX_BEFORE_CHARACTERS:
        return prompt
    end = prompt[-_MAX_BEFORE_CHARACTERS:]
    start = next((place for place, character in enumerate(end) if character.isspace()), 0)
    return end[start:]


class PersonalView:
    """A user's counts as they were at one time. They do not change while anybody holds this.

    Attributes:
        contexts: how far the n-grams look back.
    """

    __slots__ = ("__weakref__", "_counts", "contexts")

    def __init__(self, counts: CountTable, contexts: TextContexts) -> None:
        self.contexts = contexts
        self._counts = counts

    def lease(self, token_ids: Sequence[int]) -> Lease:
        """The counts, and the context after this prompt."""
        return Lease(self._counts, self.contexts.at(token_ids, len(token_ids)))


class _Learned(NamedTuple):
    """A text and its tokens, of which those from `first` on are counted."""

    accepted: AcceptedText
    token_ids: list[int]
    first: int


class PersonalModel:
    """What one user has accepted, and its n-grams.

    For one thread, but for the views: another thread may use a view, and let go of it, at any time. Texts are added to
    the counts in place when nobody holds a view of them, else to a copy.

    Args:
        encode: tokenises a text.
        end_of_text_ids: the ids that end a text. N-grams do not cross them, and they are not counted.
        order: the longest n-gram, in tokens.
        max_tokens: counted at most; the oldest texts are forgotten first. A token takes about 1 kB.
    """

    def __init__(
        self,
        encode: Encode,
        end_of_text_ids: Collection[int],
        *,
        order: int = DEFAULT_ORDER,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        self.max_tokens = max_tokens
        self._encode = encode
        self._contexts = TextContexts(order, frozenset(end_of_text_ids))
        self._counts = CountTable(order)
        self._learned: deque[_Learned] = deque()
        self._view: weakref.ref[PersonalView] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens counted."""
        return self._counts.num_tokens

    @property
    def texts(self) -> list[AcceptedText]:
        """What is remembered, the oldest first."""
        return [learned.accepted for learned in self._learned]

    def add(self, texts: Iterable[AcceptedText]) -> None:
        """Count these texts, and forget the oldest while there are too many tokens."""
        if self._view is not None and self._view() is not None:
            self._counts = self._counts.copy()
        self._view = None
        for accepted in texts:
            learned = self._tokenised(accepted)
            self._learned.append(learned)
            self._count(learned, self._counts.add)
            while self._counts.num_tokens > self.max_tokens:
                self._count(self._learned.popleft(), self._counts.remove)

    def view(self) -> PersonalView:
        """The counts as they are now."""
        view = self._view() if self._view is not None else None
        if view is None:
            view = PersonalView(self._counts, self._contexts)
            self._view = weakref.ref(view)
        return view

    def _tokenised(self, accepted: AcceptedText) -> _Learned:
        """The text's tokens as they stand in the running text: a word that was typed half is counted whole."""
        whole = list(self._encode(accepted.before + accepted.text))
        before = list(self._encode(accepted.before))
        first = next(
            (place for place, (ours, theirs) in enumerate(zip(whole, before, strict=False)) if ours != theirs),
            min(len(whole), len(before)),
        )
        return _Learned(accepted, whole, first)

    def _count(self, learned: _Learned, count: Callable[[tuple[int, ...], int], None]) -> None:
        token_ids, contexts = learned.token_ids, self._contexts
        for position in range(learned.first, len(token_ids)):
            if token_ids[position] not in contexts.end_of_text_ids:
                count(contexts.at(token_ids, position), token_ids[position])
