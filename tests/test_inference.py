import codecs
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.decoding import decode
from dataset.load_dataset import load_dataset
from dataset.pictures import BadPicture, load_picture
from src.clusters.confidence import confidence, fit_scale, gaussian_scale, margin
from src.clusters.head import ClusterHead
from src.inference import InferenceConfig, main
from src.prediction import stage
from src.prediction.output import LikelyCluster, Montage, Row, SortedPictures, folder_names, line
from src.prediction.picture_stream import find
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError
from src.runtime.device import select_precision
from src.storage import artifacts
from src.storage.artifacts import CLUSTERING, Manifest
from tests.helpers.counted_reads import count_reads
from tests.helpers.digits import digits, save_picture, write_digits
from tests.helpers.finished_run import FinishedRun, rows_of
from tests.helpers.pixel_run import load_arrays, pixel_run
from tests.helpers.processes import Script, assert_refused

CPU = torch.device("cpu")

Infer = Callable[..., int]


@pytest.fixture(scope="module")
def features(digits_run: FinishedRun) -> Path:
    return digits_run.features


@pytest.fixture(scope="module")
def predictor(features: Path) -> Predictor:
    return Predictor.load(features, device="cpu")


@pytest.fixture(scope="module")
def infer(features: Path) -> Infer:
    """Run the stage on `paths` and return its exit code."""

    def run(*paths: object, **flags: object) -> int:
        config = InferenceConfig(tuple(map(str, paths)), feature_dir=features, device="cpu")
        return main(replace(config, **flags))  # type: ignore[arg-type]

    return run


# --- the same clusters as the clustering stage ------------------------------------------------


def test_images_written_as_png_get_the_clusters_of_the_clustering(
    infer: Infer, features: Path, tmp_path: Path
) -> None:
    files = [x for s in ("train", "test") for x in write_digits(tmp_path / s, 1438, s)]
    output = tmp_path / "predictions.json"
    assert infer(*files, output=output) == 0
    manifest = Manifest(features)
    for column, artifact in (("cluster", artifacts.ASSIGNMENTS), ("unusual", artifacts.UNUSUAL)):
        expected = [manifest.load(artifact, split) for split in ("train", "test")]
        assert [row[column] for row in rows_of(output)] == np.concatenate(expected).tolist()
    assert expected[0].sum() == 15  # a hundredth of 1,438
    assert len({row["cluster"] for row in rows_of(output)}) == 10


