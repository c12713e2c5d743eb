"""Looks at suggestions: what a shown draft costs and saves, and from which probability on showing pays.

At a place in a text, the best draft that is probable enough appears at the cursor. A look at it costs `look_cost` keys,
whether it is right or not. If its beginning is right, one key accepts the right words (as a typist with *accept word*,
or one who deletes what is wrong, does at best), which saves their other characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from superdraft.evaluation.measures.bootstrap import Interval, as_ratios, interval
from superdraft.evaluation.measures.typing_simulation import accept


@dataclass(frozen=True, slots=True)
class Look:
    """A draft that may be shown.

    Attributes:
        probability: exp of its score.
        keys_saved: keys that accepting it saves; 0 if it is not accepted.
    """

    probability: float
    keys_saved: int


@dataclass(frozen=True, slots=True)
class Minimum:
    """The effect of a least probability.

    Attributes:
        probability: less probable drafts are withheld.
        shown: share of places with a draft.
        precision: share of the shown drafts that saved keys.
        saved: keys saved per place.
        net: keys saved per place, less the cost of looks.
    """

    probability: float
    shown: Interval
    precision: Interval
    saved: Interval
    net: Interval


def keys_saved(draft: str, continuation: str) -> int:
    """The characters of the draft's right words, less the key that accepts them; 0 if the first word is wrong."""
    num_characters, num_keys = accept([draft], continuation)
    return num_characters - num_keys


def effect_of(minimum: float, places: Sequence[Sequence[Look]], look_cost: float) -> Minimum:
    """The effect of a least probability at some places.

    Args:
        minimum: less probable drafts are withheld.
        places: the drafts of each place, best first.
        look_cost: keys.
    """
    shown = [next((look for look in looks if look.probability >= minimum), None) for looks in places]
    is_shown = np.array([look is not None for look in shown], dtype=np.float64)
    is_used = np.array([look is not None and look.keys_saved > 0 for look in shown], dtype=np.float64)
    saved = np.array([0 if look is None else look.keys_saved for look in shown], dtype=np.float64)
    return Minimum(
        minimum,
        interval(as_ratios(is_shown)),
        interval(np.stack([is_used, is_shown], axis=1)),
        interval(as_ratios(saved)),
        interval(as_ratios(saved - look_cost * is_shown)),
    )


def best_of(effects: Sequence[Minimum]) -> Minimum:
    """The effect with the highest net saving; of several, that with the least probability."""
    return max(effects, key=lambda one: (one.net.value, -one.probability))
