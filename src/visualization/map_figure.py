"""The figure of the 2-D map: the same points by cluster and by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from src.visualization.figures import WIDTH, short
from src.visualization.palette import UNKNOWN, cluster_colors, colors

TITLE, LINE = 0.35, 0.18
"""Inches: above a map, and of a line in the legend below it."""
MOST_NAMES = 20
"""More names have no legend: nobody could tell so many colors apart."""

Entry = tuple[str, str]
"""Color and name."""


def projection_map(
    xy_N2: np.ndarray,
    clusters: np.ndarray,
    cluster_names: Sequence[str],
    class_of_cluster: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    method: str,
) -> Figure:
    """The points colored by cluster and, where any has a class, by class beside it.

    A cluster has the color, and the place in the legend, of its class; its number stands at the
    median of its points.
    """
    inks = cluster_colors(class_of_cluster, len(class_names))
    last = len(class_names)  # -1, no class, goes there
    order = sorted(range(len(inks)), key=lambda k: class_of_cluster[k] % (last + 1))
    entries = _entries([inks[k] for k in order], [cluster_names[k] for k in order], 0)
    maps = [("cluster", clusters, inks, entries)]
    if (labels >= 0).any():
        inks = colors(len(class_names))
        maps.append(("class", labels, inks, _entries(inks, class_names, int((labels < 0).sum()))))
    side = WIDTH / 2 if len(maps) == 2 else 6.0
    columns = min(_columns(names, side) for *_, names in maps)
    legend = LINE * max(-(-len(names) // columns) for *_, names in maps)
    high = TITLE + side + legend + 0.1
    figure = Figure(figsize=(side * len(maps), high))
    figure.set_layout_engine("none")  # a legend is to have its place, and the map its square
    for at, (what, groups, inks, names) in enumerate(maps):
        box = ((at + 0.01) / len(maps), (legend + 0.1) / high, 0.98 / len(maps), side / high)
        ax = figure.add_axes(box)
        _scatter(ax, xy_N2, groups, inks)
        ax.set_title(f"{method}, colored by {what}")
        if names:
            _legend(ax, names, columns)
    for k in np.unique(clusters):
        x, y = np.median(xy_N2[clusters == k], axis=0)
        halo = [withStroke(linewidth=2.5, foreground="white")]
        figure.axes[0].text(
            x, y, str(k), ha="center", va="center", path_effects=halo,
            fontsize=9, fontweight="bold",
        )  # fmt: skip
    return figure


def _scatter(ax: Axes, xy_N2: np.ndarray, groups: np.ndarray, inks: Sequence[str]) -> None:
    """Groups of -1 lie below all others, in gray; the others in random order, none on top."""
    known = np.random.default_rng(0).permutation(np.flatnonzero(groups >= 0))
    gray = np.flatnonzero(groups < 0)
    for rows, color, alpha in (
        (gray, UNKNOWN, 0.3),
        (known, np.array(inks)[groups[known]], 0.8),
    ):
        size = float(np.clip(25_000 / max(len(rows), 1), 0.5, 10))
        ax.scatter(
            xy_N2[rows, 0], xy_N2[rows, 1], s=size, c=color, alpha=alpha, linewidths=0,
            rasterized=len(rows) > 2000,
        )  # fmt: skip
    low, top = xy_N2.min(axis=0), xy_N2.max(axis=0)
    half = 0.52 * max(float((top - low).max()), 1e-6)
    (x, y) = (low + top) / 2
    ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _entries(inks: Sequence[str], names: Sequence[str], unknown: int) -> list[Entry]:
    if len(names) > MOST_NAMES:
        return []
    entries = [*zip(inks, short(names), strict=True)]
    return entries + ([(UNKNOWN, f"no class ({unknown:,})")] if unknown else [])


def _columns(names: list[Entry], side: float) -> int:
    """As many columns as fit below a map, up to five."""
    widest = 0.27 + 0.052 * max((len(name) for _, name in names), default=0)
    return max(1, min(5, int(side / widest)))


def _legend(ax: Axes, names: list[Entry], columns: int) -> None:
    dots = [Line2D([], [], linestyle="", marker="o", color=color) for color, _ in names]
    ax.legend(
        dots, [name for _, name in names], loc="upper center", bbox_to_anchor=(0.5, 0),
        ncols=columns, markerscale=0.8, handletextpad=0.1, columnspacing=0.8,
        borderaxespad=0, fontsize=7.5,
    )  # fmt: skip