def test_a_precision_that_this_processor_emulates_is_replaced(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of a GPU in fp16, pictures on a CPU."""
    recorded = {**Manifest(features).extraction, "precision": "float16"}
    monkeypatch.setattr(Manifest, "extraction", recorded)
    for precision, expected in (("auto", select_precision("auto", CPU)), ("fp16", torch.float16)):
        assert Predictor.load(features, device="cpu", precision=precision).dtype == expected
        note = "the features were extracted in fp16, which is slow on this device: predicting in "
        assert (note in capsys.readouterr().err) == (precision == "auto")


def test_head_is_l2_then_pca_then_linear(predictor: Predictor, features: Path) -> None:
    manifest = Manifest(features)
    mean, components, centroids, weights, bias = (
        manifest.load(artifact).astype(np.float64)
        for artifact in (
            artifacts.PCA_MEAN,
            artifacts.PCA_COMPONENTS,
            artifacts.CENTROIDS,
            artifacts.HEAD_WEIGHTS,
            artifacts.HEAD_BIAS,
        )
    )
    x = np.random.default_rng(0).normal(size=(50, len(mean)))
    x[:25] = manifest.load(artifacts.FEATURES, "test")[:25]
    outputs = predictor.head(torch.tensor(x).float())
    cluster, sure, distances, far, group, _ = (t.numpy() for t in outputs)
    limit = manifest.clustering["unusual_distance"]
    for i in range(len(x)):
        z = components @ (x[i] / np.sqrt((x[i] ** 2).sum()) - mean)
        scores = weights @ z + bias
        odds = np.exp((scores - scores.max()) / predictor.head.confidence_scale)
        assert cluster[i] == scores.argmax()
        assert predictor.group_names[group[i]] == predictor.cluster_names[cluster[i]]
        np.testing.assert_allclose(distances[i], np.linalg.norm(z - centroids, axis=1), rtol=1e-4)
        np.testing.assert_allclose(sure[i], 1 / odds.sum(), rtol=1e-3)
        in_all_dimensions = x[i] / np.linalg.norm(x[i]) - mean - centroids @ components
        assert far[i] == (np.linalg.norm(in_all_dimensions, axis=1).min() > limit)
    assert not far[:25].all()
    assert far[25:].all()


@pytest.mark.parametrize(
    "flags",
    [{}, {"smooth": False}, {"labeled": False}, {"smooth": False, "unusual": 1.0, "clusters": "3"}],
)
def test_features_get_what_the_clustering_wrote(tmp_path: Path, flags: dict) -> None:
    pixel_run(tmp_path, "digits", Path(), **flags)
    head, manifest = Predictor.load(tmp_path, features_only=True), Manifest(tmp_path)
    for split in ("train", "test"):
        x = np.array(manifest.load(artifacts.FEATURES, split))
        for size in (len(x), 64, 7):
            parts = [head.predict_features(x[i : i + size]) for i in range(0, len(x), size)]
            clusters, sure, distances, far, groups, _ = map(
                np.concatenate, zip(*parts, strict=True)
            )
            np.testing.assert_array_equal(clusters, manifest.load(artifacts.ASSIGNMENTS, split))
            np.testing.assert_array_equal(far, manifest.load(artifacts.UNUSUAL, split))
            written = manifest.load(artifacts.CERTAINTY, split)
            np.testing.assert_allclose(sure, written, atol=1e-4)
            names = [head.cluster_names[k] for k in clusters]
            assert [head.group_names[g] for g in groups] == names
            own = distances[np.arange(len(x)), clusters]
            np.testing.assert_allclose(own, manifest.load(artifacts.DISTANCE, split), atol=1e-5)
    assert flags.get("unusual") != 1.0 or not manifest.load(artifacts.UNUSUAL, "train").any()


def test_without_smoothing_the_head_is_the_nearest_centroid(tmp_path: Path) -> None:
    """Confidence is the softmax of squared distances then."""
    pixel_run(tmp_path, "digits", Path(), smooth=False)
    run = load_arrays(tmp_path)
    assert (run.clusters == run.distances.argmin(axis=1)).all()
    scores = ClusterHead.load(Manifest(tmp_path)).linear(torch.tensor(run.x).float())
    squared = torch.tensor(run.distances).square()
    torch.testing.assert_close(
        confidence(scores, 0.1), confidence(-squared, 0.1), check_dtype=False, atol=1e-4, rtol=0
    )


# --- confidence -------------------------------------------------------------------------------


def test_confidence_and_margin_grow_towards_the_own_centroid() -> None:
    centroids = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    points = torch.stack([torch.linspace(0, 4, 41), torch.zeros(41)], 1)
    scores = -torch.cdist(points, centroids).square()
    for scale in (1e-4, 1.0, 1e4):
        sure = confidence(scores, scale)
        assert ((sure >= 1 / 3) & (sure <= 1)).all()
        for certain in (sure, margin(scores, scale)):
            assert (certain[:20].diff() <= 0).all()  # away from the first centroid to the border
            assert (certain[21:].diff() >= 0).all()  # and on to the second
    assert confidence(scores, 1.0)[20] == pytest.approx(0.5, abs=1e-3)
    odds = (scores[3] / 2).exp()  # the second centroid is the second nearest
    assert margin(scores, 2.0)[3] == pytest.approx(float(1 - odds[1] / odds[0]), abs=1e-6)
    assert margin(scores, 2.0)[20] == pytest.approx(0, abs=1e-6)
    assert margin(scores[:, :1], 2.0).tolist() == [1] * 41


def test_confidence_scale_is_recovered_from_labels() -> None:
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(5000, 3, generator=rng) * 2
    scores = points @ torch.randn(3, 5, generator=rng) + torch.randn(5, generator=rng)
    own = scores.argmax(1)
    right = torch.rand(len(points), generator=rng) < confidence(scores, 3.0)
    labels = torch.where(right, own, (own + 1) % 5).numpy()
    for start in (0.1, 50):
        scale = fit_scale(scores, np.arange(5), labels, start)
        assert scale == pytest.approx(3.0, rel=0.15)


def test_confidence_scale_without_labels_is_the_posterior_of_two_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    centroids = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    spread = torch.tensor([1.5, 7.0, 0.1])  # only the spread between the two decides
    points = centroids.repeat(5000, 1) + torch.randn(10000, 3, generator=rng) * spread
    scale = gaussian_scale(points.numpy(), centroids.numpy())
    assert scale == pytest.approx(2 * 1.5**2, rel=0.05)


# --- odd and broken pictures ------------------------------------------------------------------


def test_every_file_is_predicted_or_named_with_its_reason(
    infer: Infer, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = digits()[3]
    same = {"UPPER.PNG": "PNG", "plain.bmp": "BMP", "png_named.jpg": "PNG", "ünïcode 画.png": "PNG"}
    for name, encoding in same.items():
        save_picture(image, tmp_path / name, format=encoding)
    (tmp_path / "cut.png").write_bytes((tmp_path / "UPPER.PNG").read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "pickle.png").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {
        "cut.png": "damaged", "empty.png": "empty file", "phone.heic": "not a picture",
        "pickle.png": "not a picture", "nowhere.png": "no such file",
        "pipe.png": "neither a file nor a folder", "gone.png": "no such file",
    }  # fmt: skip
    assert infer(tmp_path, tmp_path / "gone.png", json=True) == 3
    printed = capsys.readouterr()
    rows = {Path(row["path"]).name: row for row in map(json.loads, printed.out.splitlines())}
    assert list(rows) == [*sorted([*same, *reasons.keys() - {"gone.png"}]), "gone.png"]
    for name, reason in reasons.items():
        assert reason in rows[name]["error"]
        assert f"{name}: {rows[name]['error']}" in printed.err
    expected = predictor.predict(image[None])
    (own,), (distances,), (certainty,) = expected.clusters, expected.distances, expected.certainty
    for name in same:
        assert rows[name]["cluster"] == own
        assert len(rows[name]["clusters"]) == 3
        assert rows[name]["confidence"] == pytest.approx(certainty, abs=1e-6)
        assert rows[name]["distance"] == pytest.approx(distances[own], rel=1e-3)
    assert "predicted 4 of 11 pictures" in printed.err
    assert not Path("pwned").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0)
    (tmp_path / "file.png").touch(mode=0)
    reasons = [(p.name, str(e)) for p, e in decode(find([str(tmp_path)]), 8, ahead=2)]
    assert reasons == [("file.png", "permission denied"), ("folder", "permission denied")]


# --- finding them -----------------------------------------------------------------------------


def test_folders_and_missing_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.PNG", "b/deep/3.jpg", "a[1].png", ".hidden.png", "b/.git/x.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("b/notes.txt").touch()
    Path("b/again").symlink_to(".")  # is not followed
    Path("bare").mkdir()

    def names(*given: str) -> list[str]:
        return [str(path) for path in find(given)]

    assert names("b") == ["b/1.PNG", "b/2.png", "b/deep/3.jpg"]
    assert names(".") == ["a[1].png", *names("b")]
    assert names("b/2.png") == ["b/2.png"]
    expected = {
        "*.gif": "no such file or directory", "bare": "no pictures in this folder",
        "a" * 300: "file name too long", "two\0names": "embedded null byte",
    }  # fmt: skip
    reasons = {str(path): str(reason) for path, reason in decode(find(expected), 8, ahead=1)}
    assert reasons == expected


def test_paths_on_standard_input_and_csv(
    infer: Infer, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    odd = save_picture(digits()[3], tmp_path / 'with "quotes", and\tmore.png')
    paths = [str(file) for file in (*write_digits(tmp_path, 3), odd, tmp_path / "gone.png")]
    lines = "\r\n".join([*paths[:3], "", *paths[3:]])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert infer("-", csv=True) == 3
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == paths
    assert rows[4]["error"] == "no such file or directory"
    assert rows[4]["cluster"] == ""
    expected = predictor.predict(digits()[:4])
    for row, own, p in zip(rows, expected.clusters, expected.probabilities, strict=False):
        assert (p.argmax(), p.sum()) == (own, pytest.approx(1))
        others = np.argsort(-p)[1:].tolist()
        assert int(row["cluster"]) == own
        assert row["name"] == predictor.class_of(own)
        assert [int(row["second_cluster"]), int(row["third_cluster"])] == others[:2]
        assert float(row["third_probability"]) == pytest.approx(p[others[1]], abs=1e-4)


def test_no_more_than_a_window_is_decoded_ahead(tmp_path: Path) -> None:
    asked: list[int] = []
    given = (asked.append(i) or tmp_path / str(i) for i in range(1000))
    stream = decode(given, 8, ahead=5)
    for consumed in range(1, 101):
        assert next(stream)[0].name == str(consumed - 1)
        assert len(asked) <= consumed + 5
    stream.close()
    assert len(asked) <= 105


# --- what it writes ---------------------------------------------------------------------------


def test_demonstration_without_pictures(
    infer: Infer, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    dataset = load_dataset("digits", Path())
    test = dataset.splits["test"]
    montage = tmp_path / "montage.png"
    flags = {"sample": 25, "montage": montage, "montage_size": 12, "wandb": "disabled"}
    assert infer(**flags) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()[1:]
    rows = np.linspace(0, 358, 25).astype(int)
    assert [line.split()[0] for line in lines] == [f"test[{row}]" for row in rows]
    clusters = predictor.predict(test.images[rows]).clusters
    assert [int(line.split()[2]) for line in lines] == clusters.tolist()
    classes = [predictor.class_of(cluster) for cluster in clusters]
    right = np.sum(np.array(classes) == test.labels[rows].astype(str))
    assert f"{right} of 25 are in" in printed.err
    assert 0 < right < 25
    with Image.open(montage) as grid:
        assert grid.size == (10 * 104 + 8, 2 * 120 + 32)
        assert np.asarray(grid).std() > 30

    unlabeled = replace(dataset, splits={"unlabeled": replace(test, labels=None)})
    monkeypatch.setattr(stage, "reload_dataset", lambda *_: unlabeled)
    assert infer(**flags) == 0
    assert "own class" not in capsys.readouterr().err


def test_a_montage_that_cannot_be_written_costs_no_prediction(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Path.touch

    def deny(file: Path, **more: bool) -> None:
        if file.parent.name == "read-only":
            raise PermissionError(13, "Permission denied", str(file))
        touch(file, **more)

    monkeypatch.setattr(Path, "touch", deny)
    with pytest.raises(PermissionError, match=r"m\.png"):
        infer(montage=tmp_path / "read-only" / "m.png", output=tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_odd_names_in_table_and_montage(tmp_path: Path) -> None:
    row = Row(
        "folder/\x1b[2Jred\n.png",
        None,
        "c\nat\udce9",
        0.5,
        (LikelyCluster(3, "c\nat\udce9", 0.625, 1.25),),
    )
    cells = ["…Jred?.png", "3", "c?at?", "0.500", "1.250", "3", "(0.625)"]
    assert line(row, "table", "confidence", 10).split() == cells
    montage = Montage(limit=1)
    montage.add(row, np.zeros((3, 8, 8), np.uint8))
    montage.save(tmp_path / "montage.png", "confidence")
    with Image.open(tmp_path / "montage.png") as grid:
        assert grid.size == (130, 152)


def test_an_unusual_picture_is_marked_in_every_output(
    infer: Infer, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    marked = Manifest(features).load(artifacts.UNUSUAL, "train")
    files = [
        save_picture(digits("train")[marked == is_far][0], tmp_path / f"{is_far}.png")
        for is_far in (False, True)
    ]
    output, montage = tmp_path / "p.csv", tmp_path / "m.png"
    assert infer(*files, output=output, montage=montage) == 0
    assert "outliers: 1" in capsys.readouterr().err
    assert [row["unusual"] for row in rows_of(output)] == ["0", "1"]
    assert infer(*files) == 0
    _, usual, unusual = capsys.readouterr().out.splitlines()
    assert unusual.endswith("  unusual")
    assert not usual.endswith("  unusual")
    with Image.open(montage) as grid:
        red = (np.asarray(grid) == (255, 0, 0)).all(axis=2)
    assert red[:120, :108].any() != red[:120, 108:].any()  # one of the two has a frame


def test_montage_is_a_uniform_sample_in_the_order_of_the_clusters() -> None:
    montage = Montage(limit=100)
    for i in range(1000):
        likely = (LikelyCluster(i % 3, "a", 1.0, 0.0),)
        montage.add(Row(str(i), None, "a", i / 1000, likely), np.zeros((3, 8, 8), np.uint8))
    rows = [row for row, _ in montage.tiles]
    assert len({row.path for row in rows}) == 100
    assert 400 < np.mean([int(row.path) for row in rows]) < 600
    keys = [(row.likely[0].cluster, -row.certainty) for row in rows]
    assert keys == sorted(keys)


def test_sorted_pictures_are_read_back_with_their_clusters_as_classes(
    infer: Infer, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for i, image in enumerate(digits()[:20]):
        save_picture(image, tmp_path / "in" / "ab"[i % 2] / f"{i // 2}.png")  # each name twice
    clusters = predictor.predict(digits()[:20]).clusters
    for copy in (False, True):
        place = tmp_path / f"sorted {copy}"
        assert infer(tmp_path / "in", sort_into=place / "train", copy=copy) == 0
        printed = capsys.readouterr()
        assert "sorted 20 pictures" in printed.err
        assert printed.out == ""  # no row for each
        train = load_dataset("folder", place, 20).splits["train"]
        names = [name.split("/")[1] for name in train.names or ()]
        expected = [predictor.cluster_names[k] for k in clusters]
        assert sorted(names) == sorted(expected)
        assert len({file.resolve() for file in place.rglob("*.png")}) == 20
    assert infer(tmp_path / "in", sort_into=tmp_path / "new", csv=True) == 0
    assert len(capsys.readouterr().out.splitlines()) == 21


def test_the_data_set_itself_is_sorted_as_it_was_clustered(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without the network: these features are imported."""
    files = write_digits(tmp_path / "in", 60)
    directory = tmp_path / "features"
    pixel_run(directory, "folder", tmp_path / "in", clusters="4")
    place = tmp_path / "sorted"
    assert main(InferenceConfig(feature_dir=directory, sort_into=place)) == 0
    assert "sorted 60 pictures" in capsys.readouterr().out
    clusters = Manifest(directory).load(artifacts.ASSIGNMENTS, "unlabeled")
    for k, file in zip(clusters, files, strict=True):
        assert (place / f"cluster {k}" / file.name).resolve() == file
    with pytest.raises(UserError, match="without pictures"):
        main(InferenceConfig(feature_dir=directory, sort_into=tmp_path / "b", csv=True))


def test_no_file_is_written_among_the_pictures(infer: Infer, copied: Path, tmp_path: Path) -> None:
    (file,) = write_digits(tmp_path / "in", 1)
    content = file.read_bytes()
    montage, link = tmp_path / "m.png", tmp_path / "link.png"
    link.symlink_to(montage)
    assert infer(file, montage=montage) == 0
    with pytest.raises(UserError, match=r"--montage .*link\.png is one of the pictures"):
        infer(montage, montage=link)
    part = dict(Manifest(copied).extraction)
    part["dataset"] |= {"name": "folder", "data_dir": str(file.parent)}
    artifacts.record(copied, artifacts.EXTRACTION, part)
    for flag, name in (("montage", "m.png"), ("output", "deep/table.JPG"), ("sort_into", "sorted")):
        place = {flag: file.parent / name}
        for pictures, more in ((file.parent, {}), (file, {"feature_dir": copied})):
            with pytest.raises(UserError, match=r"is among the pictures in .*in: choose"):
                infer(pictures, **place, **more)
    assert file.read_bytes() == content
    assert infer(file, montage=montage, output=file.parent / "table.csv") == 0
    load_picture(montage, 8)  # moved among pictures by hand, it is one


def test_only_earlier_output_is_replaced(infer: Infer, copied: Path, tmp_path: Path) -> None:
    """Not what a stage needs, nor a file of the user, also through a link."""
    (photo,) = write_digits(tmp_path / "in", 1)
    own = {"p.csv": "output", "p.json": "output", "p.txt": "output", "m.png": "montage"}
    for name, flag in own.items():
        (tmp_path / name).touch()
        for _ in range(2):
            assert infer(photo, **{flag: tmp_path / name}) == 0
            assert (tmp_path / name).stat().st_size > 40
    (tmp_path / "link.csv").symlink_to(copied / artifacts.METRICS)
    (tmp_path / "notes.txt").write_text("my notes\n")
    (tmp_path / "list.json").write_text('[{"path": 1}]\n')
    (tmp_path / "link.png").symlink_to(photo)
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    others = {
        "output": ["link.csv", "notes.txt", "list.json", "loop.csv", copied / artifacts.MANIFEST],
        "montage": ["link.png", save_picture(digits()[1], tmp_path / "other.png")],
    }
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for flag, files in others.items():
        for file in files:
            with pytest.raises(UserError, match=rf"--{flag} .* exists and is not "):
                infer(photo, **{flag: tmp_path / file})
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("copy", [False, True])
def test_only_pictures_of_a_list_of_names_are_sorted(
    infer: Infer, features: Path, tmp_path: Path, copy: bool, capsys: pytest.CaptureFixture
) -> None:
    (photo,) = write_digits(tmp_path / "in", 1)
    (tmp_path / "secret.png").write_text("a key")
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        "secret.png": "not a picture", "link.png": "not a picture", "pipe": "not a regular file",
        "gone.png": "no such file or directory",
    }  # fmt: skip
    names = [str(photo), *(str(tmp_path / name) for name in reasons)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    np.save(tmp_path / "x.npy", Manifest(features).load(artifacts.FEATURES, "test")[:5])
    flags = {"features": tmp_path / "x.npy", "names": tmp_path / "names.txt", "copy": copy}
    assert infer(sort_into=tmp_path / "out", **flags) == 3
    printed = capsys.readouterr().err
    for name, reason in reasons.items():
        assert f"not sorted: {tmp_path / name}: {reason}" in printed
    assert [file.name for file in (tmp_path / "out").glob("*/*")] == ["00.png"]
    (tmp_path / "names.txt").write_text("\n".join([*names[:4], names[0]]))
    with pytest.raises(UserError, match="has a picture twice"):
        infer(sort_into=tmp_path / "twice", **flags)


def test_links_that_lead_nowhere_as_folders_of_sorted_pictures(
    script: Script, features: Path, tmp_path: Path
) -> None:
    (photo,) = write_digits(tmp_path / "in", 1)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for place in ("loop", "dangling", "loop/in", "dangling/in", "file/in", "/dev/null"):
        flags = ("--feature-dir", features, "--sort-into", place)
        assert_refused(script("src/inference.py", photo, *flags), 2, f"--sort-into {place}: ")


def test_names_as_long_as_names_can_be(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ä" * 125 + "x.png"
    assert len(name.encode()) == 255
    for folder in "abc":
        save_picture(digits()[0], tmp_path / "in" / folder / name)
    assert infer(tmp_path / "in", sort_into=tmp_path / "out") == 0
    names = sorted(file.name for file in tmp_path.glob("out/*/*.png"))
    assert names == [f"{'ä' * 124}_2.png", f"{'ä' * 124}_3.png", name]
    for class_name in ("ä" * 127, "\udce4" * 255):
        (folder,) = folder_names([class_name])
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)  # from here the path is short enough
    deep = save_picture(digits()[0], Path(*["d" * 250] * 16, f"{'x' * 60}.png"))
    assert infer(deep, sort_into=Path("deep")) == 3
    with pytest.raises(OSError, match="too long"):  # which ends a script with one line
        infer(tmp_path / "in", output=tmp_path / f"{'x' * 251}.csv")


@pytest.mark.parametrize("copy", [False, True])
def test_a_picture_that_is_gone_before_it_is_sorted_is_named(
    infer: Infer, tmp_path: Path, copy: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    _, lost, _ = write_digits(tmp_path / "in", 3)
    real = Predictor.features

    def then_lose_one(self: Predictor, images: np.ndarray) -> np.ndarray:
        lost.unlink()
        return real(self, images)

    monkeypatch.setattr(Predictor, "features", then_lose_one)
    assert infer(tmp_path / "in", sort_into=tmp_path / "out", copy=copy) == 3
    printed = capsys.readouterr()
    assert "in/01.png: no such file or directory" in printed.err
    assert "predicted 3 of 3" in printed.err
    assert sorted(file.name for file in (tmp_path / "out").glob("*/*.png")) == ["00.png", "02.png"]


def test_output_leaves_links_and_pipes_what_they_are(infer: Infer, tmp_path: Path) -> None:
    picture = save_picture(digits()[0], tmp_path / "new\nline\r.png")
    target, link, pipe = (tmp_path / name for name in ("target.csv", "link.csv", "pipe.csv"))
    link.symlink_to(target)
    assert infer(picture, output=link) == 0
    assert link.is_symlink()
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    assert infer(picture, output=pipe) == 0
    assert pipe.is_fifo()
    assert codecs.BOM_UTF8 + reader.communicate(timeout=60)[0] == target.read_bytes()
    (row,) = rows_of(target)
    assert row["path"] == str(picture)  # with its line breaks
    assert 0 < float(row["confidence"]) <= 1


def test_an_interrupted_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(reader: io.BufferedReader, writer: io.BufferedWriter) -> None:
        writer.write(reader.read(3))
        raise KeyboardInterrupt

    (tmp_path / "a.png").write_bytes(b"content")
    monkeypatch.setattr("shutil.copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SortedPictures(tmp_path / "sorted", ["0"], True, None).add(tmp_path / "a.png", 0)
    assert not list((tmp_path / "sorted/0").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"json": True, "csv": True}, "--json and --csv"),
        ({"montage": Path("m.jpg")}, "--montage m.jpg"),
        ({"sort_into": Path(), "features": Path("f.npy")}, "--names"),
        ({"output": Path()}, "is a folder"),
        ({"paths": ("a.png", "")}, "empty path"),
        ({"batch_size": 0}, "above 0"),
    ],
)
def test_bad_flags(infer: Infer, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        infer(**flags)


# --- from Python ------------------------------------------------------------------------------


def test_arrays_and_paths_give_the_same(predictor: Predictor, tmp_path: Path) -> None:
    images, files = digits()[:65], write_digits(tmp_path, 65)
    from_files, from_arrays = predictor.predict(files, batch_size=2), predictor.predict(images)
    np.testing.assert_array_equal(from_files.clusters, from_arrays.clusters)
    np.testing.assert_allclose(from_files.distances, from_arrays.distances, rtol=1e-4)
    nothing = predictor.predict([])
    assert (nothing.clusters.shape, nothing.distances.shape) == ((0,), (0, 10))
    with pytest.raises(ValueError, match="expected uint8"):
        predictor.predict(images.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(N, 3, 20, 20\)"):
        predictor.predict(images[:, :, :16])
    with pytest.raises(BadPicture, match=r"gone\.png: no such file"):
        predictor.predict([*files, tmp_path / "gone.png"])


# --- what does not belong together ------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, features: Path) -> Path:
    """The features, to be damaged."""
    model = shutil.ignore_patterns(artifacts.MODEL)
    return shutil.copytree(features, tmp_path / "features", ignore=model)


def test_confidence_scale_is_fitted_to_the_labels_and_stored(copied: Path) -> None:
    manifest = Manifest(copied)
    x, labels = (manifest.load(a, "train") for a in (artifacts.REDUCED, artifacts.LABELS))
    scores = ClusterHead.load(manifest).linear(torch.tensor(x))
    names, part = manifest.load(artifacts.CLUSTER_TO_CLASS), dict(manifest.clustering)
    assert part["confidence_scale"] == fit_scale(scores, names, labels, start=1.0)
    artifacts.record(copied, artifacts.CLUSTERING, part | {"confidence_scale": 0.25})
    assert Predictor.load(copied, device="cpu").head.confidence_scale == 0.25


def test_without_labels_every_output_says_margin(
    copied: Path, infer: Infer, tmp_path: Path
) -> None:
    part = dict(Manifest(copied).clustering) | {"certainty": "margin", "confidence_scale": 4.0}
    artifacts.record(copied, artifacts.CLUSTERING, part)
    manifest = Manifest(copied)
    weights, bias = map(manifest.load, (artifacts.HEAD_WEIGHTS, artifacts.HEAD_BIAS))
    scores = (weights @ manifest.load(artifacts.REDUCED, "test")[3] + bias) / 4.0
    *_, second, first = np.sort(scores)
    margin = pytest.approx(1 - np.exp(second - first), abs=1e-4)
    picture = save_picture(digits()[3], tmp_path / "3.png")
    files = {ending: tmp_path / f"predictions.{ending}" for ending in ("csv", "json", "txt")}
    for file in files.values():
        assert infer(picture, feature_dir=copied, output=file) == 0
        assert "confidence" not in file.read_text()
    assert float(rows_of(files["csv"])[0]["margin"]) == margin
    assert rows_of(files["json"])[0]["margin"] == margin
    head, row = (line.split() for line in files["txt"].read_text().splitlines())
    assert float(row[head.index("margin")]) == pytest.approx(margin.expected, abs=6e-4)
    assert Predictor.load(copied, device="cpu").certainty_name == "margin"


def test_another_checkpoint_is_refused(copied: Path, tmp_path: Path) -> None:
    recorded = Path(Manifest(copied).extraction["checkpoint"]["file"])
    moved = tmp_path / "moved.pt"
    moved.symlink_to(recorded)
    Predictor.load(copied, moved, "cpu")
    other = tmp_path / "other.pt"
    other.write_bytes(recorded.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"is not the checkpoint.*feature_extraction\.py"):
        Predictor.load(copied, other, "cpu")
    with pytest.raises(UserError, match=r"is missing.*--checkpoint"):
        Predictor.load(copied, tmp_path / "gone.pt", "cpu")


def test_the_checkpoint_is_read_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count_reads(monkeypatch)
    Predictor.load(copied, device="cpu").predict(digits()[:2])
    file = Path(Manifest(copied).extraction["checkpoint"]["file"])
    assert counts == {file.name: file.stat().st_size}


def test_clusters_of_other_features_or_another_pca_are_refused(copied: Path) -> None:
    part = dict(Manifest(copied).clustering)
    with artifacts.writing(copied, CLUSTERING) as stage:
        stage.save(artifacts.CENTROIDS, np.zeros((10, 20)))
    with pytest.raises(UserError, match=r"no finished results of src/clustering\.py"):
        Predictor.load(copied, device="cpu")
    artifacts.record(copied, CLUSTERING, part)
    with pytest.raises(UserError, match=r"centroids\.npy does not match"):
        Predictor.load(copied, device="cpu")
    artifacts.record(copied, CLUSTERING, part | {"features": "others"})
    with pytest.raises(UserError, match=r"belong to other features.*clustering\.py"):
        Predictor.load(copied, device="cpu")
