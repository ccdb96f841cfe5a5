"""`images.csv`: a row for each image of every split."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.storage.files import replacing
from src.storage.picture_table import ENCODING, csv_line, picture_columns
from src.visualization.duplicates import Copies
from src.visualization.results import Results


def write_images(file: Path, results: Results, copies: Copies, xy_N2: np.ndarray) -> None:
    """Write path, cluster, name, certainty, distance, unusual, fine cluster, ignored, split,
    near-duplicates, whether to keep it, sharpness and place on the map of every image; cells
    without a value are empty, and so is the name of an image that a person ignores.

    The certainty's column is named after its kind. The path of an image without a file is
    `split[index]`.

    Args:
        xy_N2: the map.
    """
    names = [*results.grouping.names, ""]  # of an image that is ignored
    shared: list[Iterable[object]] = [
        results.paths,
        results.clusters,
        [names[g] for g in results.groups],
        numbers(results.certainty),
        numbers(results.distance),
        results.unusual.astype(int),
    ]
    columns: dict[str, Iterable[object]] = {
        **dict(zip(picture_columns(results.clustering["certainty"]), shared, strict=True)),
        "fine": results.fine,
        "ignored": (results.groups < 0).astype(int),
        "split": np.array(results.split_names)[results.splits],
        "near_duplicates": ["" if group < 0 else group for group in copies.group_N],
        "keep": copies.keep_N.astype(int),
        "sharpness": numbers(copies.sharpness_N),
        "x": numbers(xy_N2[:, 0]),
        "y": numbers(xy_N2[:, 1]),
    }
    with (
        replacing(file) as temporary,
        # File names need not be UTF-8: their bytes are kept.
        temporary.open("w", encoding=ENCODING, errors="surrogateescape", newline="") as out,
    ):
        for values in (columns, *zip(*columns.values(), strict=True)):
            print(csv_line(values), file=out, end="\r\n")


def numbers(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.6g}" for value in values.tolist()]
