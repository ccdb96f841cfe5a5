"""The sections of the report that need no script: metrics, training curves, how it was made."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from src.evaluation.tables import COLUMNS, score_rows
from src.storage.metrics_log import Record
from src.visualization.figures import styled, training_curves
from src.visualization.results import Results


def metrics_table(metrics: dict[str, Any]) -> str:
    """The metrics of every split, baselines below the learned features."""
    columns = {"images": "images"} | COLUMNS
    if any("transferred_accuracy" in scores for scores in metrics["splits"].values()):
        columns["transferred_accuracy"] = "accuracy, named on " + str(metrics["kmeans"]["named_on"])
    rows = [
        [*names, *(_cell(column, scores.get(column)) for column in columns)]
        for *names, scores in score_rows(metrics)
    ]
    return _table(["features", "clusters", "split", *columns.values()], rows)


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


def training_image(records: Sequence[Record]) -> str:
    """The training curves as an SVG image; the page inverts it in the dark theme."""
    if not records:
        return "<p>No training was logged.</p>"
    svg = io.BytesIO()
    with styled():
        figure = training_curves(records)
        # Without the date, the same run gives the same page.
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    titles = ", ".join(ax.get_title(loc="left") for ax in figure.axes)
    content = base64.b64encode(svg.getvalue()).decode()
    return f'<img alt="Curves by epoch: {titles}" src="data:image/svg+xml;base64,{content}">'


def how_made(results: Results) -> str:
    """What the manifest records: data, checkpoint, settings, commit and versions."""
    extraction, clustering = results.extraction, results.clustering
    data, checkpoint = extraction["dataset"], extraction["checkpoint"]
    splits = ", ".join(f"{count:,} {name}" for name, count in data["splits"].items())
    size = f", {data['image_size']} px" if data["image_size"] else ""
    network = {"Checkpoint": "none: the features were imported"}
    if checkpoint:
        file, epoch = checkpoint["file"], checkpoint["epoch"]
        network = {"Checkpoint": f"{file}, epoch {epoch}", "Digest": checkpoint["digest"]}
    facts = {
        "Dataset": f"{data['name']} ({splits}){size}",
        "Fingerprint": data["fingerprint"],
        **network,
        "Clusters": f"{clustering['clusters']}, fitted on {clustering['fit_on']}",
        "Commit": str(clustering.get("commit") or extraction.get("commit")),
        "Versions": ", ".join(f"{k} {v}" for k, v in clustering.get("versions", {}).items()),
    }
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return (
        f"<dl>{items}</dl>"
        + (_settings("Training settings", checkpoint["config"]) if checkpoint else "")
        + _settings("Clustering settings", clustering.get("config", {}))
    )


def _settings(title: str, config: dict[str, Any]) -> str:
    rows = [[name, str(value)] for name, value in config.items()]
    table = _table(["setting", "value"], rows)
    return f"<details><summary>{title}</summary>{table}</details>"
