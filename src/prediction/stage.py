"""Predict the cluster, class and certainty of new pictures."""

import contextlib
import errno
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.decoding import decode
from dataset.folder import LeftOut, refuse_among
from dataset.load_dataset import image_paths, reload_dataset
from dataset.pictures import IMAGE_SUFFIXES, BadPicture, picture_size
from src.clusters.groups import load_groups
from src.prediction.flags import InferenceConfig
from src.prediction.output import (
    LikelyCluster,
    Montage,
    Row,
    SortedPictures,
    folder_names,
    header,
    is_predictions,
    line,
)
from src.prediction.picture_stream import find
from src.prediction.predictor import Predictor
from src.prediction.similar import SimilarPictures
from src.runtime.cli import UserError, printable, progress
from src.runtime.device import explaining_memory
from src.storage import artifacts
from src.storage.artifacts import CertaintyName, DatasetRecord
from src.storage.files import refuse_to_replace
from src.storage.picture_table import ENCODING
from src.storage.user_arrays import as_float32, foreign_features, read_lines
from src.tracking.tracker import stage_tracker

Picture = tuple[Row, np.ndarray | BadPicture]
"""A row without its prediction, and uint8 (3, S, S) or why it could not be read; with --features,
float32 (D,)."""


@dataclass
class Counts:
    """Of the pictures given."""

    predicted: int = 0
    unusual: int = 0
    labeled: int = 0
    right: int = 0
    unreadable: int = 0
    unsorted: int = 0

    def add(self, row: Row, predictor: Predictor) -> None:
        if row.error:
            self.unreadable += 1
            return
        self.predicted += 1
        self.unusual += row.unusual
        if row.label is not None:
            self.labeled += 1
            self.right += row.label == predictor.class_of(row.likely[0].cluster)

    def report(self, seconds: float) -> None:
        all_given = self.predicted + self.unreadable
        rate = f"{self.predicted / seconds:,.0f} pictures/s"
        print(f"predicted {self.predicted:,} of {all_given:,} pictures, {rate}", file=sys.stderr)
        if self.unusual:
            print(f"outliers: {self.unusual:,}", file=sys.stderr)
        if self.labeled:
            of = f"{self.right} of {self.labeled}"
            print(f"{of} are in the cluster matched to their class", file=sys.stderr)


def run(config: InferenceConfig) -> int:
    """Predict; returns the exit code."""
    _check(config)
    if config.sorts_dataset:
        return sort_dataset(config)
    predictor = Predictor.load(
        config.feature_dir,
        config.checkpoint,
        config.device,
        config.precision,
        features_only=config.features is not None,
    )
    _check_outputs(config, predictor.extraction["dataset"])
    if config.montage:
        artifacts.try_writing(config.montage)
    sorted_pictures = None
    if config.sort_into:
        sorted_pictures = _sorted_pictures(config, predictor.group_names)
    similar = _similar(config, predictor) if config.neighbors else None
    montage, counts = Montage(config.montage_size), Counts()
    started = time.monotonic()
    pictures, output = _pictures(config, predictor), _output(config, predictor.certainty_name)
    advice = explaining_memory(f"lower --batch-size (now {config.batch_size})")
    with advice, contextlib.closing(pictures), output as write, progress(unit="picture") as bar:
        for row, content in _predicted(pictures, predictor, config, similar):
            write(row)
            bar.update()
            counts.add(row, predictor)
            if isinstance(content, BadPicture):
                bar.write(f"not read: {printable(f'{row.path}: {row.error}')}", sys.stderr)
                continue
            if not config.features:
                montage.add(row, content)
            if sorted_pictures:
                group, is_decoded = predictor.group_names.index(row.name), not config.features
                is_sorted = _sort(sorted_pictures, Path(row.path), group, is_decoded)
                counts.unsorted += not is_sorted
    if config.montage:
        montage.save(config.montage, predictor.certainty_name)
    counts.report(time.monotonic() - started)
    if sorted_pictures:
        print(sorted_pictures, file=sys.stderr)
    track(config, predictor, montage)
    return 3 if counts.unreadable or counts.unsorted else 0


