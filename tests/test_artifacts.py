"""One writer at a time in a directory of features, and readers that get one whole state."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from src.runtime.cli import RunError, UserError
from src.storage import artifacts
from src.storage.artifacts import CENTROIDS, CLUSTERING, EXTRACTION, FEATURES, LABELS, Manifest
from src.storage.files import open_regular, replacing, write_json
from tests.helpers import ROOT
from tests.helpers.pixel_run import extraction_part
from tests.helpers.processes import assert_refused, run_python, start_python

HOLD = """
import sys, time
from pathlib import Path
from src.storage import artifacts
with artifacts.only_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def finished(pixel_digits: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pixel_digits, tmp_path, dirs_exist_ok=True)


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(finished: Path) -> None:
    first = start_python("-c", HOLD, finished)
    assert isinstance(first, subprocess.Popen)
    with first:
        assert first.stdout
        assert first.stdout.readline() == "locked\n"
        second = run_python(ROOT / "src/clustering.py", "--feature-dir", finished)
        first.kill()
    assert_refused(second, 2, "another stage is writing in ")
    with artifacts.only_writer(finished):
        assert Manifest(finished).clustering["clusters"] == 10


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for file in (pipe, loop, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"regular file|directory|symbolic links"):
            open_regular(file)


def test_only_regular_files_are_replaced_through_a_link(tmp_path: Path) -> None:
    """As root it would otherwise replace a device of the system."""
    pipe, file, links = tmp_path / "pipe", tmp_path / "file", [tmp_path / x for x in "abcd"]
    os.mkfifo(pipe)
    file.touch()
    for link, target in zip(links, (pipe, file, tmp_path / "new", tmp_path / "d"), strict=True):
        link.symlink_to(target)
        write_json(link, {"a": 1})
        assert json.loads(link.read_text()) == {"a": 1}
    assert pipe.is_fifo()
    assert [link.is_symlink() for link in links] == [False, True, True, False]


def test_two_writers_of_a_file_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    with replacing(file) as first, replacing(file) as second:
        first.write_text("first\n" * 3)
        second.write_text("second")
    assert file.read_text() == "first\n" * 3
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_errors_name_the_file_and_not_a_temporary_one(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    (folder / "inner").mkdir(parents=True)
    link.symlink_to(folder)
    for file in (folder, link):
        with pytest.raises(IsADirectoryError) as error, replacing(file):
            pytest.fail("nothing can be written")
        assert error.value.filename == str(file)
    long = folder / ("x" * 250)
    with pytest.raises(OSError, match="too long") as error, replacing(long):
        pytest.fail("nothing can be written")
    assert error.value.filename == str(long)


def test_half_written_files_of_killed_processes_go_away(finished: Path) -> None:
    (finished / "figures").mkdir()
    names = (artifacts.CENTROIDS.file, artifacts.IMAGES, artifacts.MODEL, "figures/map.png")
    kept = ("names.json", ".predictions.csv.1a2b3c4d.tmp")  # the second may be written just now
    for name in kept:
        (finished / name).touch()
    before = contents(finished)
    killed = [replacing(finished / name) for name in names]
    for writer in killed:
        writer.__enter__()
    assert len(contents(finished)) == len(before) + len(killed)
    with artifacts.only_writer(finished):
        assert contents(finished) == before


@pytest.mark.parametrize("name", ["images.csv", "centroids.npy", "test_labels.npy", "figures"])
def test_a_directory_with_files_of_others_is_refused(name: str, tmp_path: Path) -> None:
    """They would be replaced, by a later stage or as remains of an earlier run."""
    (tmp_path / name).mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{name} is not of this program"):  # noqa: SIM117
            with artifacts.writing(tmp_path, EXTRACTION):
                pytest.fail("it may not write")
    assert contents(tmp_path) == {str(tmp_path / name)}


def test_an_earlier_run_without_its_manifest_is_replaced(finished: Path) -> None:
    """As the message about a missing manifest advises."""
    (finished / artifacts.MANIFEST).unlink()
    with artifacts.writing(finished, EXTRACTION) as stage:
        stage.save(FEATURES, np.ones((3, 4)), "train")


def contents(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*") if path.name != ".lock"}


def test_a_reader_never_mixes_two_states(finished: Path) -> None:
    before = Manifest(finished)
    mean = before.load(artifacts.PCA_MEAN).copy()
    kept = before.load(artifacts.PCA_COMPONENTS)
    components = kept.copy()
    with artifacts.writing(finished, CLUSTERING) as stage:
        stage.save(CENTROIDS, np.ones((10, 20)))
        with pytest.raises(UserError, match=r"centroids\.npy does .*replaced while being read"):
            before.load(CENTROIDS)
        assert (before.load(artifacts.PCA_MEAN) == mean).all()  # not replaced yet
        with pytest.raises(UserError, match=f"no finished results of {CLUSTERING}"):
            _ = Manifest(finished).clustering
        stage.save(artifacts.PCA_COMPONENTS, np.zeros((20, 192)))
    assert (kept == components).all()  # what was loaded stays


def test_nothing_that_is_not_finite_is_written(finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    x = np.ones((700, 192), np.float32)
    x[600, 3], x[601, :2] = np.nan, -np.inf
    with pytest.raises(RunError, match=r"3 of 134,400 numbers for .*train_features\.npy are not"):  # noqa: SIM117
        with artifacts.writing(finished, EXTRACTION) as stage:
            stage.save(FEATURES, x, "train")
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before


def test_files_of_an_earlier_run_go_away(finished: Path) -> None:
    np.save(finished / "mine.npy", np.ones(3))
    with artifacts.writing(finished, EXTRACTION) as stage:
        stage.save(FEATURES, np.ones((3, 4)), "unlabeled")
        stage.record(extraction_part("new", class_names=[], splits={"unlabeled": 3}))
    assert not Manifest(finished).has(LABELS, "train")
    left = {file.name for file in finished.glob("*_*.npy")}
    assert "unlabeled_features.npy" in left
    assert not left & {"train_features.npy", "train_labels.npy", "test_features.npy"}
    assert (finished / "mine.npy").exists()
    with pytest.raises(UserError, match=f"belong to other features: run python {CLUSTERING} again"):
        _ = Manifest(finished).clustering


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit_on": 3}, r"fit_on: input should be a valid string\): run python src/clustering\.py"),
        ({"files": None}, "files: input should be a valid dictionary"),
        ({"config": {"l2_normalize": False}}, "was changed after src/clustering.py wrote it"),
    ],
)
def test_a_changed_manifest_is_refused(finished: Path, change: dict, message: str) -> None:
    file = finished / artifacts.MANIFEST
    content = json.loads(file.read_text())
    content[CLUSTERING] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        _ = Manifest(finished).clustering
