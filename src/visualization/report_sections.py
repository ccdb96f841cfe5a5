"""The parts of the report that need no script: trust, metrics, curves, how it was made."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from src.clusters.trust import describe
from src.evaluation.tables import COLUMNS, ERRORS, score_rows
from src.storage.metrics_log import Record
from src.storage.scores import ScanScores, Scores
from src.visualization.figures import cluster_scan, styled, training_curves
from src.visualization.results import Results


def verdict(results: Results) -> str:
    """The trust report in one line of HTML, if there is one."""
    if "trust" not in results.metrics:
        return ""
    return f'<p id="verdict">Trust: {escape(describe(results.metrics["trust"]))}.</p>'


def sections(results: Results, records: Sequence[Record]) -> str:
    """The HTML of every section that the run has data for."""
    metrics = results.metrics
    parts = {
        "scan": ("How many clusters", scan_image(metrics.get("scan"))),
        "metrics": ("Metrics", metrics_table(metrics)),
        "training": ("Training", training_image(records)),
        "made": ("How it was made", how_made(results)),
    }
    return "\n".join(
        f'<section id="{key}"><h2>{title}</h2><div class="scroll">{content}</div></section>'
        for key, (title, content) in parts.items()
        if content
    )


def scan_image(scan: ScanScores | None) -> str:
    """The scores by number of clusters, if the clustering stage chose it."""
    if scan is None:
        return ""
    with styled():
        return _svg(cluster_scan(scan), "Scores by number of clusters")


def metrics_table(metrics: Scores) -> str:
    """The metrics of every split, baselines below the learned features; only those that exist."""
    columns = {"images": "images"} | COLUMNS
    columns["transferred_accuracy"] = "accuracy, named on " + str(metrics["fit"]["named_on"])
    scored = list(score_rows(metrics))
    columns = {
        column: title
        for column, title in columns.items()
        if any(scores.get(column) is not None for *_, scores in scored)
    }
    rows = [
        [
            *names,
            *(
                _cell(column, scores.get(column), scores.get(ERRORS.get(column, "")))
                for column in columns
            ),
        ]
        for *names, scores in scored
    ]
    return _table(["features", "clusters", "split", *columns.values()], rows)


def _cell(column: str, value: float | None, error: float | None) -> str:
    """With the standard error of a score from a sample."""
    if value is None:
        return "-"
    if column == "images":
        return f"{value:,}"
    if column.endswith("accuracy"):
        return f"{value:.1%}" if error is None else f"{value:.1%} ± {error:.1%}"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.1g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def training_image(records: Sequence[Record]) -> str:
    """The training curves as an SVG image; the page inverts it in the dark theme."""
    if not records:
        return ""
    with styled():
        return _svg(training_curves(records), "Curves by epoch")


def _svg(figure: Figure, kind: str) -> str:
    svg = io.BytesIO()
    # Without the date, the same run gives the same page.
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    titles = ", ".join(ax.get_title(loc="left") for ax in figure.axes)
    content = base64.b64encode(svg.getvalue()).decode()
    return f'<img alt="{kind}: {titles}" src="data:image/svg+xml;base64,{content}">'


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
