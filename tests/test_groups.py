"""What a person said in names.json: the group of every image in every output, for new pictures,
and after clustering again."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset.load_dataset import load_dataset
from src import clustering, inference
from src.clustering import ClusteringConfig
from src.clusters.names import read_names
from src.inference import InferenceConfig
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import Manifest
from src.visualization.duplicates import Copies
from src.visualization.images_table import write_images
from src.visualization.results import load_results
from src.visualization.stage import draw
from tests.helpers.blobs import blobs, write
from tests.helpers.browser import draw_report
from tests.helpers.digits import digits, save_picture, write_digits
from tests.helpers.finished_run import cluster, rows_of
from tests.helpers.pixel_run import pixel_run

COUNT = 160


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 digits as files without classes, in 4 clusters and 20 fine ones."""
    root = tmp_path_factory.mktemp("shaped")
    write_digits(root / "pictures", COUNT, "train")
    pixel_run(root / "features", "folder", root / "pictures", clusters="4")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy, pictures too."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    manifest = json.loads((tmp_path / "features/manifest.json").read_text())
    part = manifest["src/feature_extraction.py"]
    part["dataset"]["data_dir"] = str(tmp_path / "pictures")
    artifacts.record(tmp_path / "features", artifacts.EXTRACTION, part)
    return tmp_path


def say(features: Path, **content: object) -> None:
    content = {"version": 1, "clusters": Manifest(features).clusters_id, "names": {}} | content
    (features / "names.json").write_text(json.dumps(content))


def table(features: Path) -> dict[str, dict[str, str]]:
    """images.csv, by path."""
    results = load_results(features)
    zeros = np.zeros(len(results.clusters))
    copies = Copies(zeros.astype(int), zeros == 0, zeros)
    write_images(features / "images.csv", results, copies, np.zeros((len(zeros), 2)))
    return {row["path"]: row for row in rows_of(features / "images.csv")}


def names_of(features: Path) -> dict[str, str]:
    return {path: row["name"] for path, row in table(features).items()}


def two_fine(features: Path, least: int = 4) -> tuple[list[int], np.ndarray]:
    """Two fine clusters of some images."""
    fine = Manifest(features).load(artifacts.FINE, "unlabeled")
    return [f for f, count in Counter(fine.tolist()).most_common(2) if count >= least], fine


def test_the_most_specific_name_counts_in_every_output(root: Path, tmp_path: Path) -> None:
    features = root / "features"
    plain = table(features)
    (first, second), fine = two_fine(features)
    own = [path for path, f in zip(plain, fine, strict=True) if f == first]
    rest = [path for path, f in zip(plain, fine, strict=True) if f not in (first, second)]
    say(
        features, names={"0": "gull", "1": "gull"}, fine={str(first): "wren", str(second): "gull"},
        moved={own[0]: "owl", rest[0]: "wren", f"unlabeled[{[*plain].index(rest[1])}]": "gull"},
        ignored=[own[1], rest[2]],
    )  # fmt: skip
    named = table(features)
    for row, (path, before) in enumerate(plain.items()):
        expected = "gull" if before["cluster"] in "01" else before["name"]
        expected = {first: "wren", second: "gull"}.get(int(fine[row]), expected)
        expected = {own[0]: "owl", rest[0]: "wren", rest[1]: "gull"}.get(path, expected)
        is_ignored = path in (own[1], rest[2])
        assert named[path]["name"] == ("" if is_ignored else expected), path
        assert named[path]["ignored"] == str(int(is_ignored))
        assert named[path]["fine"] == str(fine[row])
        for key in ("cluster", "margin", "distance"):
            assert named[path][key] == before[key]

    place = tmp_path / "sorted"
    inference.main(InferenceConfig(feature_dir=features, sort_into=place))
    folders = {file.name: file.parent.name for file in place.glob("*/*.png")}
    assert all(folders.get(path, "") == row["name"] for path, row in named.items())
    figures = dict(draw(load_results(features), [], np.zeros((COUNT, 2)), "PCA"))
    shown = [tick.get_text() for tick in figures["cluster_sizes"].axes[0].get_yticklabels()]
    counts = Counter(row["name"] for row in named.values())
    assert shown[0] == "0 → gull"
    assert shown[-2:] == ["owl", "wren"]
    bars = [text.get_text() for text in figures["cluster_sizes"].axes[0].texts]
    assert [bars[0], *bars[-2:]] == [str(counts[name]) for name in ("gull", "owl", "wren")]


