"""Import features of any model, in place of src/feature_extraction.py."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.folder import refuse_among
from dataset.load_dataset import Dataset, load_dataset
from src.features.flags import ImportConfig
from src.runtime.cli import UserError, printable
from src.storage import artifacts
from src.storage.artifacts import EXTRACTION, FEATURES, LABELS, SPLITS, Stage
from src.storage.files import json_digest
from src.storage.user_arrays import (
    as_float32,
    blocks,
    foreign_array,
    foreign_features,
    read_lines,
)


@dataclass(frozen=True)
class Rows:
    """The rows of one split."""

    features: np.ndarray
    """float16, float32 or float64 (N, D), memory-mapped."""
    labels: np.ndarray | None
    """int64 (N,), -1 for an unknown class."""
    names: list[str] | None
    """Of the pictures."""


def run(config: ImportConfig) -> None:
    splits = {split: read_rows(config, split) for split in SPLITS if getattr(config, split)}
    _check(config, splits)
    labels = {split: rows.labels for split, rows in splits.items() if rows.labels is not None}
    class_names = choose_class_names(config, labels)
    orders = {split: np.arange(len(rows.features)) for split, rows in splits.items()}
    pictures = None
    if config.data_dir:
        refuse_among("--feature-dir", config.feature_dir, config.data_dir)
        pictures = load_dataset("folder", config.data_dir, config.image_size, config.cache_dir)
        for note in pictures.notes:
            print(f"note: {printable(note)}")
        for split, rows in splits.items():
            orders[split] = order_of(pictures, split, rows.names or [], config.data_dir)
    if labels:
        labels = {split: x[orders[split]] for split, x in labels.items()}
    elif pictures:
        class_names = list(pictures.class_names)
        found = {split: pictures.splits[split].labels for split in splits}
        labels = {split: x for split, x in found.items() if x is not None}
    with artifacts.writing(config.feature_dir, EXTRACTION) as stage:
        for split, rows in splits.items():
            save_features(stage, split, rows.features, orders[split])
        for split, x in labels.items():
            stage.save(LABELS, x, split)
        sizes = {split: len(order) for split, order in orders.items()}
        stage.record(manifest_part(config, pictures, class_names, sizes, stage.files))


# --- reading ----------------------------------------------------------------------------------


def read_rows(config: ImportConfig, split: str) -> Rows:
    """Everything that the flags name for `split`.

    Raises:
        UserError: a file is not what its flag expects, or has another number of rows.
    """
    file = getattr(config, split)
    features = foreign_features(file, f"--{split}")
    count = len(features)
    labels = names = None
    if labels_file := getattr(config, f"{split}_labels", None):
        labels = foreign_array(
            labels_file, f"--{split}-labels takes whole numbers in NumPy's format"
        )
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise UserError(
                f"--{split}-labels {labels_file} is {labels.dtype} of shape {labels.shape}: "
                f"expected whole numbers of shape ({count},)"
            )
        for label in (int(labels.min()), int(labels.max())):
            if not -1 <= label < 2**63:
                raise UserError(
                    f"--{split}-labels {labels_file}: a label is {label}; classes are whole "
                    "numbers from 0, and -1 is an unknown one"
                )
        labels = labels.astype(np.int64)
        _check_count(f"--{split}-labels {labels_file}", len(labels), "labels", file, count)
    if names_file := getattr(config, f"{split}_names"):
        names = read_lines(names_file, f"--{split}-names takes a text file, a path a line")
        _check_count(f"--{split}-names {names_file}", len(names), "lines", file, count)
    return Rows(features, labels, names)


def _check_count(flag: str, found: int, what: str, file: Path, rows: int) -> None:
    if found != rows:
        raise UserError(f"{flag} has {found:,} {what}, {file} has {rows:,} rows")


def _check(config: ImportConfig, splits: dict[str, Rows]) -> None:
    """Raise UserError for flags that do not go together."""
    if not splits:
        raise UserError("nothing to import: pass features with --train, --test or --unlabeled")
    for split in SPLITS:
        for kind in ("labels", "names"):
            if getattr(config, f"{split}_{kind}", None) and split not in splits:
                raise UserError(f"--{split}-{kind} requires --{split}")
    widths = {f"--{split}": rows.features.shape[1] for split, rows in splits.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{flag} {width:,}" for flag, width in widths.items())
        raise UserError(f"the splits have features of different widths: {found}")
    for split, rows in splits.items():
        if rows.names is not None and config.data_dir is None:
            raise UserError(f"--{split}-names are pictures: add their folder with --data-dir")
        if rows.names is None and config.data_dir is not None:
            raise UserError(
                f"--data-dir needs the picture of every row: add --{split}-names, a text file "
                "with a path a line"
            )
    if config.class_names and not any(rows.labels is not None for rows in splits.values()):
        raise UserError("--class-names requires --train-labels or --test-labels")
    if config.image_size < 1:
        raise UserError("--image-size must be above 0")


def choose_class_names(config: ImportConfig, labels: dict[str, np.ndarray]) -> list[str]:
    """The name of every class. Without --class-names, the numbers that occur are the names, and
    `labels` are replaced by their places among them.

    Raises:
        UserError: a label has no name.
    """
    if not labels:
        return []
    numbers = np.unique(np.concatenate(list(labels.values())))
    if config.class_names is None:
        known = numbers[numbers >= 0]
        for split, x in labels.items():
            labels[split] = np.where(x < 0, -1, np.searchsorted(known, x))
        return [str(number) for number in known]
    names = read_lines(config.class_names, "--class-names takes a text file, a name a line")
    if wrong := [int(x) for x in numbers if not -1 <= x < len(names)]:
        raise UserError(
            f"--class-names {config.class_names} has {len(names)} names, for the classes 0 to "
            f"{len(names) - 1}; a label is {wrong[0]}"
        )
    return names


def order_of(pictures: Dataset, split: str, names: list[str], data_dir: Path) -> np.ndarray:
    """The row (N,) of every picture of `split`, in the order of the pictures.

    Rows of files that are there but cannot be read as pictures are left out.

    Args:
        names: of the rows, as a list of files may have them: see `find_name`.

    Raises:
        UserError: a picture has no row or several, or a row is neither a picture of `split` nor
            another file in `data_dir`.
    """
    if split not in pictures.splits:
        found = ", ".join(pictures.splits)
        raise UserError(f"{data_dir} has no {split} pictures, but {found}: use their flags")
    expected = pictures.splits[split].names or ()
    known = {unicodedata.normalize("NFC", name): name for name in expected}
    known |= {name: name for name in expected}
    others = {name for part in pictures.splits.values() for name in part.names or ()}
    row_of: dict[str, int] = {}
    for row, given in enumerate(names):
        name = find_name(given, known, data_dir)
        line = f"--{split}-names, line {row + 1}: "
        is_below = not name.startswith(("/", "../"))
        if name not in known and not (is_below and os.path.isfile(data_dir / name)):  # noqa: PTH113
            example = next(iter(expected))
            raise UserError(f"{line}no {split} picture {given} in {data_dir}, which has {example}")
        if name not in known and name in others:
            raise UserError(f"{line}{given} is a picture of another split")
        if name in row_of:
            raise UserError(f"{line}{given} is also in line {row_of[name] + 1}")
        row_of[name] = row
    if missing := [name for name in expected if name not in row_of]:
        raise UserError(
            f"{len(missing):,} of {len(expected):,} {split} pictures in {data_dir} have no row in "
            f"--{split}-names, such as {missing[0]}: make their features too, or move them away"
        )
    if left_out := len(row_of) - len(expected):
        print(
            f"note: {left_out:,} {split} rows are left out: their files are not pictures, or are "
            "links to others"
        )
    return np.array([row_of[name] for name in expected])


def find_name(given: str, known: dict[str, str], data_dir: Path) -> str:
    """The name in `known` that a list of files means, or the normal form of what it has.

    The list may name files relative to `data_dir`, relative to the current folder, or absolutely,
    with ./ and in any Unicode form: those of macOS differ from others.

    Args:
        known: the names relative to `data_dir`, by themselves and by their normal form.
    """
    name = ""
    for name in _possible_names(given, data_dir):
        if found := known.get(name) or known.get(unicodedata.normalize("NFC", name)):
            return found
    return name


def _possible_names(given: str, data_dir: Path) -> Iterator[str]:
    yield os.path.normpath(given)
    path = Path(os.path.abspath(given))  # noqa: PTH100 - which keeps ..
    for root in (data_dir.absolute(), data_dir.resolve()):
        if path.is_relative_to(root):
            yield path.relative_to(root).as_posix()


# --- writing ----------------------------------------------------------------------------------


def save_features(stage: Stage, split: str, x_ND: np.ndarray, order_N: np.ndarray) -> None:
    """Write the rows of `x_ND` in the order of `order_N`, as float32."""
    shape = len(order_N), x_ND.shape[1]
    with stage.create(FEATURES, shape, split) as out:
        for rows in blocks(*shape):
            out[rows] = as_float32(x_ND[order_N[rows]])
    file = artifacts.path(FEATURES, stage.directory, split)
    print(f"{file}: {shape[0]:,} x {shape[1]:,}")


def manifest_part(
    config: ImportConfig,
    pictures: Dataset | None,
    class_names: list[str],
    sizes: dict[str, int],
    files: dict[str, str],
) -> dict[str, Any]:
    """As the extraction records it; `files` are the digests of what was written."""
    dataset = {
        "name": pictures.name if pictures else "features",
        "data_dir": config.data_dir and str(config.data_dir),
        "cache_dir": config.cache_dir and str(config.cache_dir),
        "image_size": pictures.image_size if pictures else None,
        "fingerprint": pictures.fingerprint if pictures else json_digest(files),
        "class_names": class_names,
        "splits": sizes,
    }
    identity = json_digest([files, dataset])
    return {
        "id": identity,
        "checkpoint": None,
        "dataset": dataset,
        "precision": "float32",
        "tracking": {"group": f"features-{identity}", "run_id": None},
    }
