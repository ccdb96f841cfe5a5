"""File systems that lack a call, as those of networks and memory cards, and folders that cannot be
written."""

import errno
import fcntl
import mmap
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visualize_features
from dataset.load_dataset import load_dataset
from src import clustering, import_features
from src.clustering import ClusteringConfig
from src.features.flags import ImportConfig
from src.prediction.output import SortedPictures
from src.runtime.cli import UserError
from src.storage import checkpoint
from src.storage.artifacts import CENTROIDS, FEATURES, Manifest, only_writer, try_writing
from tests.helpers.digits import write_digits
from tests.helpers.pixel_run import pixel_run
from visualize_features import VisualizeConfig


def refuse(
    monkeypatch: pytest.MonkeyPatch, place: Any, call: str, number: int, below: Path
) -> None:
    """Have a call on an open file in `below` fail with this number."""
    original = getattr(place, call)

    def failing(file: Any, *arguments: Any) -> Any:
        descriptor = file if isinstance(file, int) else file.fileno()
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_meant = call != "fsync" or stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if is_meant and name.is_relative_to(below):
            raise OSError(number, os.strerror(number))
        return original(file, *arguments)

    monkeypatch.setattr(place, call, failing)


def without_maps(monkeypatch: pytest.MonkeyPatch, accesses: set[int]) -> None:
    original = mmap.mmap

    class Map(original):
        def __new__(cls, file: int, length: int, access: int = 0, **more: Any) -> Any:
            if access in accesses:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            return original.__new__(cls, file, length, access=access, **more)

    monkeypatch.setattr(mmap, "mmap", Map)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, 524])
def test_without_locks_those_of_this_machine_count(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    features, local = tmp_path / "shared", tmp_path / "local"
    features.mkdir()
    local.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(local))
    refuse(monkeypatch, fcntl, "flock", number, features)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the lock ends with the block
        with only_writer(features):
            note, *_ = capsys.readouterr().err.splitlines()
            assert note.endswith("shared has no locks: use it from one machine at a time")
            with pytest.raises(UserError, match="another stage"), only_writer(Path("shared")):
                pass
    with checkpoint.training_in(features / "checkpoints"):
        pass
    write_digits(tmp_path / "shared" / "pictures", 3)
    assert len(load_dataset("folder", features / "pictures").splits["unlabeled"].images) == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_folders_that_cannot_be_flushed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, os, "fsync", number, tmp_path)
    pixel_run(tmp_path, "digits", Path())
    assert Manifest(tmp_path).clustering["clusters"] == 10


SHARED = {mmap.ACCESS_DEFAULT, mmap.ACCESS_READ, mmap.ACCESS_WRITE}


@pytest.mark.parametrize("accesses", [SHARED, SHARED | {mmap.ACCESS_COPY}])
def test_the_same_numbers_without_memory_maps(
    accesses: set[int], tmp_path: Path, pixel_digits: Path, stl10_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    expected = {split: part.images.copy() for split, part in load("stl10", stl10_dir)}
    files = write_digits(tmp_path / "pictures", 5)
    np.save(tmp_path / "columns_first.npy", np.asfortranarray(np.arange(15.0).reshape(5, 3)))
    (tmp_path / "names.txt").write_text("".join(f"{file.name}\n" for file in files))
    without_maps(monkeypatch, accesses)

    pixel_run(tmp_path / "run", "digits", Path())
    was, now = Manifest(pixel_digits), Manifest(tmp_path / "run")
    assert now.clustering["files"] == was.clustering["files"]
    assert (now.load(CENTROIDS) == was.load(CENTROIDS)).all()
    assert all(
        (images.images == expected[split]).all() for split, images in load("stl10", stl10_dir)
    )

    config = ImportConfig(
        unlabeled=tmp_path / "columns_first.npy", unlabeled_names=tmp_path / "names.txt",
        data_dir=tmp_path / "pictures", feature_dir=tmp_path / "imported",
    )  # fmt: skip
    import_features.main(config)
    imported = Manifest(tmp_path / "imported").load(FEATURES, "unlabeled")
    assert imported.tolist() == np.arange(15).reshape(5, 3).tolist()


def load(name: Any, data_dir: Path) -> Any:
    return load_dataset(name, data_dir).splits.items()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_links_pictures_can_be_copied(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture,) = write_digits(tmp_path / "pictures", 1)

    def symlink_to(link: Path, target: str, *_: object) -> None:
        raise OSError(number, os.strerror(number), target, None, str(link))

    monkeypatch.setattr(Path, "symlink_to", symlink_to)  # Python 3.10 does not look into os
    place = tmp_path / "sorted"
    with pytest.raises(UserError, match=r"sorted cannot hold links .*: add --copy"):
        SortedPictures(place, ["00-cat"], copy=False, split=None).add(picture, 0)
    SortedPictures(place, ["00-cat"], copy=True, split=None).add(picture, 0)
    assert (place / "00-cat" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("place", ["", "figures"])
def test_what_must_be_written_is_tried_first(
    place: str, tmp_path: Path, pixel_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = shutil.copytree(pixel_digits, tmp_path / "features")
    (directory / "report.html").write_text("an earlier page")
    before = {file: file.read_bytes() for file in directory.iterdir()}
    touch = Path.touch

    def deny(file: Path, *arguments: Any, **more: Any) -> None:
        if file.parent == directory / place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        touch(file, *arguments, **more)

    monkeypatch.setattr(Path, "touch", deny)
    monkeypatch.setattr("src.visualization.stage.project", lambda *_: pytest.fail("too late"))
    monkeypatch.setattr("src.clusters.stage.read_inputs", lambda *_: pytest.fail("too late"))
    with pytest.raises(PermissionError):
        visualize_features.main(VisualizeConfig(feature_dir=directory))
    if not place:
        with pytest.raises(PermissionError):
            clustering.main(ClusteringConfig(feature_dir=directory))
    monkeypatch.undo()
    try_writing(*before, directory / "new.html")
    assert {f: f.read_bytes() for f in directory.iterdir() if f.is_file()} == before
