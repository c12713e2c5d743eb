"""Random token trees: prompts, forks, drops and rows in any cells, as segments to run."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from superdraft.decoding.model.segments import Segment


@dataclass(eq=False)
class Text:
    """A text in a tree: its tokens that have been run, and the cells of those behind the first `base` ones."""

    slot: int
    waiting: list[int]
    token_ids: list[int] = field(default_factory=list)
    base: int = 0
    cells: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fed:
    """Tokens of a text to run."""

    text: Text
    segment: Segment
    token_ids: list[int]


class RandomTrees:
    """Texts that grow at random, several in a slot.

    Args:
        rng: source of all choices.
        prompts: the prompt of each slot, at least one token each.
        num_cells: cells of a slot.
        counts: how many tokens a text may get in a step.
    """

    def __init__(
        self, rng: random.Random, prompts: Sequence[list[int]], num_cells: int, counts: Sequence[int] = (1, 1, 1, 2, 9)
    ) -> None:
        self.texts = [Text(slot, list(prompt)) for slot, prompt in enumerate(prompts)]
        self._rng, self._num_cells, self._counts = rng, num_cells, counts
        self._trunks = [len(prompt) for prompt in prompts]

    def fork(self, max_texts: int) -> tuple[Text, Text] | None:
        """Add a text that begins like another one, up to any place; return that one and the new one."""
        grown = [text for text in self.texts if not text.waiting]
        if not grown or len(self.texts) >= max_texts:
            return None
        source = self._rng.choice(grown)
        length = self._rng.randint(1, len(source.token_ids))
        base = min(source.base, length)
        twin = Text(source.slot, [], source.token_ids[:length], base, source.cells[: length - base])
        self.texts.append(twin)
        return source, twin

    def drop(self) -> Text | None:
        """Drop a text that is not the only one of its slot; its cells are taken again."""
        many = [text for text in self.texts if sum(other.slot == text.slot for other in self.texts) > 1]
        if not many:
            return None
        dropped = self._rng.choice(many)
        self.texts.remove(dropped)
        return dropped

    def feed(self) -> list[Fed]:
        """Some tokens of most texts, slot after slot or in any order; they count as run."""
        rng = self._rng
        fed = [self._next(text) for text in self.texts if text.waiting or rng.random() < 0.8]
        if rng.random() < 0.5:
            fed.sort(key=lambda one: one.segment.slot)
        else:
            rng.shuffle(fed)
        return fed

    def _next(self, text: Text) -> Fed:
        rng, start = self._rng, len(text.token_ids)
        if text.waiting:
            count = rng.randint(1, len(text.waiting))
            tokens, text.waiting = text.waiting[:count], text.waiting[count:]
            text.base += count
            segment = Segment.plain(text.slot, start, count)
        else:
            used = {cell for other in self.texts if other.slot == text.slot for cell in other.cells}
            free = [cell for cell in range(self._trunks[text.slot], self._num_cells) if cell not in used]
            tokens = [rng.randrange(1, 300) for _ in range(rng.choice(self._counts))]
            text.cells += tuple(rng.sample(free, len(tokens)))
            segment = Segment(text.slot, start, len(tokens), text.base, text.cells)
        text.token_ids += tokens
        return Fed(text, segment, tokens)
