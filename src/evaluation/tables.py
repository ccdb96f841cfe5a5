"""Metrics as aligned text for the terminal."""

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
BASELINES = {"raw_pixels": "raw pixels", "untrained": "untrained network"}


def summary_table(metrics: dict[str, Any]) -> str:
    """The content of metrics.json as aligned text: a row for each split of each kind of features.

    A dash stands for a metric that is undefined or needs labels that the split does not have.
    """
    rows = [["", "split", *COLUMNS.values()]]
    for kind, split, scores in score_rows(metrics):
        rows.append([kind, split, *(_number(scores.get(column)) for column in COLUMNS)])
    table = aligned(rows, left=2)
    named_on = metrics["kmeans"]["named_on"]
    if named_on is None:
        return table
    table += "\nHungarian accuracy: clusters matched to classes on each split itself, as in papers."
    table += f"\nk-NN: accuracy of the features themselves, by the 20 nearest images of {named_on}."
    for split, scores in metrics["splits"].items():
        if split != named_on and "transferred_accuracy" in scores:
            accuracy = _number(scores["transferred_accuracy"])
            table += f"\nWith clusters named on {named_on}, {split} has an accuracy of {accuracy}."
    return table


def score_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind of features, split and scores in metrics.json, grouped by split."""
    kinds = {"learned features": metrics["splits"]} | {
        BASELINES[name]: part["splits"] for name, part in metrics.get("baselines", {}).items()
    }
    for split in metrics["splits"]:
        for kind, splits in kinds.items():
            if split in splits:
                yield kind, split, splits[split]


def class_table(per_class: dict[str, dict[str, float]]) -> str:
    """Precision, recall and F1 of every class as aligned text."""
    rows = [["class", "precision", "recall", "F1"]]
    for name, scores in per_class.items():
        numbers = (_number(scores[key]) for key in ("precision", "recall", "f1"))
        rows.append([printable(name), *numbers])
    return aligned(rows)


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
