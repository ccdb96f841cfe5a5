"""Lists of files as other programs and systems write them, for imported features."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src import import_features
from src.features.flags import ImportConfig
from src.runtime.cli import UserError
from src.storage.artifacts import FEATURES, Manifest
from src.storage.user_arrays import read_lines
from tests.helpers.digits import digits, save_picture

NAMES = ["Straße/Ärger.png", "Straße/ö.png", "plain.png", "Å.png"]
"""In the order of their bytes if composed."""


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, image in zip(NAMES, digits(), strict=False):
        save_picture(image, tmp_path / "pictures" / name)
    np.save(tmp_path / "x.npy", np.arange(4.0)[::-1, None])  # the lists are in reverse order
    return tmp_path / "pictures"


def imported(folder: Path, content: bytes, data_dir: Path | None = None) -> list[float]:
    """The features in the order of the pictures."""
    place = folder.parent
    (place / "names.txt").write_bytes(content)
    config = ImportConfig(
        unlabeled=place / "x.npy", unlabeled_names=place / "names.txt",
        data_dir=data_dir or folder, feature_dir=place / "features",
    )  # fmt: skip
    import_features.main(config)
    return Manifest(place / "features").load(FEATURES, "unlabeled")[:, 0].tolist()


@pytest.mark.parametrize(
    "written",
    [
        lambda name, folder: decomposed(name),
        lambda name, folder: f"./{name}",
        lambda name, folder: f"{folder}/{name}",
        lambda name, folder: decomposed(f"{folder}/./{name}"),
        lambda name, folder: f"pictures/{name}",  # relative to the current folder
        lambda name, folder: f"../{folder.parent.name}/pictures/{name}",
    ],
)
def test_every_way_to_name_a_file(
    written: Callable[[str, Path], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    text = "\n".join(written(name, folder) for name in reversed(NAMES))
    assert imported(folder, text.encode()) == [0, 1, 2, 3]
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert imported(folder, text.encode(), data_dir=link) == [0, 1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_encodings_and_empty_lines_at_the_end(folder: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = mark + "\r\n".join([*reversed(NAMES), "", ""])
    assert imported(folder, text.encode(encoding)) == [0, 1, 2, 3]


def test_both_forms_of_a_name_are_two_files(folder: Path) -> None:
    (folder / decomposed("Å.png")).write_bytes((folder / "plain.png").read_bytes())
    (folder / "plain.png").unlink()
    names = [*NAMES[:2], decomposed("Å.png"), "Å.png"]
    order = sorted(names)
    found = imported(folder, "\n".join(reversed(names)).encode())
    assert found == [float(names.index(name)) for name in order]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Å.png\nno such.png\na\nb", r"line 2: no unlabeled picture no such\.png in .*pictures"),
        ("Å.png\n" + decomposed("Å.png") + "\na\nb", r"line 2: A.\.png is also in line 1"),
        ("Å.png\npictures\\plain.png\na\nb", r"line 2: no unlabeled picture pictures\\plain"),
    ],
)
def test_a_line_that_is_no_picture_is_shown(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported(folder, text.encode())


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    for content, line in (
        ("\n".join(NAMES).encode("utf-16-le"), r"S\x00t\x00r"),
        ("\n".join(NAMES).encode("utf-32"), r"S\x00t\x00r"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError) as refusal:
            read_lines(file, "--names takes a text file")
        assert line in str(refusal.value)
        assert "save it as UTF-8" in str(refusal.value)
    file.write_bytes("Bär.png".encode("latin-1"))
    assert read_lines(file, "") == [os.fsdecode(b"B\xe4r.png")]