def sort_dataset(config: InferenceConfig) -> int:
    """Sort the pictures of the data set itself by their groups, without those that are ignored."""
    predictor = Predictor.load(config.feature_dir, features_only=True)
    recorded = predictor.extraction["dataset"]
    dataset = reload_dataset(recorded, config.data_dir)
    if dataset.name != "folder":
        raise UserError(f"--sort-into: the images of {dataset.name} are not files; give pictures")
    root = config.data_dir or Path(recorded["data_dir"] or ".")
    _check_outputs(config, recorded)
    groups = load_groups(predictor.manifest, [])  # the predictor printed the notes
    pictures, unsorted = _sorted_pictures(config, groups.names), 0
    ignored = 0
    for split, of_images in groups.of_images.items():
        for name, group in zip(dataset.splits[split].names or (), of_images, strict=True):
            if group < 0:
                ignored += 1
            else:
                unsorted += not _sort(pictures, root / name, group)
    print(pictures)
    if ignored:
        print(f"left out {ignored:,} pictures that are ignored")
    return 3 if unsorted else 0


def _sorted_pictures(config: InferenceConfig, names: list[str]) -> SortedPictures:
    """For groups with these `names`."""
    assert config.sort_into
    return SortedPictures(config.sort_into, folder_names(names), config.copy, config.split)


def _sort(pictures: SortedPictures, picture: Path, group: int, is_decoded: bool = True) -> bool:
    """Whether it was possible; otherwise the picture is named with the reason. What was not decoded
    may be any file."""
    try:
        if not is_decoded:
            picture_size(picture)
        pictures.add(picture, group)
    except (OSError, BadPicture) as error:
        reason = str(error)
        if isinstance(error, OSError):
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG):
                raise
            reason = (error.strerror or "").lower()
        tqdm.write(f"not sorted: {printable(str(picture))}: {reason}", sys.stderr)
        return False
    return True


def track(config: InferenceConfig, predictor: Predictor, examples: Montage) -> None:
    """Log a table of example pictures to W&B; a user's own pictures only with --wandb."""
    extraction = predictor.extraction
    is_own = bool(config.paths) or extraction["dataset"]["name"] == "folder"
    mode = config.wandb or ("disabled" if is_own else "auto")
    if mode == "disabled" or not examples.tiles:
        return
    table = []
    for row, image_3SS in examples.tiles:
        cluster, certainty = row.likely[0].cluster, f"{row.certainty:.3f}"
        values = (cluster, row.name, certainty, row.label or "")
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
    if config.output and (config.output.is_file() or not config.output.exists()):
        refuse_to_replace("--output", config.output, "a list of predictions", is_predictions)
    if config.montage:
        refuse_to_replace("--montage", config.montage, "a montage", Montage.is_saved_in)
    if config.split is not None and not (config.sort_into and 0 < config.split < 1):
        raise UserError("--split is a share between 0 and 1, such as 0.8, and needs --sort-into")
    if config.sort_into and config.features and not config.names:
        raise UserError("--sort-into needs the pictures of --features: add --names")
    if config.sorts_dataset and (config.output or config.csv or config.json or config.montage):
        raise UserError("--sort-into without pictures writes no predictions: images.csv has them")
    if config.features and (config.paths or config.montage):
        raise UserError("--features cannot be combined with paths or --montage")
    if config.names and not config.features:
        raise UserError("--names requires --features")


def _check_outputs(config: InferenceConfig, recorded: DatasetRecord) -> None:
    """Raise UserError if a picture to write would be read later, in a folder of `config.paths` or
    in that of the data set; or is one of the pictures now."""
    outputs = {"--output": config.output, "--montage": config.montage}
    outputs = {f: o for f, o in outputs.items() if o and o.suffix.lower() in IMAGE_SUFFIXES}
    if config.sort_into:
        outputs["--sort-into"] = config.sort_into
    if config.wandb not in (None, "disabled"):  # it keeps copies
        outputs["--wandb-dir"] = config.wandb_dir
    for flag, place in outputs.items():
        for path in map(Path, config.paths):
            if os.path.isdir(path):  # noqa: PTH112 - False for an impossible name
                refuse_among(flag, place, path, with_splits=False)
            elif os.path.realpath(path) == os.path.realpath(place):
                raise UserError(f"{flag} {place} is one of the pictures")
        if recorded["name"] == "folder" and (root := config.data_dir or recorded["data_dir"]):
            refuse_among(flag, place, Path(root))


