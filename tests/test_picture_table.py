"""CSV that people open in spreadsheets: no cell is computed, and umlauts are read."""

import codecs
import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.inference import InferenceConfig, main
from src.storage import artifacts
from src.storage.artifacts import Manifest
from src.storage.picture_table import csv_line
from src.visualization.duplicates import Copies
from src.visualization.images_table import write_images
from src.visualization.results import load_results
from tests.helpers.finished_run import rows_of

COMPUTED = [
    '=HYPERLINK("http://x","y")', "=cmd|' /C calc'!A1", "+49 170.jpg", "-2+3", "@SUM(A1)", "-",
    "\t=1", "\r=1", "\n=1", "\uff1d1+1",
]  # fmt: skip
KEPT = ["a=b", "Bär.jpg", " =1", "'=1", "", "-3.5", "+1e-05", "-inf", -2.5, 0, None]


def test_only_what_would_be_computed_gets_an_apostrophe() -> None:
    (row,) = csv.reader(io.StringIO(csv_line([*COMPUTED, *KEPT]), newline=""))
    kept = ["" if value is None else str(value) for value in KEPT]
    assert row == [f"'{text}" for text in COMPUTED] + kept


def test_images_csv_in_a_spreadsheet(pixel_digits: Path, tmp_path: Path) -> None:
    results = load_results(pixel_digits)
    names = [*COMPUTED[:5], "Bär", "猫", *(f"cluster {k}" for k in (7, 8, 9))]
    near, xy = np.full(len(results.x_NP), -1), -np.abs(results.x_NP[:, :2])
    copies = Copies(near, near < 0, np.full(len(near), np.nan))
    paths = ["a\nb.png", "a\rb.png", "a\r\nb.png", *results.paths[3:]]
    grouping = replace(results.grouping, names=names)
    results = replace(results, grouping=grouping, paths=paths)
    write_images(tmp_path / "images.csv", results, copies, xy)
    assert (tmp_path / "images.csv").read_bytes().startswith(codecs.BOM_UTF8)
    rows = rows_of(tmp_path / "images.csv")
    shown = [f"'{name}" for name in names[:5]] + names[5:]
    assert [row["name"] for row in rows] == [shown[k] for k in results.clusters]
    assert [row["path"] for row in rows] == paths
    assert (tmp_path / "images.csv").read_bytes().endswith(b"\r\n")
    assert all(float(row["x"]) <= 0 for row in rows)


def test_predictions_in_a_spreadsheet_and_in_a_pipe(
    pixel_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["=cmd|calc!A1", "+1 Äpfel", "plain.jpg"]
    features = Manifest(pixel_digits).load(artifacts.FEATURES, "test")
    np.save(tmp_path / "new.npy", features[: len(names)])
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    config = InferenceConfig(
        feature_dir=pixel_digits, features=tmp_path / "new.npy", names=tmp_path / "names.txt",
        wandb="disabled",
    )  # fmt: skip
    for ending in ("csv", "json"):
        main(replace(config, output=tmp_path / f"out.{ending}"))
    main(replace(config, csv=True))
    shown = ["'=cmd|calc!A1", "'+1 Äpfel", "plain.jpg"]
    assert [row["path"] for row in rows_of(tmp_path / "out.csv")] == shown
    assert [row["path"] for row in rows_of(tmp_path / "out.json")] == names
    written = (tmp_path / "out.csv").read_bytes()
    assert written.startswith(codecs.BOM_UTF8)
    piped = capsys.readouterr().out.replace("\r\n", "\n")
    assert piped == written.decode("utf-8-sig").replace("\r\n", "\n")
