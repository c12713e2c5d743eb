"""Plots of figures, with confidence bounds if they have some, as PNG or SVG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from superdraft.evaluation.measures.bootstrap import Interval

mpl.use("Agg")

from matplotlib import pyplot as plt  # after the choice of the backend

Values = Sequence[float] | Sequence[Interval]


def curves(path: Path, series: Mapping[str, tuple[Values, Values]], x_label: str, y_label: str) -> None:
    """Draw a line per series of x and y, with markers and error bars where they are intervals."""
    figure, axis = plt.subplots(figsize=(6.4, 4))
    for label, (xs, ys) in series.items():
        (x, x_errors), (y, y_errors) = _split(xs), _split(ys)
        marker = None if y_errors is None else "o"
        axis.errorbar(x, y, xerr=x_errors, yerr=y_errors, marker=marker, elinewidth=1, capsize=2, label=label)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.tight_layout()
    # Of an SVG, the texts stay texts, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _split(values: Values) -> tuple[list[float], Any]:
    """Values, and the lengths of their error bars, shape [2, n], never negative by rounding; None for plain numbers."""
    known = [one for one in values if isinstance(one, Interval)]
    if not known:
        return [float(one) for one in values if not isinstance(one, Interval)], None
    errors = [(max(0.0, one.value - one.low), max(0.0, one.high - one.value)) for one in known]
    return [one.value for one in known], np.array(errors).T
