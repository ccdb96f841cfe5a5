"""One self-contained page to explore the clusters: `report.html`, which needs no network."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.load_dataset import Dataset
from src.runtime.cli import progress
from src.storage.artifacts import replacing
from src.storage.metrics_log import Record
from src.visualization.palette import UNKNOWN, colors
from src.visualization.report_sections import how_made, metrics_table, training_charts
from src.visualization.results import Results, pictures
from src.visualization.thumbnails import COLUMNS, Sheets, make_sheets

PARTS = Path(__file__).parent / "report_page"
SCRIPTS = ("data.js", "map.js", "panels.js")
NEIGHBORS = 12


@dataclass(frozen=True)
class Page:
    results: Results
    xy_N2: np.ndarray
    """Where each image stands on the map."""
    method: str
    """What made the map, as a person calls it."""
    records: list[Record]
    """Of the training log; may be empty."""
    dataset: Dataset | None
    """The images, where they are there."""
    seed: int
    """Of the sample of the pictures, where the page cannot carry all of them."""


def write_report(file: Path, page: Page) -> Path:
    """Write the page to `file` and return it."""
    sheets = None
    if page.dataset is not None:
        sheets = sheets_of(page.results, page.dataset, page.seed)
    shown = sheets.rows if sheets else np.arange(len(page.xy_N2))
    near = nearest(page.results.x_NP, shown, NEIGHBORS)
    slots = {
        "style": (PARTS / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "metrics": metrics_table(page.results.metrics),
        "training": training_charts(page.records),
        "made": how_made(page.results),
        "data": script_json(facts(page, sheets, near.shape[1])),
        "blobs": "\n".join(blobs(page, sheets, shown, near)),
    }
    template = (PARTS / "page.html").read_text(encoding="utf-8")
    # In one pass, so that nothing inside a slot is taken for a slot.
    text = re.sub(r"@@(\w+)@@", lambda match: slots[match[1]], template)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def sheets_of(results: Results, dataset: Dataset, seed: int) -> Sheets:
    count, size = len(results.clusters), dataset.image_size
    sheets = make_sheets(lambda rows: pictures(results, dataset, rows), count, size, seed)
    if len(sheets.rows) < count:
        print(f"note: the report carries the pictures of {len(sheets.rows):,} of {count:,} images")
    return sheets


@torch.no_grad()
def nearest(x_NP: np.ndarray, among: np.ndarray, k: int, block: int = 512) -> np.ndarray:
    """The k nearest others of every point, Euclidean, nearest first, exact.

    Args:
        x_NP: float (N, P).
        among: int (M,), sorted: the points that may be neighbors.
        k: cut to M - 1.

    Returns:
        int64 (N, k), indices into `among`.
    """
    x = torch.from_numpy(np.asarray(x_NP, np.float32))
    x = x - x.mean(dim=0)  # keeps the product form of the distance from canceling
    bank = x[torch.from_numpy(among)]
    square = (bank * bank).sum(dim=1)
    place = torch.full((len(x),), -1)
    place[torch.from_numpy(among)] = torch.arange(len(among))
    found = []
    for start in progress(range(0, len(x), block), desc="neighbors", unit="block"):
        rows = x[start : start + block]
        distance = torch.addmm(square, rows, bank.T, alpha=-2)
        own = place[start : start + block]
        inside = (own >= 0).nonzero().flatten()
        distance[inside, own[inside]] = torch.inf
        found.append(distance.topk(min(k, len(bank) - 1), largest=False)[1])
    return torch.cat(found).numpy()


def facts(page: Page, sheets: Sheets | None, neighbors: int) -> dict[str, Any]:
    """All that the page needs besides the arrays."""
    results = page.results
    names = None
    if page.dataset is not None and all(s.names for s in page.dataset.splits.values()):
        names = [name for s in results.split_names for name in page.dataset.splits[s].names or ()]
    data = results.extraction["dataset"]
    title = data["name"] if data["name"] != "folder" else Path(data["data_dir"]).resolve().name
    return {
        "dataset": title,
        "method": page.method,
        "count": len(results.clusters),
        "splits": results.split_names,
        "offsets": [results.offset(split) for split in results.split_names],
        "clusters": results.cluster_names,
        "classes": results.class_names,
        "classOfCluster": results.class_of_cluster.tolist(),
        "clusterColors": results.cluster_colors,
        "classColors": colors(len(results.class_names)),
        "unknownColor": UNKNOWN,
        "names": names,
        "neighbors": neighbors,
        "tile": sheets.tile if sheets else 0,
        "columns": COLUMNS,
        "sheets": len(sheets.webp) if sheets else 0,
        "pictures": len(sheets.rows) if sheets else 0,
    }


def blobs(page: Page, sheets: Sheets | None, shown: np.ndarray, near: np.ndarray) -> list[str]:
    """The arrays, little-endian, and the sheets: one inert script element each, in base64."""
    results = page.results
    arrays = {
        "xy": page.xy_N2.astype("<f4"),
        "cluster": results.clusters.astype("<u2"),
        "label": results.labels.astype("<i2"),
        "split": results.splits.astype("u1"),
        "distance": results.distance.astype("<f4"),
        "margin": results.margin.astype("<f4"),
        "shown": shown.astype("<u4"),
        "near": near.astype("<u2" if len(shown) < 2**16 else "<u4"),
    }
    parts = [_blob(name, array.tobytes(), array.dtype.str[1:]) for name, array in arrays.items()]
    return parts + [_blob(f"sheet-{i}", s) for i, s in enumerate(sheets.webp if sheets else [])]


def _blob(name: str, content: bytes, dtype: str = "") -> str:
    text = base64.b64encode(content).decode()
    return f'<script type="text/plain" id="{name}" data-type="{dtype}">{text}</script>'


def script_json(content: Any) -> str:
    """JSON that can stand inside a script element whatever the strings in it hold."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
