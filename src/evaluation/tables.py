"""Metrics as aligned text."""

from collections.abc import Iterator

from src.runtime.cli import printable
from src.storage.scores import (
    ClassScores,
    ClusteringName,
    FeatureScores,
    Scores,
    SplitScores,
    used_splits,
)

COLUMNS = {
    "hungarian_accuracy": "Hungarian accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "silhouette": "silhouette",
    "davies_bouldin": "Davies-Bouldin",
    "knn_accuracy": "k-NN",
}
CLUSTERINGS: dict[ClusteringName, str] = {
    "kmeans": "K-means",
    "smoothed": "K-means, neighbors smoothed",
}
ERRORS = {"silhouette": "silhouette_error", "knn_accuracy": "knn_error"}
"""Where the standard error of a score is, if it is that of a sample."""
FEATURES = "learned features"
BASELINES = {"raw_pixels": "raw pixels", "untrained": "before training"}


def summary_table(scores: Scores) -> str:
    """The content of metrics.json as aligned text: a row for each split, features and clusters.

    A dash stands for a metric that is undefined or needs labels that the split does not have; a
    column of dashes is left out.
    """
    scored = list(score_rows(scores))
    columns = [c for c in COLUMNS if any(row.get(c) is not None for *_, row in scored)]
    rows = [["features", "clusters", "split", *(COLUMNS[column] for column in columns)]]
    for *names, row in scored:
        rows.append([*names, *(_score(row, column) for column in columns)])
    table = aligned(rows, left=3)
    named_on = scores["fit"]["named_on"]
    if any(row.get(error) is not None for *_, row in scored for error in ERRORS.values()):
        table += "\n±: standard error, as the score is that of a random sample of the images."
    if named_on is None:
        if "silhouette" in columns:
            table += (
                "\nSilhouette: higher is better; Davies-Bouldin: lower is better. They compare "
                "clusters of the same features only, not runs or kinds of features."
            )
        return table
    table += "\nHungarian accuracy: clusters matched to classes on each split itself, as in papers."
    table += f"\nk-NN: accuracy of the features themselves, by the 20 nearest images of {named_on}."
    for split, used in used_splits(scores).items():
        if split != named_on and "transferred_accuracy" in used:
            accuracy = _number(used["transferred_accuracy"])
            table += f"\nWith clusters named on {named_on}, {split} has an accuracy of {accuracy}."
    return table


def score_rows(scores: Scores) -> Iterator[tuple[str, str, str, SplitScores]]:
    """Features, clusters, split and scores of each row in metrics.json, grouped by split."""
    parts: dict[str, FeatureScores] = {FEATURES: scores}
    parts |= {BASELINES[name]: part for name, part in scores.get("baselines", {}).items()}
    for split in scores["kmeans"]["splits"]:
        for features, part in parts.items():
            for key, title in CLUSTERINGS.items():
                if (clustering := part.get(key)) and split in clustering["splits"]:
                    yield features, title, split, clustering["splits"][split]


def class_line(per_class: dict[str, ClassScores]) -> str:
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


def _score(row: SplitScores, column: str) -> str:
    """With its standard error, if it has one."""
    error = row.get(ERRORS.get(column, ""))
    return _number(row.get(column)) + ("" if error is None else f" ± {error:.1g}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
