"""Write predictions: table, CSV and JSON lines, a montage, pictures sorted into folders."""

import codecs
import contextlib
import errno
import itertools
import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dataset.folder import THUMBNAILS
from dataset.load_dataset import class_key
from src.runtime.cli import UserError, printable
from src.runtime.flag_choices import Format
from src.storage.artifacts import CertaintyName
from src.storage.files import MISSING_CALL, replacing
from src.storage.picture_table import csv_line, picture_columns


@dataclass(frozen=True)
class LikelyCluster:
    """A cluster, its name, its probability, and the distance to its centroid."""

    cluster: int
    name: str
    probability: float
    distance: float


@dataclass(frozen=True)
class Row:
    """The prediction for one picture."""

    path: str
    error: str | None = None
    """Why it could not be read; the other fields are then empty."""
    name: str = ""
    """Of its group."""
    certainty: float = 0.0
    """Confidence or margin."""
    likely: tuple[LikelyCluster, ...] = ()
    """The three most probable clusters, or all there are; its own comes first."""
    unusual: bool = False
    """Whether it is far from every cluster."""
    label: str | None = None
    """The true class, if known."""
    neighbors: tuple[tuple[str, float], ...] = ()
    """Name and similarity of the most similar pictures of the data set, if asked for."""

    @property
    def caption(self) -> str:
        return f"{printable(self.name)} {self.certainty:.2f}"


# --- text -------------------------------------------------------------------------------------


def _csv_columns(certainty: CertaintyName) -> tuple[str, ...]:
    return (
        *picture_columns(certainty), "second_cluster", "second_probability", "third_cluster",
        "third_probability", "label", "error",
    )  # fmt: skip


def header(
    style: Format, certainty: CertaintyName, path_width: int | None, neighbors: int = 0
) -> str | None:
    """The first line, without its line break; None for JSON.

    Args:
        neighbors: how many a row has.
    """
    if style == "csv":
        columns = ((f"neighbor_{i}", f"similarity_{i}") for i in range(1, neighbors + 1))
        return csv_line([*_csv_columns(certainty), *itertools.chain(*columns)])
    if style == "table":
        return _table_line("picture", "cluster", "name", certainty, "distance", path_width) + (
            "most probable clusters"
        )
    return None


def is_predictions(file: Path) -> bool:
    """Whether its first line is that of predictions in any format."""
    with file.open("rb") as stream:
        start = stream.readline(1000)
    heads = [header(f, c, None) or "" for f in ("csv", "table") for c in get_args(CertaintyName)]
    return start.removeprefix(codecs.BOM_UTF8).startswith((b'{"path": ', *map(str.encode, heads)))


def line(row: Row, style: Format, certainty: CertaintyName, path_width: int | None) -> str | None:
    """`row` as one line; None for an unreadable picture in a table, where its neighbors
    take their own line.

    Args:
        certainty: the name of the column or key.
        path_width: columns of the path in the table, which cuts longer paths; None cuts nothing.
    """
    if style == "json":
        return json.dumps(_fields(row, certainty))
    if style == "csv":
        return csv_line(_csv_values(row, certainty))
    if row.error:
        return None
    own = row.likely[0]
    path = printable(row.path + (f" ({row.label})" if row.label else ""))
    likely = "  ".join(f"{one.cluster} ({one.probability:.3f})" for one in row.likely)
    neighbors = "  ".join(f"{printable(name)} ({value:.3f})" for name, value in row.neighbors)
    neighbors = neighbors and f"\n    neighbors: {neighbors}"
    numbers = f"{row.certainty:.3f}", f"{own.distance:.3f}"
    mark = "  unusual" if row.unusual else ""
    return (
        _table_line(path, str(own.cluster), printable(row.name), *numbers, path_width)
        + likely
        + mark
        + neighbors
    )


def _table_line(
    path: str, cluster: str, name: str, certainty: str, distance: str, width: int | None
) -> str:
    if width and len(path) > width:
        path = "…" + path[len(path) - width + 1 :]
    return f"{path:<{width or 40}}  {cluster:>7}  {name:<12}  {certainty:>10}  {distance:>8}  "


