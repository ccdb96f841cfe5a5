"""Imported features: as if the extraction had written them, and refused where they do not fit."""

import math
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

import visualize_features
from dataset.load_dataset import load_dataset
from src import export, feature_extraction, import_features, inference
from src.export import ExportConfig
from src.feature_extraction import ExtractionConfig
from src.import_features import ImportConfig
from src.inference import InferenceConfig
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import FEATURES, LABELS, Manifest
from src.storage.user_arrays import foreign_features
from tests.helpers.finished_run import cluster, rows_of, write_checkpoint
from tests.helpers.pixel_run import pixels
from visualize_features import VisualizeConfig

SPLITS = {"unlabeled": 20, "train": 40, "test": 20}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pictures_dir: Path) -> Path:
    """Features and names of every split, as another program would write them."""
    directory = tmp_path_factory.mktemp("made")
    for name, split in load_dataset("folder", pictures_dir, 96).splits.items():
        np.save(directory / f"{name}.npy", pixels(split.images))
        (directory / f"{name}.txt").write_text("\n".join(split.names or ()) + "\n")
    return directory


def flags(made: Path, feature_dir: Path, **changes: Path | None) -> ImportConfig:
    """Only features; `changes` add the rest."""
    files = {split: made / f"{split}.npy" for split in SPLITS}
    return ImportConfig(**{**files, "feature_dir": feature_dir, **changes})  # type: ignore[arg-type]


def names(made: Path, pictures: Path) -> dict[str, Path]:
    return {"data_dir": pictures} | {f"{split}_names": made / f"{split}.txt" for split in SPLITS}


def class_names(directory: Path) -> list[str]:
    return Manifest(directory).extraction["dataset"]["class_names"]


def visualize(directory: Path) -> str:
    """The report."""
    flags = {"projection": "pca", "wandb": "disabled", "format": "pdf"}
    visualize_features.main(VisualizeConfig(feature_dir=directory, **flags))
    return (directory / artifacts.REPORT).read_text()


