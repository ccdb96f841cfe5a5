"""`images.csv`: a row for each image of every split."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.storage.files import replacing
from src.storage.picture_table import ENCODING, csv_line, picture_columns
from src.visualization.duplicates import Copies
from src.visualization.results import Results


def write_images(file: Path, results: Results, copies: Copies, xy_N2: np.ndarray) -> None:
    """Write path, cluster, name, certainty, distance, unusual, split, near-duplicates, whether to
    keep it, sharpness and place on the map of every image; cells without a value are empty.

    The certainty's column is named after its kind. The path of an image without a file is
    `split[index]`.

    Args:
        xy_N2: the map.
    """
    names = [name or f"cluster {k}" for k, name in enumerate(results.names)]
    shared: list[Iterable[object]] = [
        results.file_names or indexed(results),
        results.clusters,
        [names[k] for k in results.clusters],
        numbers(results.certainty),
        numbers(results.distance),
        results.unusual.astype(int),
    ]
    columns: dict[str, Iterable[object]] = {
        **dict(zip(picture_columns(results.clustering["certainty"]), shared, strict=True)),
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
        temporary.open("w", encoding=ENCODING, errors="surrogateescape", newline="\r\n") as out,
    ):
        for values in (columns, *zip(*columns.values(), strict=True)):
            print(csv_line(values), file=out)


def indexed(results: Results) -> list[str]:
    """`train[12]` for the image at index 12 of train."""
    rows = {split: range(len(results.rows(split))) for split in results.split_names}
    return [f"{split}[{index}]" for split, indices in rows.items() for index in indices]


def numbers(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.6g}" for value in values.tolist()]
