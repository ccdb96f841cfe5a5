"""The figure of the 2-D map, colored by cluster and by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from src.visualization.figures import WIDTH, shortened
from src.visualization.palette import UNKNOWN, colors
from src.visualization.results import Results

TITLE, LINE = 0.35, 0.18
"""Inches: the space above a map, and a line of the legend below it."""
LEGEND_NAMES = 20
"""More names get no legend: so many colors cannot be told apart."""


def projection_map(results: Results, xy_N2: np.ndarray, method: str) -> Figure:
    """The points colored by cluster and, if any has a class, a second map colored by class.

    A group takes color and place in the legend from its class. The number of its first cluster, or
    its name if it has none, stands at the median of its points. Ignored images are gray.
    """
    groups, inks, names = results.groups, results.group_colors, results.grouping.labels
    labels, class_names = results.labels, results.class_names
    # A class of -1, none, goes last.
    order = np.argsort(results.grouping.classes % (len(class_names) + 1), kind="stable").tolist()
    entries = _entries([inks[k] for k in order], [names[k] for k in order], 0)
    maps = [("cluster", groups, inks, entries)]
    if (labels >= 0).any():
        inks = colors(len(class_names))
        maps.append(("class", labels, inks, _entries(inks, class_names, int((labels < 0).sum()))))
    side = WIDTH / 2 if len(maps) == 2 else 6.0
    letters = max((len(name) for *_, entries in maps for _, name in entries), default=0)
    columns = max(1, min(5, int(side / (0.27 + 0.052 * letters))))
    legend = LINE * max(-(-len(entries) // columns) for *_, entries in maps)
    x_span, y_span = np.maximum(np.ptp(xy_N2, axis=0), 1e-6)
    shape = float(np.clip(y_span / x_span, 0.4, 1.4))  # a wide map is not half blank
    height = TITLE + shape * side + legend + 0.1
    figure = Figure(figsize=(side * len(maps), height))
    figure.set_layout_engine("none")  # so that all maps have the same size
    center = (xy_N2.min(axis=0) + xy_N2.max(axis=0)) / 2
    reach = 0.52 * max(x_span, y_span / shape) * np.array([1, shape])
    for number, (kind, kinds, inks, entries) in enumerate(maps):
        left, bottom = (number + 0.01) / len(maps), (legend + 0.1) / height
        ax = figure.add_axes((left, bottom, 0.98 / len(maps), shape * side / height))
        _scatter(ax, xy_N2, kinds, inks)
        xlim, ylim = zip(center - reach, center + reach, strict=True)
        ax.set(xlim=xlim, ylim=ylim, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(f"{method}, colored by {kind}")
        if entries:
            dots = [Line2D([], [], linestyle="", marker="o", color=ink) for ink, _ in entries]
            ax.legend(
                dots, [name for _, name in entries], loc="upper center", bbox_to_anchor=(0.5, 0),
                ncols=columns, markerscale=0.8, handletextpad=0.1, columnspacing=0.8,
                borderaxespad=0, fontsize=7.5,
            )  # fmt: skip
    for g in np.unique(groups[groups >= 0]):
        x, y = np.median(xy_N2[groups == g], axis=0)
        halo = [withStroke(linewidth=2.5, foreground="white")]
        figure.axes[0].text(
            x, y, shortened(names[g].split(" → "))[0], ha="center", va="center", path_effects=halo,
            fontsize=9, fontweight="bold",
        )  # fmt: skip
    return figure


def _scatter(ax: Axes, xy_N2: np.ndarray, groups: np.ndarray, inks: Sequence[str]) -> None:
    """Points of group -1 are gray and lie below the others, which are drawn in random order."""
    known = np.random.default_rng(0).permutation(np.flatnonzero(groups >= 0))
    gray = np.flatnonzero(groups < 0)
    for rows, color, alpha in ((gray, UNKNOWN, 0.3), (known, np.array(inks)[groups[known]], 0.8)):
        size = float(np.clip(25_000 / max(len(rows), 1), 0.5, 10))
        ax.scatter(
            xy_N2[rows, 0], xy_N2[rows, 1], s=size, c=color, alpha=alpha, linewidths=0,
            rasterized=len(rows) > 2000,
        )  # fmt: skip


def _entries(inks: Sequence[str], names: Sequence[str], unknown: int) -> list[tuple[str, str]]:
    """Color and name of each group; none if they are too many for a legend."""
    if len(names) > LEGEND_NAMES:
        return []
    entries = [*zip(inks, shortened(names), strict=True)]
    return entries + ([(UNKNOWN, f"no class ({unknown:,})")] if unknown else [])