def _fields(row: Row, certainty: CertaintyName) -> dict:
    if row.error:
        return {"path": row.path, "error": row.error}
    clusters = [
        {
            "cluster": one.cluster,
            "name": one.name,
            "probability": round(one.probability, 6),
            "distance": round(one.distance, 6),
        }
        for one in row.likely
    ]
    fields = {
        "path": row.path, "cluster": clusters[0]["cluster"], "name": row.name,
        certainty: round(row.certainty, 6), "distance": clusters[0]["distance"],
        "unusual": row.unusual, "clusters": clusters,
    }  # fmt: skip
    if row.label is not None:
        fields["label"] = row.label
    if row.neighbors:
        fields["neighbors"] = [{"path": p, "similarity": round(s, 6)} for p, s in row.neighbors]
    return fields


def _csv_values(row: Row, certainty: CertaintyName) -> list[object]:
    fields = _fields(row, certainty)
    if "unusual" in fields:
        fields["unusual"] = int(fields["unusual"])
    for place, one in zip(("second", "third"), fields.get("clusters", [])[1:], strict=False):
        fields |= {f"{place}_cluster": one["cluster"], f"{place}_probability": one["probability"]}
    neighbors = ((near["path"], near["similarity"]) for near in fields.get("neighbors", []))
    return [*map(fields.get, _csv_columns(certainty)), *itertools.chain(*neighbors)]


# --- pictures ---------------------------------------------------------------------------------


