"""Predict the cluster, class and certainty of new pictures."""

import contextlib
import errno
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.decoding import decode
from dataset.load_dataset import reload_dataset
from dataset.pictures import IMAGE_SUFFIXES, BadPicture
from src.prediction.flags import InferenceConfig
from src.prediction.output import (
    SORTED,
    Montage,
    NearCluster,
    Row,
    check_sorted,
    folders,
    header,
    line,
    sort_into,
)
from src.prediction.picture_stream import find
from src.prediction.predictor import Predictor
from src.prediction.similar import SimilarPictures
from src.runtime.cli import UserError, printable, progress
from src.storage import artifacts
from src.storage.artifacts import CertaintyName, DatasetRecord
from src.storage.files import json_digest
from src.storage.output_folder import left_out_note, mark
from src.storage.user_arrays import as_float32, foreign_features, read_lines
from src.tracking.tracker import stage_tracker

Picture = tuple[Row, np.ndarray | BadPicture]
"""A row without its prediction, and uint8 (3, S, S) or why it could not be read; with --features,
float32 (D,)."""


def run(config: InferenceConfig) -> int:
    _check(config)
    predictor = Predictor.load(
        config.feature_dir,
        config.checkpoint,
        config.device,
        config.precision,
        features_only=config.features is not None,
    )
    _check_outputs(config, predictor.extraction["dataset"])
    given = predictor.given_names
    contents = f"{SORTED} {predictor.manifest.clusters_id}"
    contents += f" with names {json_digest(given)}" if any(given) else ""
    sorted_into: list[str] = []
    if config.sort_into:
        sorted_into = folders(given, [predictor.class_of(k) for k in range(len(given))])
        check_sorted(config.sort_into, contents, set(sorted_into))
    similar = _similar(config, predictor) if config.neighbors else None
    if config.features:
        pictures = _from_features(config, predictor)
    elif config.paths:
        pictures = _from_files(config, predictor)
    else:
        pictures = _demonstration(config, predictor)
    montage = Montage(config.montage_size)
    right = labeled = predicted = unusual = unreadable = unsorted = 0
    started = time.monotonic()
    output = _output(config, predictor.certainty_name)
    with contextlib.closing(pictures), output as write, progress(unit="picture") as bar:
        for row, content in _predicted(pictures, predictor, config, similar):
            write(row)
            bar.update()
            if isinstance(content, BadPicture):
                unreadable += 1
                bar.write(f"not read: {printable(f'{row.path}: {row.error}')}", sys.stderr)
                continue
            predicted += 1
            unusual += row.unusual
            labeled += row.label is not None
            right += row.label is not None and row.label == predictor.class_of(
                row.nearest[0].cluster
            )
            if not config.features:
                montage.add(row, content)
            if config.sort_into:
                folder = config.sort_into / sorted_into[row.nearest[0].cluster]
                try:
                    mark(folder, contents)
                    sort_into(folder, Path(row.path), config.copy)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                        raise
                    unsorted += 1
                    reason = (error.strerror or "").lower()
                    bar.write(f"not sorted: {printable(row.path)}: {reason}", sys.stderr)
    if config.montage:
        montage.save(config.montage, predictor.certainty_name)
    rate = f"{predicted / (time.monotonic() - started):,.0f} pictures/s"
    all_given = predicted + unreadable
    print(f"predicted {predicted:,} of {all_given:,} pictures, {rate}", file=sys.stderr)
    if unusual:
        print(f"outliers: {unusual:,}", file=sys.stderr)
    if labeled:
        print(f"{right} of {labeled} are in the cluster matched to their class", file=sys.stderr)
    track(config, predictor, montage)
    return 3 if unreadable or unsorted else 0


