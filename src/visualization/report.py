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

from src.evaluation.neighbors import lifted, nearest
from src.storage.files import replacing
from src.storage.metrics_log import Record
from src.visualization.duplicates import Copies
from src.visualization.palette import UNKNOWN, colors
from src.visualization.report_sections import sections
from src.visualization.results import Results
from src.visualization.thumbnails import COLUMNS, Sheets, make_sheets

PARTS = Path(__file__).parent / "report_page"
SCRIPTS = ("data.js", "map.js", "filters.js", "panels.js", "naming.js", "start.js")
NEIGHBORS = 12


def write_report(
    file: Path,
    results: Results,
    records: list[Record],
    copies: Copies,
    xy_N2: np.ndarray,
    method: str,
) -> None:
    """Write the page to `file`. Without images it shows names only, and without records no curves.

    Args:
        xy_N2: the map.
        method: the projection that made it, as the page calls it.
    """
    count = len(results.clusters)
    sheets = Sheets(0, np.arange(count), [])  # without pictures, every image can be a neighbor
    if results.dataset is not None:
        sheets = make_sheets(results.pictures, count, results.dataset.image_size)
    if len(sheets.rows) < count:
        print(f"note: the report carries the pictures of {len(sheets.rows):,} of {count:,} images")
    own_N = torch.full((count,), -1)
    own_N[sheets.rows] = torch.arange(len(sheets.rows))
    _, near_Nk = nearest(*lifted(results.x_NP[sheets.rows], results.x_NP), NEIGHBORS, own_N)
    arrays = {
        "xy": xy_N2.astype("<f4"),
        "cluster": results.clusters.astype("<i4"),
        "label": results.labels.astype("<i4"),
        "split": results.splits.astype("u1"),
        "distance": results.distance.astype("<f4"),
        "certainty": results.certainty.astype("<f4"),
        "near": copies.group_N.astype("<i4"),
        "keep": copies.keep_N.astype("u1"),
        "sharpness": copies.sharpness_N.astype("<f4"),
        "unusual": results.unusual.astype("u1"),
        "pictured": sheets.rows.astype("<u4"),
        "nearest": near_Nk.numpy().astype("<u2" if len(sheets.rows) < 2**16 else "<u4"),
    }
    blobs = [_blob(name, array.tobytes(), array.dtype.str[1:]) for name, array in arrays.items()]
    blobs += [_blob(f"sheet-{i}", sheet) for i, sheet in enumerate(sheets.webp)]
    data = page_data(results, sheets, file.parent) | {"method": method}
    slots = {
        "style": (PARTS / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS),
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


def page_data(results: Results, sheets: Sheets, directory: Path) -> dict[str, Any]:
    """What the scripts of the page, which lies in `directory`, read besides the arrays."""
    names, folder = results.file_names, None
    if names:
        folder = quote(os.fsencode(os.path.relpath(results.picture_dir, directory))) + "/"
    data = results.extraction["dataset"]
    title = data["name"]
    if title == "folder" and data["data_dir"]:
        title = Path(data["data_dir"]).resolve().name
    return {
        "dataset": title,
        "count": len(results.clusters),
        "splits": results.split_names,
        "offsets": [int(results.rows(split)[0]) for split in results.split_names],
        "classes": results.class_names,
        "givenNames": [name or "" for name in results.given_names],
        "clustersId": results.clusters_id,
        "classOfCluster": results.class_of_cluster.tolist(),
        "clusterColors": results.cluster_colors,
        "classColors": colors(len(results.class_names)),
        "certainty": results.clustering["certainty"],
        "unknownColor": UNKNOWN,
        "names": names,
        "folder": folder,
        "tile": sheets.tile,
        "columns": COLUMNS,
        "sheets": len(sheets.webp),
    }


def _blob(name: str, content: bytes, dtype: str = "") -> str:
    """An inert script element that holds bytes in base64; numbers are little-endian."""
    text = base64.b64encode(content).decode()
    return f'<script type="text/plain" id="{name}" data-type="{dtype}">{text}</script>'
