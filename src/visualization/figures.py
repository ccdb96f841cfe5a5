"""The figures of a run: functions from numbers to matplotlib figures.

None of them needs a display, writes a file or changes matplotlib's global state.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from src.runtime.cli import printable
from src.storage.scores import ScanScores
from src.visualization.palette import BASE

STYLE: dict[str, Any] = {
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#55595f",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "xtick.color": "#55595f",
    "ytick.color": "#55595f",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text, as journals require
    "svg.hashsalt": "",  # ids are the same every time, not random
    "text.parse_math": False,  # a class may be called $x$
}

BLUE, ORANGE = BASE[:2]
WIDTH = 7.2
"""Inches: two columns of a paper."""
CONFUSED = 300
"""The confusion matrix shows at most this many classes; more would be finer than the figure."""
CLUSTER_ROWS = 30
"""The picture figure shows at most this many clusters, the largest."""
NAME_LENGTH = 20
"""Letters of a name that fit into a figure."""


def shortened(names: Sequence[str]) -> list[str]:
    return [
        n if len(n) <= NAME_LENGTH else n[: NAME_LENGTH - 1] + "…" for n in map(printable, names)
    ]


def styled() -> AbstractContextManager[None]:
    """Create and save figures inside this context."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, learning rate, accuracy and health by epoch, from the records of `metrics.jsonl`."""
    panels = [
        ("Loss", "lower is better", "NT-Xent loss",
         {"loss": "each step", "epoch loss": "epoch mean"}),
        ("Learning rate", "set by the schedule", "learning rate", {"learning_rate": ""}),
        ("Accuracy", "higher is better", "accuracy",
         {"knn_accuracy": "k-NN", "kmeans_accuracy": "K-means"}),
        ("Gradient, activation", "a steep rise is bad", "norm or RMS",
         {"gradient_norm": "gradient", "activation_rms": "activation"}),
        ("Projection spread", "near 0 means collapse", "standard deviation",
         {"projection_std": ""}),
        ("Projection rank", "a few mean collapse", "effective rank",
         {"projection_rank": ""}),
    ]  # fmt: skip
    panels = [
        (title, hint, unit, lines)
        for title, hint, unit, labels in panels
        if (lines := {label: xy for name, label in labels.items() if (xy := curve(records, name))})
    ]
    last_epoch = max(record["epoch"] for record in records)
    rows = max(1, -(-len(panels) // 3))
    figure = Figure(figsize=(WIDTH, 2.5 * rows))
    grid = figure.add_gridspec(rows, 6)
    for number, (title, hint, unit, lines) in enumerate(panels):
        row, column = divmod(number, 3)
        span = 6 // min(3, len(panels) - 3 * row)  # fewer panels in the last row are wider
        ax = figure.add_subplot(grid[row, column * span : (column + 1) * span])
        _draw_lines(ax, lines)
        _set_title(ax, title, hint, lines=2)
        ax.set(xlabel="epoch", ylabel=unit, xlim=(0, last_epoch * 1.04))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_formatter(_percent if title == "Accuracy" else "{x:g}")
    return figure


def curve(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """The epochs and values of a quantity, from the records of steps if they have it, otherwise
    of epochs; "epoch loss" is the mean loss of each epoch."""
    kinds = ("epoch",) if name == "epoch loss" else ("step", "epoch")
    field = name.removeprefix("epoch ")
    by_kind = (
        [(r["epoch"], r[field]) for r in records if r["kind"] == kind and r.get(field) is not None]
        for kind in kinds
    )
    return next(filter(None, by_kind), [])


def _draw_lines(ax: Axes, lines: dict[str, list[tuple[float, float]]]) -> None:
    for number, (label, points) in enumerate(lines.items()):
        faint = label == "each step" and len(lines) > 1
        ax.plot(
            *zip(*points, strict=True), label=label, color=(BLUE, ORANGE)[number],
            alpha=0.4 if faint else 1, linewidth=1 if faint else None,
            marker="o" if len(points) < 40 and not faint else "", markersize=2.5,
        )  # fmt: skip
    if len(lines) > 1:  # above the axes, where no line passes
        legend = ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1, borderpad=0.1,
            handlelength=1.2, columnspacing=1, handletextpad=0.5,
        )  # fmt: skip
        legend.set_in_layout(False)  # all axes stay equally wide


def _set_title(ax: Axes, title: str, hint: str, lines: int = 1) -> None:
    """A title with room for `lines` between it and the axes: `hint` on the first, which says which
    way is good, and a legend on the second."""
    line = 12  # points
    ax.set_title(title, pad=4 + line * lines)
    ax.annotate(
        hint, (0, 1), (0, 4 + line * (lines - 1)), xycoords="axes fraction",
        textcoords="offset points", fontsize=8, color="#55595f",
    )  # fmt: skip


def pca_variance(ratio_P: np.ndarray) -> Figure:
    """The share of variance that each principal component explains, and the cumulative share."""
    figure = Figure(figsize=(WIDTH, 2.6))
    left, right = figure.subplots(1, 2)
    component = np.arange(1, len(ratio_P) + 1)
    left.plot(component, ratio_P, color=BLUE, marker="o", markersize=2)
    left.set(title="Variance of each component", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_minor_locator(NullLocator())
    total = np.cumsum(ratio_P)
    right.fill_between(component, total, color=BLUE, alpha=0.15, linewidth=0)
    right.plot(component, total, color=BLUE)
    right.set(title=f"{len(total)} components keep {total[-1]:.1%}", ylim=(0, 1.02))
    for ax in (left, right):
        ax.set(xlabel="principal component", ylabel="explained variance")
        ax.set_xlim(min(1, len(total) - 1), len(total) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_formatter(_percent)
    return figure


def _percent(value: float, _: float) -> str:
    return f"{value * 100:.6g}%"


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Rows are classes, columns the classes that clusters are named after, in percent of the row.

    If `counts` has one more column, it holds the images of clusters without a class.
    """
    columns = shortened([*class_names, "no class"][: counts.shape[1]])
    side = 0.7 + 0.065 * max(map(len, columns)) + float(np.clip(0.36 * len(columns), 1.8, 10))
    figure = Figure(figsize=(side, side))
    ax = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(columns)), columns, **(slanted if max(map(len, columns)) > 3 else {}))
    ax.set_yticks(range(len(class_names)), columns[: len(class_names)])
    ax.tick_params(length=0)
    ax.set(xlabel="class of the cluster", ylabel="class of the image")
    _set_title(ax, title, "percent of each class")
    if len(class_names) <= 25:
        for row, column in np.ndindex(*share.shape):
            if counts[row, column]:
                ink = "white" if share[row, column] > 0.55 else "#333333"
                text = f"{share[row, column] * 100:.0f}"
                ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    return figure


def silhouette_profile(
    scores: np.ndarray, clusters: np.ndarray, names: Sequence[str], colors: Sequence[str]
) -> Figure:
    """The silhouette of each image, a sorted band per cluster, and the mean (Rousseeuw 1987)."""
    figure = Figure(figsize=(WIDTH * 0.62, float(np.clip(1 + 0.3 * len(names), 3, 12))))
    ax = figure.subplots()
    gap, start, ticks = max(1, len(scores) // 100), 0, []
    for k, color in enumerate(colors):
        own = np.sort(scores[clusters == k])
        ax.fill_betweenx(start + np.arange(len(own)), own, color=color, linewidth=0, step="mid")
        ticks.append(start + len(own) / 2)
        start += len(own) + gap
    ax.axvline(scores.mean(), color="black", linestyle=(0, (4, 3)), linewidth=1)
    mean = f"higher is better; dashed: mean {scores.mean():.3f}"
    _set_title(ax, "Silhouette of each image", mean)
    ax.set_yticks(ticks, shortened(names))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="silhouette", ylabel="cluster", ylim=(start, -gap))
    return figure


def cluster_sizes(sizes: dict[str, np.ndarray], cluster_names: Sequence[str]) -> Figure:
    """The number of images in each cluster, stacked by split."""
    figure = Figure(figsize=(WIDTH * 0.62, float(np.clip(1 + 0.24 * len(cluster_names), 2.4, 12))))
    ax = figure.subplots()
    start = np.zeros(len(cluster_names))
    for (split, counts), color in zip(sizes.items(), (BLUE, "#8cc3e6", ORANGE), strict=False):
        bars = ax.barh(range(len(counts)), counts, 0.75, left=start, color=color, label=split)
        start += counts
    ax.bar_label(bars, [f"{total:,.0f}" for total in start], padding=3, fontsize=7.5)
    ax.set_yticks(range(len(cluster_names)), shortened(cluster_names))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set(xlabel="images", ylabel="cluster", ylim=(len(cluster_names) - 0.4, -0.6))
    ax.margins(x=0.1)
    ax.set_title("Images in each cluster")
    if len(sizes) > 1:
        figure.legend(loc="outside upper right", ncols=len(sizes))
    return figure


def cluster_pictures(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray]], titles: tuple[str, str]
) -> Figure:
    """A row for each cluster: its name, and uint8 (n, S, S, 3) pictures left and right of a gap."""
    count = max(max(len(left), len(right)) for _, left, right in rows)
    longest = max(len(name) for name, _, _ in rows)
    margin, top = 0.12 + 0.065 * min(longest, NAME_LENGTH), 0.3  # inches
    gap = 0.3  # pictures
    cell = (WIDTH - margin) / (2 * count + gap)
    high = cell * len(rows)
    figure = Figure(figsize=(WIDTH, high + top))
    figure.set_layout_engine("none")
    share = high / (high + top)
    ax = figure.add_axes((margin / WIDTH, 0, 1 - margin / WIDTH, share))
    for y, (name, left, right) in enumerate(rows):
        for start, images in ((0, left), (count + gap, right)):
            for x, image in enumerate(images):
                box = (start + x + 0.03, start + x + 0.97, y + 0.97, y + 0.03)
                ax.imshow(image, extent=box, interpolation="antialiased")
        ax.text(-0.12, y + 0.5, shortened([name])[0], ha="right", va="center")
    for start, title in zip((0, count + gap), titles, strict=True):
        ax.text(start, -0.12, title, fontsize=10, fontweight="bold")
    ax.set(xlim=(0, 2 * count + gap), ylim=(len(rows), 0))
    ax.set_axis_off()
    return figure


def cluster_scan(scan: ScanScores) -> Figure:
    """The scores of a scan over the number of clusters, and the number that it picked."""
    panels = [
        ("Separation", "higher", "silhouette of clustered rows", scan["silhouette"]),
        ("Davies-Bouldin index", "lower", "of clustered rows", scan["davies_bouldin"]),
        ("Stability", "higher", "adjusted Rand index of halves", scan["stability"]),
    ]
    panels = [panel for panel in panels if any(value is not None for value in panel[3])]
    figure = Figure(figsize=(WIDTH, 2.5))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, better, unit, values) in zip(axes, panels, strict=True):
        ax.axvline(scan["picked"], color=ORANGE, linestyle=(0, (4, 3)), linewidth=1.2)
        # None becomes NaN, a gap in the line.
        ax.plot(scan["clusters"], np.array(values, float), color=BLUE, marker="o", markersize=3)
        _set_title(ax, title, f"{better} is better")
        ax.set(ylabel=unit, xlabel=f"clusters (picked: {scan['picked']})")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure
