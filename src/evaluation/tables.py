"""Metrics as aligned text."""

from collections.abc import Iterator
from typing import Any

from src.runtime.cli import printable

COLUMNS = {
    "hungarian_accuracy": "Hungarian accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "silhouette": "silhouette",
    "davies_bouldin": "Davies-Bouldin",
    "knn_accuracy": "k-NN",
}
K_MEANS, SMOOTHED = "K-means", "K-means, neighbors smoothed"
FEATURES = "learned features"
BASELINES = {"raw_pixels": "raw pixels", "untrained": "untrained network"}


def summary_table(metrics: dict[str, Any]) -> str:
    """The content of metrics.json as aligned text: a row for each split, features and clusters.

    A dash stands for a metric that is undefined or needs labels that the split does not have; a
    column of dashes is left out.
    """
    scored = list(score_rows(metrics))
    columns = [c for c in COLUMNS if any(scores.get(c) is not None for *_, scores in scored)]
    rows = [["features", "clusters", "split", *(COLUMNS[column] for column in columns)]]
    for *names, scores in scored:
        rows.append([*names, *(_number(scores.get(column)) for column in columns)])
    table = aligned(rows, left=3)
    named_on = metrics["kmeans"]["named_on"]
    if named_on is None:
        return table
    table += "\nHungarian accuracy: clusters matched to classes on each split itself, as in papers."
    table += f"\nk-NN: accuracy of the features themselves, by the 20 nearest images of {named_on}."
    for split, scores in used_splits(metrics).items():
        if split != named_on and "transferred_accuracy" in scores:
            accuracy = _number(scores["transferred_accuracy"])
            table += f"\nWith clusters named on {named_on}, {split} has an accuracy of {accuracy}."
    return table


def score_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Features, clusters, split and scores of each row in metrics.json, grouped by split."""
    parts = {FEATURES: metrics}
    parts |= {BASELINES[name]: part for name, part in metrics.get("baselines", {}).items()}
    for split in metrics["splits"]:
        for features, part in parts.items():
            if split in part["splits"]:
                yield features, K_MEANS, split, part["splits"][split]
                if "smoothed" in part:
                    yield features, SMOOTHED, split, part["smoothed"]["splits"][split]


def used_splits(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of the clusters that later stages use, by split."""
    return metrics.get("smoothed", metrics)["splits"]


def class_line(per_class: dict[str, dict[str, float]]) -> str:
    """F1 of every class, or of the 10 worst, in one line."""
    worst = sorted(per_class, key=lambda name: per_class[name]["f1"])
    f1 = ", ".join(f"{printable(name)} {_number(per_class[name]['f1'])}" for name in worst[:10])
    more = f", {len(worst) - 10:,} more in metrics.json" if len(worst) > 10 else ""
    return f"F1 of each class, worst first: {f1}{more}"


def aligned(rows: list[list[str]], left: int = 1) -> str:
    """Rows of text in columns, the first `left` columns left-aligned and the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
