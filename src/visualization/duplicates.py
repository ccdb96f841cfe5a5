"""Near-duplicates, and which of them to keep."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.pictures import BadPicture, picture_size
from src.evaluation.near_duplicates import crossing, near_duplicates
from src.evaluation.sampling import scored_rows, standard_error
from src.evaluation.sharpness import sharpness
from src.visualization.results import Results


class Copies(NamedTuple):
    """Which of N images are copies of each other."""

    group_N: np.ndarray
    """int64, the number of its group of near-duplicates, -1 for none."""
    keep_N: np.ndarray
    """bool, False for all but one image of a group."""
    sharpness_N: np.ndarray
    """float32, NaN without pictures."""


def find_copies(results: Results) -> Copies:
    """Prints a note if groups span several splits, and what was not looked at."""
    count = len(results.clusters)
    if results.dataset is None:
        return Copies(np.full(count, -1), np.full(count, True), np.full(count, np.nan, np.float32))
    images = {split: results.dataset.splits[split].images for split in results.split_names}
    groups = near_duplicates(images)
    if across := crossing(groups):
        print(f"note: near-duplicates across splits: {across:,} groups; see the report")
    group_N = np.concatenate(list(groups.values()))
    if len(sample := scored_rows(count)) < count:
        has_copies = group_N[sample] >= 0
        share, error = has_copies.mean(), standard_error(has_copies, count)
        print(
            f"note: near-duplicates of a random sample of {len(sample):,} of the {count:,} images "
            f"were looked for, among all: {share:.2%} ± {error:.2%} have some"
        )
    sharpness_N = np.concatenate([sharpness(x) for x in images.values()])
    return Copies(group_N, kept(group_N, results.file_names, results.picture_dir), sharpness_N)


def kept(group_N: np.ndarray, names: list[str] | None, directory: Path) -> np.ndarray:
    """bool (N,), whether an image is the one to keep: of a group the copy with the most pixels, of
    equal ones that with the most bytes, then the first. Images without copies are kept.

    Args:
        names: the files, in `directory`; None where the images are no files.
    """
    keep_N = group_N < 0
    best: dict[int, tuple[tuple[int, int], int]] = {}
    for row in np.flatnonzero(group_N >= 0).tolist():
        candidate = _size(directory / names[row]) if names else (0, 0), -row
        group = int(group_N[row])
        best[group] = max(best.get(group, candidate), candidate)
    keep_N[[-row for _, row in best.values()]] = True
    return keep_N


def _size(file: Path) -> tuple[int, int]:
    """Pixels and bytes; 0 where they cannot be read."""
    try:
        width, height = picture_size(file)
        return width * height, file.stat().st_size
    except (BadPicture, OSError):
        return 0, 0
