"""`images.csv`: a row for each image of every split."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.storage.files import replacing
from src.visualization.results import Results


def write_images(file: Path, results: Results, near_N: np.ndarray, xy_N2: np.ndarray) -> None:
    """Write split, path, cluster, name, certainty, distance, unusual, near-duplicates and place on
    the map of every image; cells without a value are empty.

    The certainty's column is named after its kind. The path of an image without a file is
    `split[index]`.

    Args:
        near_N: the group of near-duplicates of each image, -1 for none.
        xy_N2: the map.
    """
    names = [name or "" for name in results.names]
    columns: dict[str, Iterable[object]] = {
        "split": np.array(results.split_names)[results.splits],
        "path": results.file_names or indexed(results),
        "cluster": results.clusters,
        "name": [names[k] for k in results.clusters],
        results.clustering["certainty"]: numbers(results.certainty),
        "distance": numbers(results.distance),
        "unusual": results.unusual.astype(int),
        "near_duplicates": ["" if group < 0 else group for group in near_N],
        "x": numbers(xy_N2[:, 0]),
        "y": numbers(xy_N2[:, 1]),
    }
    with (
        replacing(file) as temporary,
        # File names need not be UTF-8: their bytes are kept.
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
    ):
        rows = csv.writer(out)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))


def indexed(results: Results) -> list[str]:
    """`train[12]` for the image at index 12 of train."""
    rows = {split: range(len(results.rows(split))) for split in results.split_names}
    return [f"{split}[{index}]" for split, indices in rows.items() for index in indices]


def numbers(values: np.ndarray) -> list[str]:
    return [f"{value:.6g}" for value in values.tolist()]
