"""STL-10 by its shapes, folders of pictures and their cache, and the fingerprint of both."""

import json
import os
import re
import resource
import shutil
import subprocess
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import decoding, picture_cache
from dataset.folder import Pictures, find_pictures, refuse_among
from dataset.load_dataset import Dataset, load_dataset
from dataset.picture_cache import CACHE_FOLDER, load_pictures
from src.prediction.picture_stream import find
from src.runtime.cli import UserError
from tests.helpers import ROOT
from tests.helpers.processes import run_python

IMAGE = 3 * 96 * 96
SIZE = 16


def picture(file: Path, level: int = 0) -> None:
    """A picture of SIZE x SIZE whose pixels are known: a ramp that starts at `level`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(level)).save(file)


def pixels(level: int) -> np.ndarray:
    return np.uint8((np.arange(SIZE * SIZE * 3) + level) % 256).reshape(SIZE, SIZE, 3)


def expected(*levels: int) -> np.ndarray:
    return np.stack([pixels(level) for level in levels]).transpose(0, 3, 1, 2)


def tree(folder: Path, *names: str) -> Path:
    """A folder of pictures with these names, the ramps of which start at 0, 1, ..."""
    for level, name in enumerate(names):
        picture(folder / f"{name}.png", level)
    return folder


def load(folder: Path, **options: object) -> Dataset:
    return load_dataset("folder", folder, SIZE, **options)  # type: ignore[arg-type]


def unlabeled(folder: Path, **options: object) -> np.ndarray:
    return load(folder, **options).splits["unlabeled"].images


# --- STL-10 -------------------------------------------------------------------------------------


@pytest.fixture
def stl10(stl10_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stl10_dir, tmp_path, dirs_exist_ok=True)


def test_stl10_is_column_major_and_labels_start_at_one(stl10: Path) -> None:
    dataset = load_dataset("stl10", stl10)
    assert list(dataset.splits) == ["unlabeled", "train", "test"]
    assert dataset.splits["unlabeled"].labels is None
    np.testing.assert_array_equal(dataset.splits["train"].labels, np.arange(40) % 10)
    assert dataset.class_names[0] == "airplane"
    raw = (stl10 / "stl10_binary" / "train_X.bin").read_bytes()
    images = dataset.splits["train"].images
    for image, channel, row, column in ((0, 0, 0, 1), (1, 2, 40, 7), (2, 1, 95, 0)):
        place = image * IMAGE + channel * 96 * 96 + column * 96 + row
        assert images[image, channel, row, column] == raw[place]


def test_stl10_in_the_folder_itself_and_classes_of_two_words(stl10: Path) -> None:
    names = ("polar bear", "sea lion", *"cdefghij")
    (stl10 / "stl10_binary/class_names.txt").write_bytes("\r\n".join(names).encode())
    assert load_dataset("stl10", stl10 / "stl10_binary").class_names == names
    (stl10 / "stl10_binary").rename(stl10 / "moved")
    assert load_dataset("stl10", stl10 / "moved").class_names == names


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_X.bin", bytes(IMAGE - 1), r"train_X\.bin has 27,647 bytes, not .* 27,648"),
        ("unlabeled_X.bin", b"", r"unlabeled_X\.bin has 0 bytes"),
        ("test_X.bin", bytes(3 * IMAGE), r"test_y\.bin has 20 labels for 3 images"),
        ("train_y.bin", bytes([1, 10]), r"train_y\.bin has 2 labels for 40 images"),
        ("train_y.bin", bytes(range(40)), r"train_y\.bin has labels from 0 to 39"),
        ("train_y.bin", bytes(range(1, 41)), r"train_y\.bin has labels from 1 to 40"),
        ("class_names.txt", b"a cat\ndog\n", r"class_names\.txt has 2 names, not 10"),
    ],
)
def test_stl10_files_that_do_not_fit(stl10: Path, file: str, content: bytes, message: str) -> None:
    (stl10 / "stl10_binary" / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_dataset("stl10", stl10)


def test_opening_all_of_stl10_takes_no_time(stl10: Path) -> None:
    with (stl10 / "stl10_binary" / "unlabeled_X.bin").open("wb") as file:
        file.truncate(100_000 * IMAGE)  # 2.8 GB, sparse
    start = time.process_time()
    images = load_dataset("stl10", stl10).splits["unlabeled"].images
    assert time.process_time() - start < 0.5  # reading it all takes longer
    assert images.shape == (100_000, 3, 96, 96)
    assert isinstance(images, np.memmap)


# --- folders: layouts ---------------------------------------------------------------------------


def test_classes_in_train_and_test_and_unlabeled(tmp_path: Path) -> None:
    names = ("train/dog/b", "train/dog/husky/a", "train/ant/z", "test/dog/c")
    tree(tmp_path, *names, "unlabeled/deep/er/d", "unlabeled/e")
    picture(tmp_path / "test/zebra/c.PNG", 6)
    tree(tmp_path, "beside", "train/.hidden/f", "train/dog/._b")  # none of these counts
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/dog/notes.txt").write_text("not a picture")
    dataset = load(tmp_path)
    assert dataset.class_names == ("ant", "dog", "zebra")
    assert list(dataset.splits) == ["unlabeled", "train", "test"]
    assert dataset.image_size == SIZE
    names = ("train/ant/z.png", "train/dog/b.png", "train/dog/husky/a.png")
    assert dataset.splits["train"].names == names
    for split, labels, levels in (
        ("train", [0, 1, 1], (2, 0, 1)), ("test", [1, 2], (3, 6)), ("unlabeled", None, (4, 5)),
    ):  # fmt: skip
        np.testing.assert_array_equal(dataset.splits[split].labels, labels)
        np.testing.assert_array_equal(dataset.splits[split].images, expected(*levels))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["a", "b/c", "b/d/e"], "unlabeled"),
        (["cat/b", "dog/a"], "unlabeled"),  # folders are classes only below train and test
        (["train/a", "train/b"], "train"),
        (["test/a"], "test"),
    ],
)
def test_no_labels(tmp_path: Path, names: list[str], split: str) -> None:
    dataset = load(tree(tmp_path, *names))
    (part,) = dataset.splits.values()
    assert (list(dataset.splits), dataset.class_names, part.labels) == ([split], (), None)
    assert part.names == tuple(f"{name}.png" for name in names)
    np.testing.assert_array_equal(part.images, expected(*range(len(names))))


@pytest.mark.parametrize(
    ("names", "splits", "note"),
    [
        (["train/a/1", "val/a/2", "valley/3", "4"], {"train": 1, "test": 1},
         r"2 pictures in .* next to train, val are left out: .*valley/ \(1\)"),
        (["Train/a/1", "TEST/a/2", "Unlabelled/3"], {"train": 1, "test": 1, "unlabeled": 1}, ""),
        (["train/a/1", "Validation/a/2", "test/a/3"], {"train": 1, "test": 1},
         r"Validation/ \(1\)"),
        (["ship/1", "train/2", "plane/3", "plane/4"], {"train": 1},
         r"3 pictures .* left out: plane/ \(2\), ship/ \(1\); move them into train"),
        (["cat/1", "dog/2"], {"unlabeled": 2}, "names of the 2 folders .*cat, dog.* are not used"),
        (["cat/1", "2"], {"unlabeled": 2}, ""),
        (["unlabeled/1", "unlabeled/@eaDir/1.jpg/thumb"], {"unlabeled": 1}, ""),
    ],
)  # fmt: skip
def test_what_is_used_and_what_is_left_out(
    tmp_path: Path, names: list[str], splits: dict[str, int], note: str
) -> None:
    dataset = load(tree(tmp_path, *names))
    assert {split: len(part.images) for split, part in dataset.splits.items()} == splits
    assert len(dataset.notes) == bool(note)
    assert re.search(note, " ".join(dataset.notes))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/dog/a", "train/stray"], r"train/stray\.png"),
        (["unlabeled/1", "Unlabelled/1"], "both hold the unlabeled split"),
        ([], "no pictures in"),
        (["beside"], r"no pictures in .*train"),
    ],
)
def test_what_is_not_guessed_at(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "words.txt").write_text("x")
    if names == ["beside"]:
        (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=message):
        load(tree(tmp_path, *names))
    with pytest.raises(UserError, match="is not a directory"):
        load(tmp_path / "none")


def test_an_unreadable_folder_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "open/1", "closed/2")
    real = os.scandir

    def refusing(folder: str) -> object:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything
    dataset = load(tmp_path)
    assert len(dataset.splits["unlabeled"].images) == 1
    assert "closed cannot be read and is left out" in dataset.notes[0]


def test_a_class_without_a_sound_picture_does_not_count(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1", "train/c/2", "train/b/3")
    (tmp_path / "train/b/3.png").write_bytes(b"no picture")
    dataset = load(tmp_path)
    assert dataset.class_names == ("a", "c")
    np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 1])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png", 1)
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "circle").symlink_to(data)
    (data / "self.png").symlink_to("self.png")
    (data / "nowhere").symlink_to("nothing")
    (data / "nowhere.png").symlink_to(tmp_path / "gone.png")
    assert load(data).splits["unlabeled"].names == ("linked/a.png",)


def test_no_place_among_the_pictures_is_written_to(tmp_path: Path) -> None:
    def refused(place: Path, **more: bool) -> None:
        with pytest.raises(UserError, match=r"--montage .* is among the pictures in .*pictures"):
            refuse_among("--montage", place, root, **more)

    root = tree(tmp_path / "pictures", "a")
    for place in (root, root / "deep/new", tmp_path / "other/../pictures/m.png"):
        refused(place)
    for place in (tmp_path, tmp_path / "pictures2", root / ".hidden/m.png", root / "@eaDir"):
        refuse_among("--montage", place, root)
    (root / "train").mkdir()
    refuse_among("--montage", root / "features", root)  # only train/ is read now
    refused(root / "train/new")
    refused(root / "features", with_splits=False)


def test_the_program_is_not_among_the_pictures_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "a", "program/docs/b", "program/features/c")
    monkeypatch.setattr("dataset.folder.PROGRAM", tmp_path / "program")
    assert load(tmp_path).splits["unlabeled"].names == ("a.png",)
    refuse_among("--feature-dir", tmp_path / "program/features", tmp_path)
    found = load(tmp_path / "program").splits["unlabeled"].names
    assert found == ("docs/b.png", "features/c.png")


def test_folders_deeper_than_recursion_and_paths_can_be(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    here = os.open(tmp_path, os.O_RDONLY)
    for depth in range(2500):  # with relative paths, which have no limit
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if depth == 1500:
            name = os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=here)
            os.write(name, (tmp_path / "a.png").read_bytes())
            os.close(name)
    os.close(here)
    try:
        dataset = load(tmp_path)
        found = [path.name for path in find([str(tmp_path)])]
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
    assert dataset.splits["unlabeled"].names == ("a.png", f"{'d/' * 1501}deep.png")
    assert "cannot be read and is left out" in dataset.notes[0]
    assert found == ["a.png", "deep.png", "d"]


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    try:
        picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xf0.png")), 9)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    for _ in range(2):
        np.testing.assert_array_equal(unlabeled(tmp_path), expected(9))
    picture(tmp_path / "plain.png", 10)
    np.testing.assert_array_equal(unlabeled(tmp_path), expected(9, 10))


@pytest.mark.parametrize("change", [
    lambda name: unicodedata.normalize("NFD", name), str.upper, lambda name: f"{name} ",
], ids=["decomposed", "case", "space"])  # fmt: skip
def test_class_names_that_differ_in_form_are_one_class(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    for level, name in enumerate(("café", "naïve", "ox")):
        picture(tmp_path / "train" / name / "a.png", level)
        picture(tmp_path / "test" / change(name) / "b.png", level)
    dataset = load(tmp_path)
    assert dataset.class_names == ("café", "naïve", "ox")
    for split in dataset.splits.values():
        assert split.labels is not None
        levels = [int(image[0, 0, 0]) for image in split.images]
        assert levels == split.labels.tolist()
    decomposed = change("café") == unicodedata.normalize("NFD", "café")
    assert any("one class" in note for note in dataset.notes) != decomposed


def test_classes_that_train_lacks_are_named(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "test/a", "test/new"):
        picture(tmp_path / place / "x.png")
    assert any("train lacks: new" in note for note in load(tmp_path).notes)


def test_files_behind_links_are_read_once(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"f{i}/a.png", i)
        for j in range(4):
            if i != j:
                (tmp_path / f"f{i}/to{j}").symlink_to(f"../f{j}")
    (tmp_path / "a first").symlink_to("f2")
    (tmp_path / "again.png").symlink_to("f1/a.png")
    dataset = load(tmp_path)
    assert dataset.splits["unlabeled"].names == ("f0/a.png", "f1/a.png", "f2/a.png", "f3/a.png")
    assert any("1 files and 13 folders" in note for note in dataset.notes)


def test_pictures_are_known_by_content_and_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.png", "b", "c.png_large", "d.dng", "e.NEF"):
        picture(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    for name in ("f.txt", "g.txt", "h", "i.mp4"):
        (tmp_path / name).write_text("P.S. not a picture")
    dataset = load(tmp_path)
    assert dataset.splits["unlabeled"].names == ("a.png", "b", "c.png_large")
    (note,) = dataset.notes
    for part in ("6 files", "2 .txt", "1 .dng", "1 .nef", "1 without a suffix", "RAW"):
        assert part in note
    assert [path.name for path in find([str(tmp_path)])] == ["a.png", "b", "c.png_large"]


# --- folders: the cache -------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded, not read from the cache."""
    names = []
    real = decoding.load_picture

    def spy(source: Path, size: int) -> np.ndarray:
        names.append(source.name)
        return real(source, size)

    monkeypatch.setattr(decoding, "load_picture", spy)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tree(tmp_path / "pictures", *"01234")


