"""Which cluster, and so which class, new pictures belong to.

    python src/inference.py photo.jpg holiday/ "more/**/*.png"
    find . -name "*.jpg" | python src/inference.py - --csv --output found.csv
    python src/inference.py                  # a sample of the test images, as a demonstration

Reads the pictures, the outputs of src/clustering.py in features/ and the checkpoint that they
were made with. Writes a table, or --csv or --json, for every picture in the order given. The exit
code is 0 when every picture was read and 3 when some were not, or were gone before --sort-into
came to them; each of those is named.
"""

import contextlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from dataset.load_dataset import reload_dataset
from dataset.pictures import BadPicture
from src.prediction.output import Format, Montage, Near, Row, header, line, printable, sort_into
from src.prediction.picture_stream import decode, find
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError, progress, run_script
from src.runtime.device import DeviceName, PrecisionName
from src.storage import artifacts
from src.tracking.tracker import stage_tracker
from src.tracking.wandb_run import WandbMode

SOME_NOT_READ = 3
"""Exit code."""


@dataclass(frozen=True)
class InferenceConfig:
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pictures, folders (with all folders in them), patterns in quotes, or - for a list of paths
    on standard input, one a line. None at all shows a sample of the test images."""

    json: bool = False
    """One JSON object a line instead of a table."""
    csv: bool = False
    """CSV instead of a table."""
    output: Path | None = None
    """Write there instead of on standard output."""
    montage: Path | None = None
    """Also write the pictures as a grid under their predictions into this PNG file."""
    montage_size: int = 100
    """How many pictures the montage and W&B's table show at most, a random sample of them all."""
    sort_into: Path | None = None
    """Also link every picture into a folder per cluster in this one. Nothing is overwritten."""
    copy: bool = False
    """Copy with --sort-into instead of linking."""
    sample: int = 20
    """How many images the demonstration shows."""

    feature_dir: Path = Path("features")
    """Where the clustering left its results."""
    checkpoint: Path | None = None
    """Where the checkpoint is now, when it was moved since the features were extracted."""
    data_dir: Path | None = None
    """Where the images of the demonstration are; None takes the place they were extracted from."""
    device: DeviceName = "auto"
    """Where to compute."""
    precision: PrecisionName = "auto"
    """Precision of the network; auto is the one of the extraction, any other moves a few pictures
    between clusters."""
    batch_size: int = 64
    """Pictures at a time."""
    wandb: WandbMode | None = None
    """Weights & Biases gets a table of pictures and predictions; None is auto for the
    demonstration, and disabled for your own pictures."""
    wandb_dir: Path = Path("wandb")
    """Where Weights & Biases keeps its files."""

    @property
    def format(self) -> Format:
        if self.json or self.csv:
            return "json" if self.json else "csv"
        ending = self.output.suffix.lower() if self.output else ""
        return FORMATS.get(ending, "table")


FORMATS: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class Picture:
    name: str
    content: np.ndarray | BadPicture
    """uint8 (3, S, S), or why there is none."""
    file: Path | None = None
    label: str | None = None


def main(config: InferenceConfig) -> int:
    _check(config)
    predictor = Predictor.load(
        config.feature_dir, config.checkpoint, config.device, config.precision
    )
    if config.paths:
        pictures, total = _from_files(config, predictor.image_size), _count(config)
    else:
        pictures, total = _demonstration(config, predictor)
    montage = Montage(config.montage_size)
    right = labeled = done = failed = gone = 0
    started = time.monotonic()
    with (
        contextlib.closing(pictures),
        _output(config) as write,
        progress(total=total, unit="picture") as bar,
    ):
        for picture, row in _predicted(pictures, predictor, config.batch_size):
            write(row)
            bar.update()
            if isinstance(picture.content, BadPicture):
                failed += 1
                bar.write(f"not read: {printable(f'{row.path}: {row.error}')}", sys.stderr)
                continue
            done += 1
            labeled += row.label is not None
            right += row.label is not None and row.label == row.nearest[0].class_name
            montage.add(row, picture.content)
            if config.sort_into and picture.file:
                try:
                    sort_into(config.sort_into / _folder(row), picture.file, config.copy)
                except FileNotFoundError:
                    gone += 1
                    bar.write(f"not sorted: {printable(row.path)}: it is gone", sys.stderr)
    if config.montage:
        montage.save(config.montage)
    speed = done / (time.monotonic() - started)
    print(f"{done:,} pictures, {speed:,.0f} a second; {failed:,} not read", file=sys.stderr)
    if labeled:
        print(f"{right} of {labeled} are in a cluster of their own class", file=sys.stderr)
    track(config, predictor.extraction, montage)
    return SOME_NOT_READ if failed or gone else 0


