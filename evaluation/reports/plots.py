"""Plots of figures with confidence bounds, as PNG or SVG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from superdraft.evaluation.measures.bootstrap import Interval
from superdraft.evaluation.reports.report import TITLES

mpl.use("Agg")

from matplotlib import pyplot as plt  # after the choice of the backend

Bounded = Mapping[str, Interval]
Points = Sequence[tuple[float, Interval]]


def bars(path: Path, decoders: Mapping[str, Bounded], names: Sequence[str]) -> None:
    """Draw a panel per figure, with a bar per decoder."""
    shown = [name for name in names if any(name in found for found in decoders.values())]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 1.5 + 0.35 * len(decoders)), squeeze=False)
    places = np.arange(len(decoders))
    for index, (axis, name) in enumerate(zip(axes[0], shown, strict=True)):
        found = [decoders[label].get(name) for label in decoders]
        for place, one in zip(places, found, strict=True):
            if one is not None:
                axis.barh(place, one.value, xerr=_errors([one]), color=f"C{place % 10}", error_kw={"capsize": 3})
        axis.set_title(TITLES.get(name, name))
        axis.set_yticks(places, list(decoders) if index == 0 else [""] * len(decoders))
        axis.invert_yaxis()
    _save(figure, path)


def lines(path: Path, series: Mapping[str, Points], x_label: str, y_label: str) -> None:
    """Draw a line with error bars per series of (x, interval)."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for label, points in series.items():
        ys = [one for _, one in points]
        axis.errorbar(
            [x for x, _ in points], [y.value for y in ys], yerr=_errors(ys), marker="o", capsize=3, label=label
        )
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    _save(figure, path)


def trade_off(
    path: Path, series: Mapping[str, Sequence[tuple[Interval, Interval]]], x_label: str, y_label: str
) -> None:
    """Draw a point with error bars per pair of figures, cost and quality; those of a series are joined."""
    figure, axis = plt.subplots(figsize=(6.4, 4))
    for label, points in series.items():
        xs, ys = zip(*sorted(points, key=lambda point: point[0].value), strict=True)
        bars = {"xerr": _errors(xs), "yerr": _errors(ys), "elinewidth": 1, "capsize": 2}
        axis.errorbar([x.value for x in xs], [y.value for y in ys], marker="o", label=label, **bars)
    axis.set_xlim(left=0)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="lower right")
    _save(figure, path)


def curves(path: Path, series: Mapping[str, tuple[Any, Any]], x_label: str, y_label: str) -> None:
    """Draw a line per series of x and y."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for label, (xs, ys) in series.items():
        axis.plot(xs, ys, label=label)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    _save(figure, path)


def scatter(
    path: Path, points: Sequence[tuple[float, float, float]], labels: tuple[str, str, str], num_circled: int
) -> None:
    """Draw points (x, y, colour), with circles around the last ones; labels are those of x, y and colour."""
    figure, axis = plt.subplots(figsize=(6, 4))
    xs, ys, colours = np.array(points).T
    drawn = axis.scatter(xs, ys, c=colours, cmap="viridis", s=18)
    axis.scatter(xs[-num_circled:], ys[-num_circled:], s=80, facecolors="none", edgecolors="black")
    figure.colorbar(drawn, label=labels[2])
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.grid(alpha=0.3)
    _save(figure, path)


def _errors(found: Sequence[Interval]) -> Any:
    """Distances to the bounds, shape [2, n]; rounding must not make them negative."""
    below = [max(0.0, one.value - one.low) for one in found]
    above = [max(0.0, one.high - one.value) for one in found]
    return np.array([below, above])


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # Of an SVG, the texts stay texts, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