def test_second_open_decodes_nothing_and_maps_the_file(folder: Path, decoded: list[str]) -> None:
    first = load(folder)
    assert sorted(decoded) == [f"{level}.png" for level in range(5)]
    decoded.clear()
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    second = load(folder)
    assert decoded == []
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == written
    assert second.fingerprint == first.fingerprint
    images = second.splits["unlabeled"].images
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, expected(0, 1, 2, 3, 4))
    images[:] = 0  # stays in this process
    np.testing.assert_array_equal(unlabeled(folder), expected(0, 1, 2, 3, 4))


def test_every_change_of_the_folder_rebuilds(folder: Path, decoded: list[str]) -> None:
    prints = [load(folder).fingerprint]

    def reloaded(*levels: int) -> None:
        decoded.clear()
        dataset = load(folder)
        assert decoded
        np.testing.assert_array_equal(dataset.splits["unlabeled"].images, expected(*levels))
        prints.append(dataset.fingerprint)

    picture(folder / "5.png", 50)
    reloaded(0, 1, 2, 3, 4, 50)
    (folder / "0.png").unlink()
    reloaded(1, 2, 3, 4, 50)
    (folder / "1.png").rename(folder / "9.png")
    reloaded(2, 3, 4, 50, 1)
    Image.fromarray(pixels(77)).save(folder / "2.png", compress_level=0)  # another size
    reloaded(77, 3, 4, 50, 1)
    assert len(set(prints)) == len(prints)
    status = (folder / "3.png").stat()
    picture(folder / "3.png", 33)
    os.utime(folder / "3.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    reloaded(77, 33, 4, 50, 1)
    # What earlier states left is cleared away.
    assert len(list((folder / CACHE_FOLDER).glob("*.pixels"))) == 1


def test_sizes_have_caches_of_their_own(folder: Path, decoded: list[str]) -> None:
    for _ in range(2):
        assert load_dataset("folder", folder, 8).splits["unlabeled"].images.shape == (5, 3, 8, 8)
        assert load_dataset("folder", folder).image_size == 96
    assert len(decoded) == 10


def test_cache_dir_keeps_folders_apart_and_theirs_untouched(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for level, name in enumerate(("one", "two")):
        picture(tmp_path / name / "a.png", level)
        os.utime(tmp_path / name / "a.png", ns=(1, 1))  # alike in name, size and time
    for _ in range(2):
        for level, name in enumerate(("one", "two")):
            images = unlabeled(tmp_path / name, cache_dir=cache)
            np.testing.assert_array_equal(images, expected(level))
            assert [file.name for file in (tmp_path / name).iterdir()] == ["a.png"]


def test_broken_pictures_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, decoded: list[str]
) -> None:
    for level in range(100):
        picture(tmp_path / "train" / ("dog" if level % 2 else "cat") / f"{level:02d}.png", level)
    (tmp_path / "train" / "cat" / "02.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "98.png").write_text("words")
    whole = (tmp_path / "train" / "dog" / "51.png").read_bytes()
    (tmp_path / "train" / "dog" / "51.png").write_bytes(whole[: len(whole) // 2])
    good = [level for level in range(100) if level not in (2, 51, 98)]
    order = sorted(good, key=lambda level: (level % 2, level))
    for is_first in (True, False):
        dataset = load(tmp_path)
        train = dataset.splits["train"]
        np.testing.assert_array_equal(train.images, expected(*order))
        np.testing.assert_array_equal(train.labels, [level % 2 for level in order])
        assert [int(Path(name).stem) for name in train.names or ()] == order
        lines = capsys.readouterr().err.splitlines()
        left_out = [line for line in lines if line.startswith("left out")]
        named = [re.findall(r"/(..)\.png: (\w+)", line) for line in left_out]
        if is_first:
            assert named == [[("02", "empty")], [("98", "not")], [("51", "damaged")]]
            assert dataset.notes == ()
        else:
            (note,) = dataset.notes
            assert named == []
            assert note.startswith("3 of 100 pictures of train cannot be read")
            record = Path(note.split("; ")[1].removesuffix(" names them"))
            assert len(json.loads(record.read_text())["broken"]) == 3
    assert len(decoded) == 100


def test_many_broken_pictures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for index in range(40):
        (tmp_path / f"{index}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the pictures"):
        load(tmp_path)
    assert "left out 40 of 40 pictures of unlabeled" in capsys.readouterr().err
    picture(tmp_path / "good.png", 3)
    np.testing.assert_array_equal(unlabeled(tmp_path), expected(3))
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("left out")]) == 11


def test_cache_that_cannot_be_written_names_the_flag(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--cache-dir"):
        load(folder, cache_dir=tmp_path / "file")
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"0\.0 GB free: .*--cache-dir"):
        load(folder)


# --- folders: decoding ------------------------------------------------------------------


def test_pictures_keep_their_order_and_broken_ones_leave_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "pictures", *(f"{level:03d}" for level in range(150)))
    for broken in (0, 99, 100, 149):
        (folder / f"{broken:03d}.png").write_bytes(b"")
    pictures = find_pictures(folder)["unlabeled"]
    files = []
    for threads in (1, 5):
        monkeypatch.setattr(decoding, "THREADS", threads)
        images, names = load_pictures(pictures, SIZE, tmp_path / str(threads))
        assert len(names) == 146
        np.testing.assert_array_equal(images, expected(*(int(name[:3]) for name in names)))
        files.append(next((tmp_path / str(threads)).rglob("*.pixels")).read_bytes())
    assert files[0] == files[1]


def test_no_module_imports_torch() -> None:
    names = [f"dataset.{file.stem}" for file in (ROOT / "dataset").glob("*.py")]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    assert run_python("-c", code).stdout == "False\n"


def left_in(cache: Path) -> list[Path]:
    return [file for file in cache.rglob("*") if file.is_file() and file.name != ".lock"]


@pytest.fixture
def many(tmp_path: Path) -> Pictures:
    """Names of one large picture, so many that threads decode for seconds."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(noise).save(tmp_path / "original.jpg")
    for index in range(200):
        os.link(tmp_path / "original.jpg", tmp_path / "pictures" / f"{index:03d}.jpg")
    return find_pictures(tmp_path / "pictures")["unlabeled"]


def test_decoding_that_is_interrupted_leaves_nothing(
    many: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    cache, before = tmp_path / "cache", threading.active_count()
    with monkeypatch.context() as patch:
        bar = picture_cache.progress(total=100)
        patch.setattr(bar, "update", interrupt)
        patch.setattr(picture_cache, "progress", lambda **_: bar)
        with pytest.raises(KeyboardInterrupt):
            load_pictures(many, SIZE, cache)
    assert threading.active_count() == before
    assert left_in(cache) == []
    images, _ = load_pictures(many, SIZE, cache)
    assert len(images) == 200


def test_a_disk_that_fills_up(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    pictures, cache = find_pictures(folder)["unlabeled"], tmp_path / "cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the cache .*--cache-dir"):
            load_pictures(pictures, 64, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_in(cache) == []


# --- the fingerprint ----------------------------------------------------------------------------


def test_fingerprint_of_stl10_follows_every_label_and_the_sampled_pixels(stl10: Path) -> None:
    folder = stl10 / "stl10_binary"

    def fingerprint() -> str:
        return load_dataset("stl10", stl10).fingerprint

    prints = [fingerprint()]
    assert fingerprint() == prints[0]
    for name in ("train_y.bin", "unlabeled_X.bin"):
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(content)
        prints.append(fingerprint())
    (folder / "test_X.bin").unlink()
    prints.append(fingerprint())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)


def test_fingerprint_of_a_folder_is_that_of_a_copy(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)
    assert load(copy).fingerprint == load(folder).fingerprint


def test_fingerprint_of_a_folder_sees_a_picture_that_is_not_sampled(tmp_path: Path) -> None:
    before = load(tree(tmp_path, *(f"{level:03d}" for level in range(200)))).fingerprint
    Image.fromarray(pixels(9)).save(tmp_path / "101.png", compress_level=0)
    assert load(tmp_path).fingerprint != before


def test_a_picture_that_may_be_read_again_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    readable = find_pictures(tmp_path)["unlabeled"].files
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert find_pictures(tmp_path)["unlabeled"].files != readable
