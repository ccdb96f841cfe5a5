"""Names that people give to clusters, and the most similar pictures of the data set."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from src import inference
from src.clusters.groups import cluster_names, load_names
from src.clusters.naming import name_again
from src.inference import InferenceConfig
from src.prediction.onnx_export import to_onnx
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import Manifest
from src.visualization.results import load_results
from tests.helpers.digits import write_digits
from tests.helpers.finished_run import FinishedRun, cluster, rows_of


@pytest.fixture
def features(tmp_path: Path, digits_run: FinishedRun) -> Path:
    return shutil.copytree(digits_run.features, tmp_path / "features")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_digits(tmp_path / "in", 40)
    return tmp_path / "in"


def give(features: Path, **content: object) -> None:
    content = {"clusters": Manifest(features).clusters_id, "names": {}} | content
    (features / "names.json").write_text(json.dumps(content))


def names_of(features: Path) -> list[str]:
    manifest = Manifest(features)
    return cluster_names(manifest, load_names(manifest, []))


def infer(features: Path, *paths: Path, **flags: object) -> int:
    config = {"feature_dir": features, "device": "cpu", "wandb": "disabled"} | flags
    return inference.main(InferenceConfig(tuple(map(str, paths)), **config))  # type: ignore[arg-type]


def test_given_names_in_every_output(features: Path, pictures: Path, tmp_path: Path) -> None:
    cluster(features, clusters="12")  # so that two have no class
    manifest = Manifest(features)
    class_K = manifest.load(artifacts.CLUSTER_TO_CLASS)
    unmatched = np.flatnonzero(class_K < 0).tolist()
    first, second = np.flatnonzero(class_K >= 0)[:2].tolist()
    expected = [str(c) if c >= 0 else f"cluster {k}" for k, c in enumerate(class_K)]
    assert names_of(features) == expected
    assert infer(features, pictures, output=tmp_path / "before.json") == 0
    given = {str(first): " loop ", str(second): "loop", str(unmatched[0]): "Ähre"}
    give(features, names=given)
    for key, name in given.items():
        expected[int(key)] = name.strip()
    assert names_of(features) == expected
    assert infer(features, pictures, output=tmp_path / "after.json") == 0
    assert infer(features, pictures, output=tmp_path / "after.csv") == 0
    outputs = ("before.json", "after.json", "after.csv")
    before, after, table = (rows_of(tmp_path / name) for name in outputs)
    for old, new, row in zip(before, after, table, strict=True):
        assert new["name"] == row["name"] == expected[new["cluster"]]
        for one in new["clusters"]:
            assert one["name"] == expected[one["cluster"]]
        rest = ("path", "cluster", "confidence", "distance")
        assert [old[key] for key in rest] == [new[key] for key in rest]

    predictor = Predictor.load(features, device="cpu", precision="fp32")
    metadata = {entry.key: entry.value for entry in to_onnx(predictor).metadata_props}
    assert json.loads(metadata["cluster_names"]) == expected
    assert json.loads(metadata["group_names"]) == [*dict.fromkeys(expected)]
    results = load_results(features)
    names = [results.grouping.names[g] for g in results.groups]
    assert names == [expected[k] for k in results.clusters]
    assert f"{first} → loop" in results.grouping.labels
    assert str(unmatched[1]) in results.grouping.labels


def test_pictures_are_sorted_by_name(features: Path, pictures: Path, tmp_path: Path) -> None:
    def sorted_into(place: Path) -> dict[str, int]:
        assert infer(features, pictures, sort_into=place) == 0
        return {folder.name: len(list(folder.glob("*.png"))) for folder in place.iterdir()}

    before, plain = names_of(features), sorted_into(tmp_path / "plain")
    give(features, names={"1": "a/b", "4": "a/b", "2": "..figures"})
    to = {before[1]: "a_b", before[4]: "a_b", before[2]: "_..figures"}
    expected = Counter()
    for name, count in plain.items():
        expected[to.get(name, name)] += count
    assert "a_b" in expected
    assert sorted_into(tmp_path / "named") == dict(expected)
    for taken in (tmp_path / "named", pictures):
        with pytest.raises(UserError, match=f"--sort-into {taken}"):
            infer(features, pictures, sort_into=taken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 2}, "is of a later version of this program: update"),
        ({"names": {"3": " "}}, "cluster 3 is empty"),
        ({"fine": {"3": " "}}, "fine cluster 3 is empty"),
        ({"moved": {"a.jpg": "a\nb"}}, r"picture a\.jpg has a line break or another control"),
        ({"ignored": "a.jpg"}, "ignored: input should be a valid list"),
        ({"names": {"3": "a\nb"}}, "another control character"),
        ({"names": {"3": "\ud800"}}, "another control character"),
        ({"names": {"3": 4}}, r"names\.3: input should be a valid string.*: correct it"),
        ({"names": None}, "names: input should be a valid dictionary"),
    ],
)
def test_wrong_names_are_refused_in_one_line(
    features: Path, content: dict[str, object], message: str
) -> None:
    give(features, **content)
    for load in (Predictor.load, load_results):
        with pytest.raises(UserError, match=rf"names\.json.*{message}") as caught:
            load(features)
        assert "\n" not in str(caught.value)


def test_a_link_to_nothing_is_not_taken_for_no_names(features: Path) -> None:
    (features / "names.json").symlink_to("gone.json")
    with pytest.raises(UserError, match=r"names\.json is missing: correct it, or remove it"):
        load_results(features)
    with pytest.raises(UserError, match=r"names\.json is missing: correct it, or remove it"):
        name_again(features)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"clusters": "0" * 16}, "names clusters that are not known any more, so only pictures"),
        ({"clusters": "../../x"}, "names clusters that are not known any more, so only pictures"),
        ({"names": {"10": "x", "03": "y"}}, "names no cluster (0 to 9): 10, 03"),
        ({"fine": {"50": "x"}}, "names no fine cluster (0 to 49): 50"),
        (
            {"moved": {"a": "x"}, "ignored": ["train[1438]"]},
            "2 pictures that were moved or ignored",
        ),
    ],
)
def test_what_no_longer_fits_is_said_in_one_line(
    features: Path, content: dict[str, object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = names_of(features)
    give(features, **content)
    assert load_results(features).grouping.names == [*dict.fromkeys(plain)]
    assert sum(line in note for note in capsys.readouterr().out.splitlines()) == 1
    assert Predictor.load(features, device="cpu").cluster_names == plain
    cluster(features)
    assert line in capsys.readouterr().out
    assert names_of(features) == plain


def test_names_that_are_damaged_do_not_stop_a_clustering(
    features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (features / "names.json").write_text("{")
    cluster(features, clusters="9")
    assert "note: no names: " in capsys.readouterr().out
    assert (features / "names.json").read_text() == "{"
    assert Manifest(features).clustering["clusters"] == 9


def test_names_outlive_the_same_clustering(features: Path) -> None:
    give(features, names={"3": "loop"})
    before = (features / "names.json").read_bytes()
    cluster(features)
    assert names_of(features)[3] == "loop"
    assert not [*features.glob("names_*.json")]
    assert json.loads(before)["names"] == json.loads((features / "names.json").read_text())["names"]


def test_the_most_similar_pictures_of_all_splits(
    features: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    manifest = Manifest(features)
    bank = np.concatenate([manifest.load(artifacts.FEATURES, s) for s in ("train", "test")])
    unit = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    names = [f"{s}[{i}]" for s, n in (("train", 1438), ("test", 359)) for i in range(n)]
    similarity = unit[1438:1478] @ unit.T
    flags = {"neighbors": 3, "batch_size": 16}
    assert infer(features, pictures, output=tmp_path / "p.json", **flags) == 0
    assert infer(features, pictures, output=tmp_path / "p.csv", **flags) == 0
    rows = [row["neighbors"] for row in rows_of(tmp_path / "p.json")]
    table = rows_of(tmp_path / "p.csv")
    assert len(rows) == len(table) == 40
    for near, row, expected in zip(rows, table, similarity, strict=True):
        best = np.argsort(-expected)[:3]
        assert [n["path"] for n in near] == [names[i] for i in best]
        np.testing.assert_allclose([n["similarity"] for n in near], expected[best], atol=1e-5)
        assert [row[f"neighbor_{i}"] for i in (1, 2, 3)] == [names[i] for i in best]
        assert float(row["similarity_3"]) == near[2]["similarity"]

    assert infer(features, neighbors=2, sample=3) == 0  # the demonstration leaves out each itself
    lines = capsys.readouterr().out.splitlines()[-6:]
    best = np.argsort(-(unit[1438] @ unit.T))[1:3]
    assert lines[0].startswith("test[0]")
    assert lines[1].split()[1::2] == [names[i] for i in best]
    with pytest.raises(UserError, match="--neighbors"):
        infer(features, neighbors=-1)