class Montage:
    """A grid of pictures below their predictions, ordered by cluster.

    Of more than `limit` pictures it keeps and shows a uniform random sample: reservoir sampling,
    Vitter 1985, algorithm R.
    """

    _MARK = b"tEXt", b"Title\0Predictions by SimCLR clusters"
    """A chunk of the PNG file, before its pixels: name and content."""

    def __init__(self, limit: int, side: int = 96, columns: int = 10):
        self.limit, self.side, self.columns = limit, side, columns
        self._tiles: list[tuple[Row, np.ndarray]] = []
        self._added = 0
        self._random = random.Random(0)

    def add(self, row: Row, image_3SS: np.ndarray) -> None:
        self._added += 1
        if len(self._tiles) < self.limit:
            self._tiles.append((row, image_3SS))
        elif (place := self._random.randrange(self._added)) < self.limit:
            self._tiles[place] = (row, image_3SS)

    @property
    def tiles(self) -> list[tuple[Row, np.ndarray]]:
        return sorted(self._tiles, key=lambda t: (t[0].likely[0].cluster, -t[0].certainty))

    def save(self, file: Path, certainty: CertaintyName) -> None:
        """Write the montage as PNG, with a line on what it shows; without pictures write nothing.

        Args:
            certainty: the name of the number above each picture.
        """
        if not (tiles := self.tiles):
            return
        font_file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        font = ImageFont.truetype(str(font_file), 12)  # more alphabets than Pillow's own
        gap, text = 8, 16
        columns = min(self.columns, len(tiles))
        step_x, step_y = self.side + gap, self.side + text + gap
        legend = f"cluster, {certainty}" + "; red: unusual" * any(row.unusual for row, _ in tiles)
        width = max(columns * step_x, int(font.getlength(legend)) + gap) + gap
        height = -(-len(tiles) // columns) * step_y + text + 2 * gap
        sheet = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((gap, height - text - gap), legend, "black", font)
        for i, (row, image) in enumerate(tiles):
            x, y = gap + i % columns * step_x, gap + i // columns * step_y
            draw.text((x, y), _fitting(row.caption, font, self.side), "black", font)
            tile = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            sheet.paste(tile.resize((self.side, self.side)), (x, y + text))
            if row.unusual:
                frame = (x - 3, y + text - 3, x + self.side + 2, y + text + self.side + 2)
                draw.rectangle(frame, outline="red", width=3)
        marked = PngInfo()
        marked.add(*self._MARK)
        with replacing(file) as temporary:
            sheet.save(temporary, "PNG", pnginfo=marked)

    @classmethod
    def is_saved_in(cls, file: Path) -> bool:
        with file.open("rb") as stream:
            return b"".join(cls._MARK) in stream.read(100)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` with the name shortened until it fits; the certainty stays."""
    name, certainty = text.rsplit(" ", 1)
    while len(name) > 1 and font.getlength(text) > width:
        name = name[:-1]
        text = f"{name}… {certainty}"
    return text


class SortedPictures:
    """Links to pictures, or copies, in a new folder: one folder per group.

    Args:
        folders: of the groups, see `folder_names`.
        copy: in place of links.
        split: the share of each group in the folder `train`, the others in `test`; None for
            neither.

    Raises:
        UserError: `root` is not an empty folder, and cannot become one.
    """

    def __init__(self, root: Path, folders: list[str], copy: bool, split: float | None):
        try:
            root.mkdir(parents=True, exist_ok=True)
            is_empty = not any(root.iterdir())
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise UserError(f"--sort-into {root}: {reason}: choose a new folder") from None
        if not is_empty:
            raise UserError(f"--sort-into {root} is not empty: choose a new folder")
        self.root, self.folders, self.copy, self.split = root, folders, copy, split
        self.counts = Counter[str]()

    def add(self, picture: Path, group: int) -> None:
        """Put `picture` into the folder of its group; a name that is taken gets a number.

        Raises:
            OSError: `picture` no longer exists, or its folder cannot be written.
        """
        name = self.folders[group]
        folder = self.root / self._part(self.counts[name]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            ending = picture.suffix if number == 1 else f"_{number}{picture.suffix}"
            target = folder / _shortened(picture.stem, ending)
            with contextlib.suppress(FileExistsError):
                if self.copy:
                    _copy(picture, target)
                else:
                    _link(target, os.path.realpath(picture, strict=True))
                break
        self.counts[name] += 1

    def _part(self, place: int) -> str:
        """The part that picture number `place` of a group goes into, from 0: evenly."""
        if self.split is None:
            return ""
        before, after = (math.ceil(round(self.split * i, 9)) for i in (place, place + 1))
        return "train" if after > before else "test"

    def __str__(self) -> str:
        counts = ", ".join(f"{folder} {count:,}" for folder, count in sorted(self.counts.items()))
        return printable(f"sorted {self.counts.total():,} pictures into {self.root}: {counts}")


def folder_names(names: Sequence[str]) -> list[str]:
    """Of groups: their names, as classes have them; a folder that is taken gets a number. Case and
    Unicode form make no difference, as for classes."""
    folders, taken = [], set()
    for name in names:
        folder = name.replace(os.sep, "_")
        if folder.startswith(".") or folder in THUMBNAILS:  # would not be read as a class
            folder = f"_{folder}"
        # The bytes are the same whatever the encoding of this process.
        stem = os.fsdecode(folder.encode("utf-8", "surrogateescape"))
        for number in itertools.count(1):
            folder = _shortened(stem, "" if number == 1 else f"_{number}")
            if (key := class_key(folder)) not in taken:
                break
        taken.add(key)
        folders.append(folder)
    return folders


def _shortened(stem: str, ending: str = "") -> str:
    """`stem` and `ending`, with a stem that is cut so that a file can have this name."""
    while len(os.fsencode(stem + ending)) > 255:
        stem = stem[:-1]
    return stem + ending


def _link(target: Path, picture: str) -> None:
    try:
        target.symlink_to(picture)
    except OSError as error:
        if error.errno not in (*MISSING_CALL, errno.EPERM):
            raise
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # the next try needs an empty folder
        reason = (error.strerror or "").lower()
        raise UserError(
            f"{target.parent.parent} cannot hold links ({reason}): add --copy"
        ) from None


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            shutil.copyfileobj(reader, writer)
        except BaseException:  # on a full disk or Ctrl-C, leave no incomplete copy
            target.unlink()
            raise