def track(config: InferenceConfig, predictor: Predictor, examples: Montage) -> None:
    """Log a table of example pictures to W&B; a user's own pictures only with --wandb."""
    extraction = predictor.extraction
    is_own = bool(config.paths) or extraction["dataset"]["name"] == "folder"
    mode = config.wandb or ("disabled" if is_own else "auto")
    if mode == "disabled" or not examples.tiles:
        return
    table = []
    for row, image_3SS in examples.tiles:
        own, certainty = row.nearest[0], f"{row.certainty:.3f}"
        values = (own.cluster, own.name, certainty, row.label or "")
        table.append([image_3SS.transpose(1, 2, 0), printable(row.path), *values])
    with (
        contextlib.redirect_stdout(sys.stderr),  # standard output is for the predictions
        stage_tracker(mode, config.wandb_dir, "inference", config, extraction) as tracker,
    ):
        columns = ["picture", "path", "cluster", "name", predictor.certainty_name, "label"]
        tracker.table("predictions", columns, table)


def _check(config: InferenceConfig) -> None:
    for name in ("batch_size", "sample", "montage_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    if config.neighbors < 0:
        raise UserError("--neighbors must be 0 or above")
    if "" in config.paths:
        raise UserError("empty path; use . for the current folder")
    if config.json and config.csv:
        raise UserError("--json and --csv cannot be combined")
    if config.montage and config.montage.suffix.lower() != ".png":
        raise UserError(f"--montage {config.montage}: the name must end in .png")
    for file in (config.output, config.montage):
        if file and file.is_dir():
            raise UserError(f"{file} is a folder, not a file")
    if config.sort_into and config.sort_into.exists() and not config.sort_into.is_dir():
        raise UserError(f"--sort-into {config.sort_into} is not a folder")
    if config.sort_into and not (config.paths or config.names):
        raise UserError("--sort-into needs pictures: give files or folders")
    if config.features and (config.paths or config.montage):
        raise UserError("--features cannot be combined with paths or --montage")
    if config.names and not config.features:
        raise UserError("--names requires --features")


def _check_outputs(config: InferenceConfig, recorded: DatasetRecord) -> None:
    """Raise UserError if a file to write would be taken for a picture later: it has a picture's
    suffix and lies in a folder that is read, or in that of the data set; or is one now."""
    folders = [path for path in config.paths if os.path.isdir(path)]  # noqa: PTH112
    if recorded["name"] == "folder":
        folders.append(str(config.data_dir or recorded["data_dir"]))
    for flag, file in (("--output", config.output), ("--montage", config.montage)):
        if file is None or file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if any(
            Path(path).name == file.name and Path(path).resolve() == file.resolve()
            for path in config.paths
        ):
            raise UserError(f"{flag} {file} is one of the pictures")
        for folder in folders:
            if file.resolve().is_relative_to(Path(folder).resolve()):
                raise UserError(
                    f"{flag} {file} would be one of the pictures in {folder}: choose a place "
                    "outside"
                )


# --- input ------------------------------------------------------------------------------------


def _from_files(config: InferenceConfig, predictor: Predictor) -> Generator[Picture, None, None]:
    written: list[str] = []
    files = find(_names(config.paths), written)
    for path, content in decode(files, predictor.image_size, ahead=2 * config.batch_size):
        yield Row(str(path)), content
    if written:
        tqdm.write(printable(f"note: {left_out_note(written)}"), sys.stderr)


def _similar(config: InferenceConfig, predictor: Predictor) -> SimilarPictures:
    dataset = None
    try:
        dataset = reload_dataset(predictor.extraction["dataset"], config.data_dir)
    except UserError as error:
        print(f"note: no names of similar pictures: {printable(str(error))}", file=sys.stderr)
    return SimilarPictures(predictor.manifest, dataset)


def _names(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
            continue
        for line_ in sys.stdin.buffer:
            if name := line_.rstrip(b"\r\n"):
                yield os.fsdecode(name)


def _from_features(config: InferenceConfig, predictor: Predictor) -> Generator[Picture, None, None]:
    """Rows of features in the place of pictures."""
    assert config.features is not None
    features_ND = foreign_features(config.features, "--features")
    width = len(predictor.head.mean)
    if features_ND.shape[1] != width:
        raise UserError(
            f"--features {config.features} has {features_ND.shape[1]:,} features a row, the "
            f"clusters in {config.feature_dir} have {width:,}: use the network that made those"
        )
    names = [str(i) for i in range(len(features_ND))]
    if config.names:
        names = read_lines(config.names, "--names takes a text file, a name a line")
    if len(names) != len(features_ND):
        raise UserError(
            f"--names {config.names} has {len(names):,} lines, {config.features} has "
            f"{len(features_ND):,} rows"
        )
    return ((Row(name), as_float32(x_D)) for name, x_D in zip(names, features_ND, strict=True))


def _demonstration(config: InferenceConfig, predictor: Predictor) -> Generator[Picture, None, None]:
    """Evenly spaced images of the first split present: test, train, unlabeled."""
    dataset = reload_dataset(predictor.extraction["dataset"], config.data_dir)
    name = next(s for s in ("test", "train", "unlabeled") if s in dataset.splits)
    split = dataset.splits[name]
    chosen = np.linspace(0, len(split.images) - 1, min(config.sample, len(split.images)))
    print(f"no pictures given: showing {len(chosen)} of the {name} images", file=sys.stderr)

    def picture(i: int) -> Picture:
        label = None if split.labels is None else dataset.class_names[split.labels[i]]
        row = Row(split.names[i] if split.names else f"{name}[{i}]", label=label)
        return row, np.ascontiguousarray(split.images[i])

    return (picture(i) for i in chosen.astype(int))


# --- output -----------------------------------------------------------------------------------


def _predicted(
    pictures: Iterator[Picture],
    predictor: Predictor,
    config: InferenceConfig,
    similar: SimilarPictures | None,
) -> Iterator[Picture]:
    """The pictures, with their predictions or errors in their rows."""
    while batch := list(itertools.islice(pictures, config.batch_size)):
        images = [content for _, content in batch if not isinstance(content, BadPicture)]
        predictions = neighbors = iter(())
        if images:
            features_BD = np.stack(images)
            if not config.features:
                features_BD = predictor.features(features_BD)
            predictions = zip(*predictor.predict_features(features_BD), strict=True)
            if similar:
                neighbors = iter(similar.find(features_BD, config.neighbors + 1))
        for row, content in batch:
            if isinstance(content, BadPicture):
                yield replace(row, error=str(content)), content
                continue
            cluster, certainty, distances_K, is_far = next(predictions)
            farther = [k for k in distances_K.argsort(kind="stable") if k != cluster]
            nearest = tuple(
                NearCluster(int(k), predictor.name_of(k), float(distances_K[k]))
                for k in [cluster, *farther[:2]]
            )
            # Without the picture itself, which the demonstration would show first.
            others = [(name, value) for name, value in next(neighbors, []) if name != row.path]
            row = replace(row, neighbors=tuple(others[: config.neighbors]), unusual=bool(is_far))
            yield replace(row, certainty=float(certainty), nearest=nearest), content


@contextlib.contextmanager
def _output(config: InferenceConfig, certainty: CertaintyName) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row to the output of `config`."""
    with contextlib.ExitStack() as stack:
        out, width = sys.stdout, None
        # File names are bytes; those that are not UTF-8 are written unchanged.
        if file := config.output:
            if file.is_file() or not file.exists():  # not a pipe or a device
                file = stack.enter_context(artifacts.replacing(file))
            out = stack.enter_context(file.open("w", encoding="utf-8", errors="surrogateescape"))
        else:
            out.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[attr-defined]
            if out.isatty():
                width = max(20, shutil.get_terminal_size().columns - 88)

        def write_line(text: str | None) -> None:
            if text is not None:
                tqdm.write(text, out)  # does not disturb the progress bar

        write_line(header(config.format, certainty, width, config.neighbors))
        yield lambda row: write_line(line(row, config.format, certainty, width))