# --- input ------------------------------------------------------------------------------------


def _from_files(config: InferenceConfig, predictor: Predictor) -> Generator[Picture, None, None]:
    left_out = LeftOut()
    files = find(_names(config.paths), left_out)
    for path, content in decode(files, predictor.image_size, ahead=2 * config.batch_size):
        yield Row(str(path)), content
    if others := left_out.others_note():
        tqdm.write(f"note: {printable(others)}", sys.stderr)


def _pictures(config: InferenceConfig, predictor: Predictor) -> Generator[Picture, None, None]:
    if config.features:
        return _from_features(config, predictor)
    return (_from_files if config.paths else _demonstration)(config, predictor)


def _similar(config: InferenceConfig, predictor: Predictor) -> SimilarPictures:
    dataset = None
    try:
        dataset = reload_dataset(predictor.extraction["dataset"], config.data_dir)
    except UserError as error:
        reason = printable(str(error))
        print(f"note: similar pictures have the names of the clustering: {reason}", file=sys.stderr)
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
    if config.sort_into and len(set(names)) < len(names):
        raise UserError(f"--names {config.names} has a picture twice: --sort-into takes each once")
    return ((Row(name), as_float32(x_D)) for name, x_D in zip(names, features_ND, strict=True))


def _demonstration(config: InferenceConfig, predictor: Predictor) -> Generator[Picture, None, None]:
    """Evenly spaced images of the first split present: test, train, unlabeled."""
    dataset = reload_dataset(predictor.extraction["dataset"], config.data_dir)
    name = next(s for s in ("test", "train", "unlabeled") if s in dataset.splits)
    split = dataset.splits[name]
    paths = image_paths({name: len(split.images)}, dataset)
    chosen = np.linspace(0, len(split.images) - 1, min(config.sample, len(split.images)))
    print(f"no pictures given: showing {len(chosen)} of the {name} images", file=sys.stderr)

    def picture(i: int) -> Picture:
        label = None if split.labels is None else dataset.class_names[split.labels[i]]
        row = Row(paths[i], label=label)
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
    names = predictor.cluster_names
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
            cluster, certainty, distances_K, is_far, group, p_K = next(predictions)
            less = [k for k in (-p_K).argsort(kind="stable") if k != cluster]
            likely = tuple(
                LikelyCluster(int(k), names[k], float(p_K[k]), float(distances_K[k]))
                for k in [cluster, *less[:2]]
            )
            # Without the picture itself, which the demonstration would show first.
            others = [(name, value) for name, value in next(neighbors, []) if name != row.path]
            row = replace(row, neighbors=tuple(others[: config.neighbors]), unusual=bool(is_far))
            name = predictor.group_names[group]
            yield replace(row, name=name, certainty=float(certainty), likely=likely), content


@contextlib.contextmanager
def _output(config: InferenceConfig, certainty: CertaintyName) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row to the output of `config`."""
    if config.sort_into and config.format == "table" and not config.output:
        yield lambda row: None  # the counts say enough
        return
    with contextlib.ExitStack() as stack:
        out, width, encoding = sys.stdout, None, "utf-8"
        # File names are bytes; those that are not UTF-8 are written unchanged.
        if file := config.output:
            if file.is_file() or not file.exists():  # not a pipe or a device
                file = stack.enter_context(artifacts.replacing(file))
                encoding = ENCODING if config.format == "csv" else encoding
            out = stack.enter_context(file.open("w", encoding=encoding, errors="surrogateescape"))
        else:
            out.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[attr-defined]
            if out.isatty():
                width = max(20, shutil.get_terminal_size().columns - 88)

        def write_line(text: str | None) -> None:
            if text is not None:
                tqdm.write(text, out)  # does not disturb the progress bar

        write_line(header(config.format, certainty, width, config.neighbors))
        yield lambda row: write_line(line(row, config.format, certainty, width))
