"""One self-contained page to explore the clusters: `report.html`, which needs no network."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from dataset.load_dataset import image_paths
from src.evaluation.neighbors import lifted, nearest
from src.evaluation.sampling import are_many
from src.runtime.commands import command
from src.storage.artifacts import NAMING
from src.storage.files import replacing
from src.storage.metrics_log import Record
from src.visualization.duplicates import Copies
from src.visualization.flags import VisualizeConfig
from src.visualization.palette import UNKNOWN, colors
from src.visualization.report_sections import sections, verdict
from src.visualization.results import Results
from src.visualization.thumbnails import Sheets, make_sheets

PARTS = Path(__file__).parent / "report_page"
SCRIPTS = (
    "data.js", "said.js", "groups.js", "map.js", "filters.js", "panels.js", "naming.js",
    "choosing.js", "start.js",
)  # fmt: skip
NEIGHBORS = 12
SHOWN, SHOWN_COPIES, SHOWN_FINE = 18_000, 3_000, 2_000
"""Of very many images (`sampling.py`), the page has all as points, but only so many with pictures
and names: random ones, near-duplicates, some of every fine cluster. It then has less than 30 MB."""


def write_report(
    file: Path,
    results: Results,
    records: list[Record],
    copies: Copies,
    xy_N2: np.ndarray,
    method: str,
) -> None:
    """Write the page to `file`. Without images it shows names only, and without records no curves.
    Prints a note if it does not have all images, see `SHOWN`.

    Args:
        xy_N2: the map.
        method: the projection that made it, as the page calls it.
    """
    shown = shown_images(results, copies)
    count, total, x_NP = len(shown), len(results.clusters), results.x_NP[shown]
    sheets = Sheets(0, np.arange(count), [])  # without pictures, every image can be a neighbor
    if results.dataset is not None:
        read = lambda rows, size: results.thumbnails(shown[rows], size)  # noqa: E731
        sheets = make_sheets(read, count, results.side())
    if count < total:
        print(
            f"note: the report has a sample of {count:,} of {total:,} images, the others as points"
        )
    if len(sheets.rows) < count:
        print(f"note: the report carries the pictures of {len(sheets.rows):,} of {count:,} images")
    own_N = torch.full((count,), -1)
    own_N[sheets.rows] = torch.arange(len(sheets.rows))
    _, near_Nk = nearest(*lifted(x_NP[sheets.rows], x_NP), NEIGHBORS, own_N)
    arrays = {
        "xy": xy_N2[shown].astype("<f4"),
        "cluster": results.clusters[shown].astype("<i4"),
        "fine": results.fine[shown].astype("<i4"),
        "fine-distance": fine_distance(x_NP, results.fine[shown]).astype("<f4"),
        "label": results.labels[shown].astype("<i4"),
        "split": results.splits[shown].astype("u1"),
        "distance": results.distance[shown].astype("<f4"),
        "certainty": results.certainty[shown].astype("<f4"),
        "near": copies.group_N[shown].astype("<i4"),
        "keep": copies.keep_N[shown].astype("u1"),
        "sharpness": copies.sharpness_N[shown].astype("<f4"),
        "unusual": results.unusual[shown].astype("u1"),
        "pictured": sheets.rows.astype("<u4"),
        "nearest": near_Nk.numpy().astype("<u2" if len(sheets.rows) < 2**16 else "<u4"),
    }
    if count < total:
        arrays |= points(results, xy_N2) | {"row": shown.astype("<u4")}
    blobs = [_blob(name, array.tobytes(), array.dtype.str[1:]) for name, array in arrays.items()]
    blobs += [_blob(f"sheet-{i}", sheet) for i, sheet in enumerate(sheets.webp)]
    data = page_data(results, shown, sheets, file.parent) | {"method": method}
    if count < total:
        data["points"] = {
            "count": total,
            "low": xy_N2.min(0).tolist(),
            "high": xy_N2.max(0).tolist(),
        }
    slots = {
        "style": (PARTS / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "verdict": verdict(results),
        "sections": sections(results, records),
        # No string can end the script element.
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "blobs": "\n".join(blobs),
    }
    template = (PARTS / "page.html").read_text(encoding="utf-8")
    # In one pass, so that nothing inside a slot is taken for a slot.
    text = re.sub(r"@@(\w+)@@", lambda match: slots[match[1]], template)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # names need not be UTF-8


def shown_images(results: Results, copies: Copies) -> np.ndarray:
    """The images that the page has with picture and name, int (n,), ascending; see `SHOWN`."""
    total = len(results.clusters)
    if not are_many(total):
        return np.arange(total)
    order = np.random.default_rng(0).permutation(total)
    by_fine = order[np.argsort(results.fine[order], kind="stable")]
    counts = np.bincount(results.fine)
    place_in_fine = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    each = max(3, SHOWN_FINE // len(counts))
    copied = np.flatnonzero(copies.group_N >= 0)  # below, whole groups, the one to keep first
    copied = copied[np.lexsort((~copies.keep_N[copied], copies.group_N[copied]))]
    parts = order[:SHOWN], copied[:SHOWN_COPIES], by_fine[place_in_fine < each]
    return np.unique(np.concatenate(parts))


def points(results: Results, xy_N2: np.ndarray) -> dict[str, np.ndarray]:
    """Every image as a point of 6 to 8 bytes: its place between the lowest and the highest in 2**16
    steps, cluster and fine cluster."""
    low, high = xy_N2.min(axis=0), xy_N2.max(axis=0)
    steps = (xy_N2 - low) / np.maximum(high - low, 1e-12) * (2**16 - 1)
    numbers = {"point-cluster": results.clusters, "point-fine": results.fine}
    small = {k: x.astype("u1" if x.max() < 2**8 else "<u2") for k, x in numbers.items()}
    return {"point-xy": np.rint(steps).astype("<u2"), **small}


def page_data(
    results: Results, shown: np.ndarray, sheets: Sheets, directory: Path
) -> dict[str, Any]:
    """What the scripts of the page, which lies in `directory`, read besides the arrays."""
    folder, content = None, results.grouping.given.content
    sizes = {split: len(results.rows(split)) for split in results.split_names}
    names = results.paths if results.paths != image_paths(sizes) else None
    if results.file_names:
        folder = quote(os.fsencode(os.path.relpath(results.picture_dir, directory))) + "/"
    return {
        "title": experiment(results, directory),
        "count": len(shown),
        "splits": results.split_names,
        "offsets": [int(results.rows(split)[0]) for split in results.split_names],
        "classes": results.class_names,
        "said": said(results),
        "namesFile": {key: content[key] for key in ("version", "clusters", "digests")},
        "directory": str(directory),
        "command": f"{command(*NAMING.split())} && {command('visualize_features.py')}",
        "tree": results.fine_tree[:, :2].astype(int).tolist(),
        "classOfCluster": results.class_of_cluster.tolist(),
        "clusterColors": results.cluster_colors,
        "classColors": colors(len(results.class_names)),
        "colors": colors(100),
        "certainty": results.clustering["certainty"],
        "unknownColor": UNKNOWN,
        "names": names and [names[row] for row in shown],
        "folder": folder,
        "tile": sheets.tile,
        "columns": sheets.columns,
        "sheets": len(sheets.webp),
    }


def experiment(results: Results, directory: Path) -> str:
    """The name of the results in `directory`: that of --name, otherwise the dataset's."""
    own, data = directory.resolve().name, results.extraction["dataset"]
    if own != VisualizeConfig.feature_dir.name:
        return own
    if data["name"] == "folder" and data["data_dir"]:
        return Path(data["data_dir"]).resolve().name
    return data["name"]


def said(results: Results) -> dict[str, dict[str, Any]]:
    """What names.json says, by kind and key; an ignored image is True."""
    given = results.grouping.given
    ignored = dict.fromkeys(given.ignored, True)
    return {"names": given.names, "fine": given.fine, "moved": given.moved, "ignored": ignored}


def fine_distance(x_NP: np.ndarray, fine_N: np.ndarray) -> np.ndarray:
    """float (N,), from each image to the mean of its fine cluster."""
    centers = np.zeros((fine_N.max() + 1, x_NP.shape[1]))
    np.add.at(centers, fine_N, x_NP)
    centers /= np.bincount(fine_N).clip(1)[:, None]
    return np.linalg.norm(x_NP - centers[fine_N], axis=1)


def _blob(name: str, content: bytes, dtype: str = "") -> str:
    """An inert script element that holds bytes in base64; numbers are little-endian."""
    text = base64.b64encode(content).decode()
    return f'<script type="text/plain" id="{name}" data-type="{dtype}">{text}</script>'