def test_a_cluster_without_a_name_joins_none(root: Path, tmp_path: Path) -> None:
    """As the page may name clusters 1 and 2 "cluster 1", a later clustering has another one."""
    features = root / "features"
    plain = names_of(features)
    said = {"names": {"3": "cluster 1"}, "moved": {"03.png": "cluster 2"}}
    say(features, **said, fine={"99": "unnamed cluster 2"})
    called = {"cluster 1": "unnamed cluster 1", "cluster 3": "cluster 1"}
    called["cluster 2"] = "unnamed unnamed cluster 2"
    expected = {path: called.get(name, name) for path, name in plain.items()}
    assert names_of(features) == expected | {"03.png": "cluster 2"}
    np.save(tmp_path / "new.npy", Manifest(features).load(artifacts.FEATURES, "unlabeled"))
    output = tmp_path / "new.csv"
    config = InferenceConfig(feature_dir=features, features=tmp_path / "new.npy", output=output)
    inference.main(config)
    assert {row["name"] for row in rows_of(output)} == {*expected.values()}


def test_new_pictures_follow_after_the_head_was_fitted_again(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = root / "features"
    (first, second), fine = two_fine(features)
    x, paths = (
        np.array(Manifest(features).load(artifacts.FEATURES, "unlabeled")),
        [*table(features)],
    )
    moved = np.flatnonzero(fine == second).tolist()
    say(features, fine={str(first): "wren"}, moved={paths[i]: "owl" for i in moved})

    def predicted() -> list[str]:
        predictor = Predictor.load(features, features_only=True)
        return [predictor.group_names[g] for g in predictor.predict_features(x).groups]

    assert "owl" not in predicted()
    assert "clustering.py --names" in capsys.readouterr().err
    assert not {row["margin"] for row in table(features).values()} & {"0", "1"}
    files = {file: file.stat().st_mtime_ns for file in features.glob("*.npy")}
    clustering.main(ClusteringConfig(feature_dir=features, names=True))
    out = capsys.readouterr().out
    assert f"; {len(moved)} pictures moved, 0 ignored" in out
    assert "note: to bring images.csv up to date, run python visualize_features.py" in out
    assert {file: file.stat().st_mtime_ns for file in files} == files  # the clusters are kept
    names = predicted()
    assert capsys.readouterr().err == ""
    predictions = Predictor.load(features, features_only=True).predict_features(x)
    for i, row in enumerate(table(features).values()):
        sure = 1 if row["name"] == "owl" else 0 if row["name"] != names[i] else None
        assert float(row["margin"]) == pytest.approx(
            predictions.certainty[i] if sure is None else sure, abs=1e-5
        )
    assert {names[i] for i in moved} == {"owl"}
    expected = [*names_of(features).values()]
    assert np.mean([a == b for a, b in zip(names, expected, strict=True)]) > 0.9
    np.save(root / "new.npy", x)
    config = InferenceConfig(
        feature_dir=features, features=root / "new.npy", output=root / "new.csv"
    )
    inference.main(config)
    assert [row["name"] for row in rows_of(root / "new.csv")] == names

    said = json.loads((features / "names.json").read_text())
    assert {*said["digests"]} == {paths[i] for i in moved}
    (features / "names.json").write_text(json.dumps({**said, "moved": {}}))
    assert "owl" not in predicted()
    assert "clustering.py --names" in capsys.readouterr().err


def test_names_that_ignore_every_picture_are_refused_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = root / "features"
    say(features, ignored=[*table(features)])
    refused = pytest.raises(UserError, match=r"names\.json ignores every picture of unlabeled")
    with refused:
        clustering.main(ClusteringConfig(feature_dir=features, names=True))
    with refused:
        draw_report(features)
    cluster(features, clusters="5")
    assert "note: no names: " in capsys.readouterr().out
    assert Manifest(features).clustering["clusters"] == 5


def test_without_names_there_is_nothing_to_follow(root: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*names\.json: name clusters on the page"):
        clustering.main(ClusteringConfig(feature_dir=root / "features", names=True))


@pytest.mark.parametrize("change", ["number", "seed", "more", "renamed", "other features"])
def test_clustering_again_loses_nothing(
    root: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features, pictures = root / "features", root / "pictures"
    (first, second), _ = two_fine(features)
    moved, ignored = {"03.png": "owl", "05.png": "wren"}, ["07.png"]
    names = {"0": "gull", "1": "finch", "2": "rook"}
    say(
        features, names=names, fine={str(first): "wren", str(second): "gull"},
        moved=moved, ignored=ignored,
    )  # fmt: skip
    before, old = names_of(features), (features / "names.json").read_bytes()
    old_id = Manifest(features).clusters_id
    flags, calls = {"clusters": "4"}, {path: path for path in before}
    if change == "number":
        flags["clusters"] = "7"
    if change == "more":
        for i in range(30):
            save_picture(digits("test")[i], pictures / f"0{i:02d}.png")  # among the others
    if change == "renamed":
        calls = {path: f"{int(path[:-4]) * 7919 % 1000:03d}x.png" for path in before}
        for path, new in calls.items():
            (pictures / path).rename(pictures / new)
    if change in ("number", "seed"):
        cluster(features, seed=int(change == "seed"), **flags)
    else:
        pixel_run(
            features, "folder", pictures, side=10 if change == "other features" else 8, **flags
        )
    printed = capsys.readouterr().out
    after = names_of(features)
    for path, name in moved.items():
        assert after[calls[path]] == name
    assert after[calls["07.png"]] == ""
    given = {path: name for path, name in before.items() if name in {*names.values(), "wren"}}
    kept = np.mean([after[calls[path]] == name for path, name in given.items()])
    assert kept > 0.8
    assert "pictures that keep a name: gull " in printed
    said = read_names(features)
    assert said
    assert said.clusters == Manifest(features).clusters_id != old_id
    assert said.moved == {calls[path]: name for path, name in moved.items()}
    assert (features / f"names_{old_id}.json").read_bytes() == old
    assert "note" not in "".join(load_notes(features))


def load_notes(features: Path) -> list[str]:
    from src.clusters.groups import load_groups

    load_groups(Manifest(features), notes := [])
    return notes


def test_a_picture_that_comes_back_is_known(root: Path) -> None:
    """In the meantime another one had its name."""
    features, pictures = root / "features", root / "pictures"
    say(features, moved={"03.png": "owl"})
    gone = (pictures / "03.png").rename(root / "gone.png")
    save_picture(digits("test")[0], pictures / "03.png")
    pixel_run(features, "folder", pictures, clusters="4")
    assert "owl" not in names_of(features).values()
    gone.rename(pictures / "200.png")
    pixel_run(features, "folder", pictures, clusters="4")
    assert [path for path, name in names_of(features).items() if name == "owl"] == ["200.png"]


@pytest.mark.parametrize("are_gone", [False, True])
def test_paths_are_kept_where_pictures_have_changed_or_are_gone(root: Path, are_gone: bool) -> None:
    features, pictures = root / "features", root / "pictures"
    say(features, moved={"05.png": "owl", "06.png": "owl"}, ignored=["07.png"])
    before = names_of(features)
    if are_gone:
        pictures.rename(root / "elsewhere")
    else:
        save_picture(digits("test")[0], pictures / "new.png")
    draw_report(features)
    assert {row["path"]: row["name"] for row in rows_of(features / "images.csv")} == before
    page = (features / artifacts.REPORT).read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["names"] == [*before]
    assert data["said"]["moved"] == {"05.png": "owl", "06.png": "owl"}
    assert data["folder"] is None  # no links to other pictures, or to none
    np.save(root / "new.npy", Manifest(features).load(artifacts.FEATURES, "unlabeled")[:3])
    output = root / "new.csv"
    config = InferenceConfig(
        feature_dir=features, features=root / "new.npy", neighbors=1, output=output
    )
    inference.main(config)
    assert [row["neighbor_1"] for row in rows_of(output)] == [*before][:3]


@pytest.mark.parametrize("kept", ["000.png", "copy.png"])
def test_what_was_said_of_a_copy_that_is_deleted_goes_with_it(root: Path, kept: str) -> None:
    features, pictures = root / "features", root / "pictures"
    for name, of in {"000.png": "05.png", "copy.png": "05.png", "other.png": "06.png"}.items():
        shutil.copy(pictures / of, pictures / name)
    pixel_run(features, "folder", pictures, clusters="4")
    said = {"05.png": "owl", "000.png": "wren", "copy.png": "finch"}
    moved = {name: bird for name, bird in said.items() if name != kept}
    say(features, moved=moved, ignored=["other.png"])
    clustering.main(ClusteringConfig(feature_dir=features, names=True))
    for name in (*moved, "other.png"):
        (pictures / name).unlink()
    (pictures / "new.png").write_bytes((pictures / kept).read_bytes())  # one was renamed
    pixel_run(features, "folder", pictures, clusters="4")
    named = names_of(features)
    assert named["new.png"] in said.values()
    assert "" not in named.values()
    assert not {named[kept], named["06.png"]} & {*said.values()}
    said_now = read_names(features)
    assert said_now
    assert [*said_now.moved] == [*said_now.digests] == ["new.png"]
    assert not said_now.ignored


def test_pictures_of_another_size_are_known_by_path(root: Path) -> None:
    features, pictures = root / "features", root / "pictures"
    say(features, names={"0": "gull"}, moved={"03.png": "owl"}, ignored=["07.png"])
    gulls = {path for path, name in names_of(features).items() if name == "gull"}
    pixel_run(features, "folder", pictures, image_size=40, clusters="4")
    named = names_of(features)
    assert np.mean([named[path] == "gull" for path in gulls]) > 0.8
    assert [named["03.png"], named["07.png"]] == ["owl", ""]


@pytest.mark.parametrize("part", ["splits", "paths", "digests", "clusters", "fine"])
def test_a_damaged_memory_of_clusters_is_none(root: Path, part: str) -> None:
    features = root / "features"
    last = f"{COUNT - 1:02d}.png"
    say(features, moved={"unlabeled[0]": "owl", last: "owl"})
    (file,) = features.glob("clusters_*.json")
    memory = json.loads(file.read_text())
    memory[part] = {"unlabeled": COUNT + 1} if part == "splits" else memory[part][:-1]
    file.write_text(json.dumps(memory))
    named = names_of(features)
    assert [named["00.png"], named[last] == "owl"] == ["owl", False]
    cluster(features, clusters="5")
    assert names_of(features)["00.png"] == "owl"


def test_names_of_the_version_before(root: Path) -> None:
    """It knew no fine clusters, and remembered no clustering."""
    features = root / "features"
    for file in (*features.glob("clusters_*.json"), *features.glob("*fine*.npy")):
        file.unlink()
    part = dict(Manifest(features).clustering)
    part["files"] = {name: d for name, d in part["files"].items() if "fine" not in name}
    artifacts.record(features, artifacts.CLUSTERING, part)
    manifest = Manifest(features)
    files = [artifacts.HEAD_WEIGHTS, artifacts.HEAD_BIAS, artifacts.CLUSTER_TO_CLASS]
    legacy = artifacts.json_digest([*(part["files"][file.file] for file in files), []])
    assert manifest.clusters_id == legacy
    content = {"clusters": legacy, "names": {"0": "gull", "2": "rook"}}
    (features / "names.json").write_text(json.dumps(content))
    assert Predictor.load(features, features_only=True).cluster_names[:3:2] == ["gull", "rook"]
    with pytest.raises(
        UserError, match=r"fine_tree\.npy is missing: run python src/clustering\.py"
    ):
        load_results(features)
    cluster(features, clusters="4")
    names, clusters = names_of(features), manifest.load(artifacts.ASSIGNMENTS, "unlabeled")
    for name, k in zip(names.values(), clusters, strict=True):
        assert name == {0: "gull", 2: "rook"}.get(k, f"cluster {k}")


def test_sorted_pictures_are_a_data_set_with_classes(root: Path, tmp_path: Path) -> None:
    features = root / "features"
    say(features, names={"0": ".hidden", "1": "a/b"}, moved={"03.png": "owl"})
    place = tmp_path / "classes"
    inference.main(InferenceConfig(feature_dir=features, sort_into=place, split=0.8))
    dataset = load_dataset("folder", place, 20)
    assert dataset.class_names == ("_.hidden", "a_b", "cluster 2", "cluster 3", "owl")
    names = Counter(names_of(features).values())
    counts = {
        split: Counter(dataset.class_names[c] for c in part.labels.tolist())
        for split, part in dataset.splits.items()
        if part.labels is not None
    }
    for name, label in {".hidden": "_.hidden", "a/b": "a_b", "owl": "owl"}.items():
        assert counts["train"][label] + counts["test"][label] == names[name]
        assert counts["train"][label] == pytest.approx(0.8 * names[name], abs=0.81)
    assert counts["train"]["owl"] == 1
    for split in (0, 1, 1.5):
        with pytest.raises(UserError, match="--split is a share"):
            inference.main(InferenceConfig(feature_dir=features, sort_into=place, split=split))


@pytest.mark.parametrize("split", [None, 0.5])
def test_every_group_has_its_own_folder(root: Path, tmp_path: Path, split: float | None) -> None:
    features, long = root / "features", "x" * 300
    names = ["A/B", "A_B", "a_b", "01", f"{long}y", f"{long}z"]
    said = {f"{i:02d}.png": name for i, name in enumerate(sorted(names * 4))}
    say(features, moved=said)
    place = tmp_path / "sorted"
    inference.main(InferenceConfig(feature_dir=features, sort_into=place, split=split))
    depth = "*/*.png" if split is None else "*/*/*.png"
    held: dict[str, set[str]] = {}
    named = names_of(features)
    for file in place.glob(depth):
        held.setdefault(file.parent.name, set()).add(named[file.name])
    assert [len(own) for own in held.values()] == [1] * 10
    assert {"A_B", "A_B_2", "a_b_3", "01"} <= {*held}
    if split:
        dataset = load_dataset("folder", place, 20)
        assert len(dataset.class_names) == 10
        assert not dataset.notes


def test_words_name_only_clusters_without_a_name_and_with_a_lead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, labels = blobs(60, 1)
    config = write(tmp_path, [], train=(x, None))
    clustering.main(replace(config, clusters="3"))
    clusters = Manifest(tmp_path).load(artifacts.ASSIGNMENTS, "train")
    class_of = [np.bincount(labels[clusters == k]).argmax() for k in range(3)]
    place = np.ones(20)  # words lie elsewhere
    rows = place + np.eye(3, 20)[[0, 1, 1]] + 0.01 * np.eye(3, 20)
    np.save(tmp_path / "words.npy", rows)
    (tmp_path / "words.txt").write_text("ant\nbee\nwasp\n")
    say(tmp_path, names={str(class_of.index(2)): "own"})
    named = replace(config, words=tmp_path / "words.npy", word_list=tmp_path / "words.txt")
    clustering.main(named)
    out = capsys.readouterr().out
    assert "too close to the next" in out  # bee and wasp
    said = read_names(tmp_path)
    assert said
    assert said.names == {str(class_of.index(2)): "own", str(class_of.index(0)): "ant"}

    np.save(tmp_path / "narrow.npy", rows[:, :9])
    np.save(tmp_path / "few.npy", rows[:2])
    for words, word_list, message in (
        ("words.npy", None, "--words and --word-list belong together"),
        ("few.npy", "words.txt", "has 3 lines, .* has 2 rows"),
        ("narrow.npy", "words.txt", "has 9 features a row, the images have 20"),
    ):
        with pytest.raises(UserError, match=message):
            clustering.main(
                replace(
                    config, words=tmp_path / words, word_list=word_list and tmp_path / word_list
                )
            )
