"""Tables in Markdown."""

import math
from collections.abc import Iterable, Sequence

from superdraft.evaluation.measures.bootstrap import Interval


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one line per row."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def format_interval(one: Interval) -> str:
    """A value with its bounds, `0.267 [0.245, 0.290]`; empty if there is no value."""
    if not math.isfinite(one.value):
        return ""
    digits = 3 if abs(one.value) < 1 else 2
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"