def track(config: InferenceConfig, extraction: dict[str, Any], examples: Montage) -> None:
    """Mirror a table of example pictures to W&B; nobody's own pictures unless asked for."""
    mode = config.wandb or ("disabled" if config.paths else "auto")
    if mode == "disabled" or not examples.tiles:
        return
    table = []
    for row, image_3SS in examples.tiles:
        own, confidence = row.nearest[0], f"{row.confidence:.3f}"
        named = (own.cluster, own.class_name or "", confidence, row.label or "")
        table.append([image_3SS.transpose(1, 2, 0), printable(row.path), *named])
    with (
        contextlib.redirect_stdout(sys.stderr),  # standard output is for the predictions
        stage_tracker(mode, config.wandb_dir, "inference", config, extraction) as tracker,
    ):
        columns = ["picture", "name", "cluster", "class", "confidence", "label"]
        tracker.table("predictions", columns, table)


def _check(config: InferenceConfig) -> None:
    for name in ("batch_size", "sample", "montage_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    if "" in config.paths:
        raise UserError("an empty name is no picture: the current folder is .")
    if config.json and config.csv:
        raise UserError("--json and --csv exclude each other")
    if config.montage and config.montage.suffix.lower() != ".png":
        raise UserError(f"--montage {config.montage}: the montage is a PNG file, name it .png")
    for file in (config.output, config.montage):
        if file and file.is_dir():
            raise UserError(f"{file} is a folder: give the name of a file")
    if config.sort_into and config.sort_into.exists() and not config.sort_into.is_dir():
        raise UserError(f"--sort-into {config.sort_into} is not a folder")
    if config.sort_into and not config.paths:
        raise UserError("--sort-into needs pictures: give files or folders")


# --- where the pictures come from -------------------------------------------------------------


def _from_files(config: InferenceConfig, size: int) -> Generator[Picture, None, None]:
    for path, content in decode(_found(config), size, ahead=2 * config.batch_size):
        yield Picture(str(path), content, path)


def _found(config: InferenceConfig) -> Iterator[Path]:
    leave_out = config.sort_into.resolve() if config.sort_into else None
    return find(_names(config.paths), leave_out)


def _names(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
            continue
        for line_ in sys.stdin.buffer:
            if name := line_.rstrip(b"\r\n"):
                yield os.fsdecode(name)


def _count(config: InferenceConfig) -> int | None:
    """How many there are, for the bar; None where nobody looks or nobody can know."""
    if "-" in config.paths or not sys.stderr.isatty():
        return None
    return sum(1 for _ in _found(config))


def _demonstration(
    config: InferenceConfig, predictor: Predictor
) -> tuple[Generator[Picture, None, None], int]:
    """Evenly spaced images of the test split, or of the best that is there."""
    recorded = predictor.extraction["dataset"]
    dataset = reload_dataset(recorded, config.data_dir)
    name = next(s for s in ("test", "train", "unlabeled") if s in dataset.splits)
    split = dataset.splits[name]
    chosen = np.linspace(0, len(split.images) - 1, min(config.sample, len(split.images)))
    print(f"no pictures given: {len(chosen)} of the {name} images", file=sys.stderr)

    def pictures() -> Generator[Picture, None, None]:
        for i in chosen.astype(int):
            label = None if split.labels is None else dataset.class_names[split.labels[i]]
            image = np.ascontiguousarray(split.images[i])
            yield Picture(split.names[i] if split.names else f"{name}[{i}]", image, None, label)

    return pictures(), len(chosen)


# --- what becomes of them ---------------------------------------------------------------------


def _predicted(
    pictures: Iterator[Picture], predictor: Predictor, batch_size: int
) -> Iterator[tuple[Picture, Row]]:
    while batch := list(itertools.islice(pictures, batch_size)):
        images = [p.content for p in batch if not isinstance(p.content, BadPicture)]
        results: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        if images:
            found = predictor.predict_batch(np.stack(images))
            results = zip(found.confidence, found.distances, strict=True)
        for picture in batch:
            if isinstance(picture.content, BadPicture):
                yield picture, Row(picture.name, error=str(picture.content))
                continue
            confidence, distances_K = next(results)
            nearest = tuple(
                Near(int(k), predictor.class_of(k), float(distances_K[k]))
                for k in distances_K.argsort(kind="stable")[:3]
            )
            yield picture, Row(picture.name, None, float(confidence), nearest, picture.label)


def _folder(row: Row) -> str:
    own = row.nearest[0]
    name = f"-{own.class_name.replace(os.sep, '_')}" if own.class_name else ""
    return f"{own.cluster:02d}{name}"


@contextlib.contextmanager
def _output(config: InferenceConfig) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row where `config` says."""
    with contextlib.ExitStack() as stack:
        out, width = sys.stdout, None
        # Names of files are bytes; those that are no UTF-8 go through unchanged.
        if file := config.output:
            if file.is_file() or not file.exists():  # no pipe, no device
                file = stack.enter_context(artifacts.replacing(file))
            out = stack.enter_context(file.open("w", encoding="utf-8", errors="surrogateescape"))
        else:
            out.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]
            if out.isatty():
                width = max(20, shutil.get_terminal_size().columns - 88)

        def write_line(text: str | None) -> None:
            if text is not None:
                tqdm.write(text, out)  # keeps clear of the progress bar

        write_line(header(config.format, width))
        yield lambda row: write_line(line(row, config.format, width))


if __name__ == "__main__":
    run_script(main, InferenceConfig)