def test_the_import_writes_what_the_extraction_writes(
    pictures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an order of its own, as float64, and with a row of a file that is no picture; no views."""
    extracted, imported = tmp_path / "extracted", tmp_path / "imported"
    checkpoint = tmp_path / "0.pt"
    write_checkpoint(checkpoint, "folder", pictures_dir)
    feature_extraction.main(ExtractionConfig(checkpoint, feature_dir=extracted, device="cpu"))
    cluster(extracted)
    dataset = Manifest(extracted).extraction["dataset"]
    (pictures_dir / "train/0/notes.txt").write_text("no picture")
    for split in SPLITS:
        found = sorted(str(p.relative_to(pictures_dir)) for p in pictures_dir.rglob("*.png"))
        of_split = [name for name in found if name.startswith(split)]
        x = np.load(artifacts.path(FEATURES, extracted, split)).astype(np.float64)
        if split == "train":
            of_split, x = [*of_split, "train/0/notes.txt"], np.vstack([x, x[:1]])
        order = np.random.default_rng(0).permutation(len(x))
        np.save(tmp_path / f"{split}.npy", np.asfortranarray(x[order]))
        (tmp_path / f"{split}.txt").write_text("\r\n".join(of_split[i] for i in order))
    shutil.copytree(extracted, imported)  # its views go away
    import_features.main(flags(tmp_path, imported, **names(tmp_path, pictures_dir)))
    (pictures_dir / "train/0/notes.txt").unlink()
    capsys.readouterr()
    cluster(imported)
    assert "pi between views" not in capsys.readouterr().out
    assert Manifest(imported).extraction["dataset"] == dataset
    views = {"train_views.npy", "train_view_pixels.npy"}
    written = {file.name for file in imported.iterdir()}
    assert written == {file.name for file in extracted.iterdir()} - views
    for name in written - {artifacts.MANIFEST, artifacts.METRICS}:
        assert (imported / name).read_bytes() == (extracted / name).read_bytes(), name
    ours, theirs = (Manifest(directory).metrics() for directory in (extracted, imported))
    for trust in (ours["trust"], ours["trust"]["pixels"]):
        assert isinstance(trust["views"], float)
        trust["views"] = None
    del ours["trust"]["verdict"], theirs["trust"]["verdict"]  # which views decide, too
    assert theirs == ours


def test_pretrained_features_with_their_pictures(
    made: Path, pictures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_features.main(flags(made, tmp_path, **names(made, pictures_dir)))
    assert np.load(artifacts.path(FEATURES, tmp_path, "train")).shape == (40, 192)
    cluster(tmp_path, baselines=True)
    metrics = Manifest(tmp_path).metrics()
    assert list(metrics["baselines"]) == ["raw_pixels"]
    assert metrics["kmeans"]["splits"]["train"]["knn_accuracy"] > 0.85  # ten colors
    report = visualize(tmp_path)
    assert 'id="sheet-0"' in report
    assert "none: the features were imported" in report
    out = capsys.readouterr().out
    assert "imported, so raw pixels are the only baseline" in out
    assert "no training curves" in out


def test_without_pictures_all_but_galleries(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "labels.npy", np.arange(40, dtype=np.uint8) % 10 + 1)
    import_features.main(flags(made, tmp_path, train_labels=tmp_path / "labels.npy"))
    assert class_names(tmp_path) == [str(i + 1) for i in range(10)]
    assert (np.load(artifacts.path(LABELS, tmp_path, "train")) == np.arange(40) % 10).all()
    cluster(tmp_path, baselines=True)
    assert "baselines" not in Manifest(tmp_path).metrics()
    report = visualize(tmp_path)
    assert 'id="sheet-0"' not in report
    figures = {file.stem for file in (tmp_path / artifacts.FIGURES).glob("*.pdf")}
    assert {"map", "confusion_train", "cluster_sizes", "silhouette"} <= figures
    out = capsys.readouterr().out
    assert "no baselines" in out
    assert "no pictures: the features were imported without pictures" in out
    for main, config in ((inference.main, InferenceConfig), (export.main, ExportConfig)):
        with pytest.raises(UserError, match=r"that made them is not here: .*--features"):
            main(config(feature_dir=tmp_path))
    artifacts.path(FEATURES, tmp_path, "train").write_bytes(b"damage")
    with pytest.raises(UserError, match=r"run .*python src/import_features\.py"):
        cluster(tmp_path)


def test_new_features_get_the_clusters_of_the_clustering(made: Path, tmp_path: Path) -> None:
    import_features.main(flags(made, tmp_path))
    cluster(tmp_path)
    table, lines = tmp_path / "out.csv", tmp_path / "out.json"
    config = InferenceConfig(feature_dir=tmp_path, features=made / "test.npy", wandb="disabled")
    assert inference.main(replace(config, names=made / "test.txt", output=table)) == 0
    assert inference.main(replace(config, output=lines)) == 0
    named = (made / "test.txt").read_text().splitlines()
    clusters = Manifest(tmp_path).load(artifacts.ASSIGNMENTS, "test").tolist()
    for output, paths in ((table, named), (lines, map(str, range(20)))):
        found = [(row["path"], int(row["cluster"])) for row in rows_of(output)]
        assert found == list(zip(paths, clusters, strict=True))
    np.save(tmp_path / "narrow.npy", np.ones((3, 7)))
    with pytest.raises(UserError, match=r"7 features a row, the clusters in .* have 192"):
        inference.main(replace(config, features=tmp_path / "narrow.npy"))
    with pytest.raises(UserError, match=r"has 20 lines, .* has 40 rows"):
        inference.main(replace(config, features=made / "train.npy", names=made / "test.txt"))


def test_labels_are_numbers_of_the_class_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(4, 3, dtype=np.float16))
    np.save(tmp_path / "y.npy", np.array([2, -1, 0, 2]))
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    arrays = {"train": tmp_path / "x.npy", "train_labels": tmp_path / "y.npy"}
    config = ImportConfig(**arrays, feature_dir=tmp_path)
    import_features.main(replace(config, class_names=tmp_path / "names.txt"))
    assert class_names(tmp_path) == ["ant", "bee", "cat"]
    assert Manifest(tmp_path).load(LABELS, "train").tolist() == [2, -1, 0, 2]
    before = Manifest(tmp_path).extraction["id"]
    import_features.main(config)
    assert class_names(tmp_path) == ["0", "2"]
    assert Manifest(tmp_path).load(LABELS, "train").tolist() == [1, -1, 0, 1]
    assert Manifest(tmp_path).extraction["id"] != before
    (tmp_path / "names.txt").write_text("ant\nbee")
    with pytest.raises(UserError, match="has 2 names, for the classes 0 to 1; a label is 2"):
        import_features.main(replace(config, class_names=tmp_path / "names.txt"))


X = np.ones((6, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.where(np.arange(18).reshape(6, 3) == 13, np.nan, X), r"row 4 \(from 0\) has NaN"),
        (X.astype(np.float64) * 1e300, r"row 0 \(from 0\) has NaN, infinity or a number beyond"),
        (X.astype(np.int64), r"is int64 of shape \(6, 3\): expected float16"),
        (X.ravel(), r"is float32 of shape \(18,\)"),
        (X[:0], r"shape \(0, 3\) has no rows"),
        (X.astype(object), "pickled Python objects"),
        (lambda data: data.replace(b"(6, 3), }    ", b"(18, True), }"), r"shape is \(18, True\)"),
        (lambda data: data[:-5], "67 bytes of numbers, its header says 72"),
        (lambda data: data + b"x", "73 bytes of numbers"),
        (lambda data: b"PK\3\4" + data, "no .npy file"),
        (lambda data: data.replace(b"(6, 3)", b"(6, -3"), "no .npy file"),
        (lambda data: data.replace(b"(6, 3)", b"(-6,3)"), "has no rows"),
        (lambda data: data.replace(b"'<f4'", b"'<V4'"), r"is \|V4 of shape"),
        (lambda data: data[:40], "no .npy file"),
        (lambda data: data[:8] + b"\0\x20" + b"-" * 8192, "no .npy file"),  # too deep for a parser
        (lambda data: b"", "no .npy file"),
    ],
)
def test_bad_arrays_and_damaged_files_are_refused(
    change: Callable[[bytes], bytes] | np.ndarray, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.npy"
    np.save(file, change if isinstance(change, np.ndarray) else X)
    if callable(change):
        file.write_bytes(change(file.read_bytes()))
    refused(ImportConfig(train=file, feature_dir=tmp_path / "f"), message)


def test_many_columns_take_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    with file.open("wb") as out:  # nearly all of it is a hole
        shape = (2000, 100_000)
        npy.write_array_header_1_0(out, {"descr": "<f2", "fortran_order": False, "shape": shape})
        out.truncate(out.tell() + 2 * math.prod(shape))
    tracemalloc.start()
    foreign_features(file, "--train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def refused(config: ImportConfig, message: str) -> None:
    """With one line, and before anything is written."""
    with pytest.raises(UserError, match=message) as error:
        import_features.main(config)
    assert "\n" not in str(error.value)
    assert not config.feature_dir.exists()


STRANGE = {
    "root": "/etc/passwd", "outside": "../../../../etc/passwd", "twice": "./unlabeled/00.png",
    "around": "test/../unlabeled/01.png", "double": "unlabeled//01.png", "test": "test/0/00.png",
    "folder": "unlabeled", "here": ".",
}  # fmt: skip
"""Names that are no further pictures of unlabeled."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": None, "test": None, "unlabeled": None}, "nothing to import"),
        ({"train": Path("missing")}, "missing is missing: --train takes features"),
        (
            {"test": "wide", "test_names": None},
            "different widths: --unlabeled 192, --train 192, --test 3",
        ),
        ({"train_labels": "y"}, "has 6 labels, .*train.npy has 40 rows"),
        ({"train_labels": "wide"}, "expected whole numbers of shape"),
        ({"train": None, "train_labels": "y"}, "--train-labels requires --train"),
        ({"train_names": "test.txt"}, "has 20 lines, .*train.npy has 40 rows"),
        ({"data_dir": None}, "names are pictures: add their folder with --data-dir"),
        ({"test_names": None}, "--data-dir needs the picture of every row: add --test-names"),
        ({"unlabeled_names": "test.txt"}, "20 of 20 unlabeled pictures in .* have no row in"),
        ({"unlabeled_names": "twice"}, "has unlabeled/00.png 2 times"),
        ({"unlabeled": "train.npy", "unlabeled_names": "more"}, "no unlabeled picture 0 in "),
        ({"class_names": "test.txt"}, "--class-names requires --train-labels"),
        ({"train_labels": "y-2"}, r"y-2.npy: a label is -2; classes are whole numbers from 0"),
        ({"train_labels": "least"}, "a label is -9223372036854775808; classes"),
        ({"train_labels": "largest"}, "a label is 9223372036854775813; classes"),
        *[
            ({"unlabeled": "21", "unlabeled_names": f"and {place}"}, f"no unlabeled picture {name}")
            for place, name in STRANGE.items()
        ],
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict, message: str, made: Path, pictures_dir: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "wide", X)
    np.save(tmp_path / "y", np.arange(6))
    for name, label in (("y-2", -2), ("least", -(2**63)), ("largest", 2**63 + 5)):
        np.save(tmp_path / name, np.full(40, label, np.int64 if label < 0 else np.uint64))
    np.save(tmp_path / "21", np.ones((21, 192), np.float32))
    lines = (made / "unlabeled.txt").read_text().splitlines()
    (tmp_path / "twice").write_text("\n".join([*lines[:-1], lines[0]]))
    for place, name in STRANGE.items():
        (tmp_path / f"and {place}").write_text("\n".join([*lines, name]))
    (tmp_path / "more").write_text("\n".join([*lines, *map(str, range(20))]))
    for key, value in change.items():
        places = [place for place in (made, tmp_path) if (place / str(value)).exists()]
        if isinstance(value, str):
            change[key] = places[0] / value if places else tmp_path / f"{value}.npy"
    everything = names(made, pictures_dir) | {"feature_dir": tmp_path / "f"} | change
    refused(flags(made, **everything), message)
