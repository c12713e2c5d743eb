"""A simulated typist: the pauses between keys, and what is accepted of the drafts on the screen."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from superdraft.evaluation.measures.typing_simulation import SEGMENT

_PUNCTUATION = tuple(".,!?")
PAUSE_SIGMA = 0.5
"""Of log-normal pauses: one in ten is longer than 1.9 times the median, one in ten shorter than 0.53 times."""


@dataclass(slots=True)
class Pauses:
    """Pauses between keys.

    Attributes:
        chance: decides.
        median_s: in seconds.
    """

    chance: random.Random
    median_s: float

    def next_s(self) -> float:
        """Seconds until the next key."""
        return self.chance.lognormvariate(0, PAUSE_SIGMA) * self.median_s


def best_draft(drafts: Sequence[str], rest: str, *, in_part: bool) -> tuple[int, int]:
    """The draft whose acceptance saves most keys: one key accepts it, and one more for each draft above in the list.

    Args:
        drafts: what is on the screen, best first.
        rest: of the text that is being typed.
        in_part: a draft may be accepted up to the end of any of its words.

    Returns:
        Its place in the list and how many of its characters are accepted, (0, 0) if no draft saves a key.
    """
    lengths = [_accepted_length(draft, rest, in_part) for draft in drafts]
    gains = [length - index - 1 for index, length in enumerate(lengths)]
    best = gains.index(max(gains)) if gains else 0
    return (best, lengths[best]) if gains and gains[best] > 0 else (0, 0)


def _accepted_length(draft: str, rest: str, in_part: bool) -> int:
    ends = [match.end() for match in SEGMENT.finditer(draft)] if in_part else []
    return max((end for end in (len(draft), *ends) if fits(draft[:end], rest)), default=0)


def fits(draft: str, rest: str) -> bool:
    """Whether the rest of a text begins with a draft that ends at the end of a word."""
    if not rest.startswith(draft):
        return False
    behind = rest[len(draft) :]
    return not behind or behind[0].isspace() or behind[0] in _PUNCTUATION or draft[-1:].isspace()
