"""The parts of the report that are plain HTML: metrics, training curves, how the run was made."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from src.evaluation.tables import COLUMNS, score_rows
from src.storage.metrics_log import Record
from src.visualization.figures import curve
from src.visualization.results import Results

CHARTS = {
    "Loss": ["epoch loss"],
    "Accuracy while training": ["knn_accuracy", "kmeans_accuracy"],
    "Learning rate": ["learning_rate"],
    "Gradient norm": ["gradient_norm"],
    "Spread of the projections": ["projection_std"],
    "Rank of the projections": ["projection_rank"],
}
LEGEND = {"knn_accuracy": "k-NN", "kmeans_accuracy": "K-means"}
WIDE, HIGH, LEFT, BOTTOM = 320, 170, 46, 22


def metrics_table(metrics: dict[str, Any]) -> str:
    """The metrics of every split, baselines below the learned features."""
    columns = {"images": "images"} | COLUMNS
    if any("transferred_accuracy" in scores for scores in metrics["splits"].values()):
        columns["transferred_accuracy"] = "accuracy, named on " + str(metrics["kmeans"]["named_on"])
    rows = [
        [kind, split, *(_cell(column, scores.get(column)) for column in columns)]
        for kind, split, scores in score_rows(metrics)
    ]
    return _table(["features", "split", *columns.values()], rows)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    if column == "images":
        return f"{value:,}"
    return f"{value:.1%}" if column.endswith("accuracy") else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def how_made(results: Results) -> str:
    """What the manifest knows: data, checkpoint, settings, commit and versions."""
    extraction, clustering = results.extraction, results.clustering
    data, checkpoint = extraction["dataset"], extraction["checkpoint"]
    splits = ", ".join(f"{count:,} {name}" for name, count in data["splits"].items())
    facts = {
        "Dataset": f"{data['name']} ({splits}), {data['image_size']} px",
        "Fingerprint": data["fingerprint"],
        "Checkpoint": f"{checkpoint['file']}, epoch {checkpoint['epoch']}",
        "Digest": checkpoint["digest"],
        "Clusters": f"{clustering['clusters']}, fitted on {clustering['fit_on']}",
        "Commit": str(clustering.get("commit") or extraction.get("commit")),
        "Versions": ", ".join(f"{k} {v}" for k, v in clustering.get("versions", {}).items()),
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return (
        f"<dl>{listed}</dl>"
        + _settings("Settings of the training", checkpoint["config"])
        + _settings("Settings of the clustering", clustering.get("config", {}))
    )


def _settings(title: str, config: dict[str, Any]) -> str:
    rows = [[name, str(value)] for name, value in config.items()]
    table = _table(["setting", "value"], rows)
    return f"<details><summary>{escape(title)}</summary>{table}</details>"


def training_charts(records: Sequence[Record]) -> str:
    """Small line charts, one for each quantity that the training log holds."""
    charts = []
    for title, names in CHARTS.items():
        lines = {LEGEND.get(name, ""): curve(records, name) for name in names}
        lines = {label: line for label, line in lines.items() if len(line[0])}
        if lines:
            charts.append(_chart(title, lines, percent="Accuracy" in title))
    return "".join(charts) or "<p>There is no training log.</p>"


def _chart(title: str, lines: dict[str, tuple[list[float], list[float]]], percent: bool) -> str:
    """An SVG line chart over epochs that takes its colors from the page's style."""
    x = np.concatenate([line[0] for line in lines.values()])
    y = np.concatenate([line[1] for line in lines.values()])
    x_ticks, y_ticks = ticks(x.min(), x.max()), ticks(y.min(), y.max())
    x_low, x_high = x.min(), max(x.max(), x.min() + 1)
    y_low, y_high = min(y.min(), y_ticks[0]), max(y.max(), y_ticks[-1], y.min() + 1e-9)

    def across(value: float) -> float:
        return round(float(LEFT + (value - x_low) / (x_high - x_low) * (WIDE - LEFT - 8)), 1)

    def up(value: float) -> float:
        return round(float(8 + (y_high - value) / (y_high - y_low) * (HIGH - BOTTOM - 8)), 1)

    parts = [
        f'<line class="rule" x1="{LEFT}" x2="{WIDE}" y1="{up(t)}" y2="{up(t)}"/>'
        f'<text x="{LEFT - 6}" y="{up(t) + 4}" text-anchor="end">'
        f"{f'{t:.0%}' if percent else f'{t:g}'}</text>"
        for t in y_ticks
    ] + [f'<text x="{across(t)}" y="{HIGH - 4}" text-anchor="middle">{t:g}</text>' for t in x_ticks]
    for number, (xs, ys) in enumerate(lines.values()):
        keep = np.linspace(0, len(xs) - 1, min(len(xs), 400)).astype(int)
        points = " ".join(f"{across(xs[i])},{up(ys[i])}" for i in keep)
        parts.append(f'<polyline class="line-{number}" points="{points}"/>')
        end = f'cx="{across(xs[-1])}" cy="{up(ys[-1])}"'
        parts.append(f'<circle class="line-{number}" {end} r="3"/>')
    last = next(iter(lines.values()))[1][-1]
    labels = " ".join(
        f'<span class="key-{number}">{escape(label)}</span>'
        for number, label in enumerate(lines)
        if label
    )
    alt = escape(f"{title} by epoch, last value {last:.4g}", quote=True)
    return (
        f"<figure><figcaption>{escape(title)} {labels}</figcaption>"
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'
        "</figure>"
    )


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About `wanted` round numbers from `low` to `high`."""
    span = high - low if high > low else max(abs(high), 1e-9)
    power = 10.0 ** np.floor(np.log10(span / wanted))
    step = power * next(m for m in (1, 2, 5, 10) if m * power * wanted >= span)
    first = np.ceil(low / step - 1e-9)
    last = np.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in np.arange(first, max(last, first) + 1)]
