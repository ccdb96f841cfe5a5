"""STL-10's official archive: downloaded, verified, and unpacked all or not at all."""

import gzip
import hashlib
import lzma
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm import tqdm

from dataset.stl10 import STL10_FILES, STL10_FOLDER, load_stl10, stl10_splits
from dataset.transfer import DownloadError, Patience, arrived, discard, fetch, part_of
from src.runtime.cli import UserError
from src.storage import artifacts


@dataclass(frozen=True)
class Archive:
    url: str
    md5: str | None
    """What the file must have; None takes any file that unpacks to STL-10's shapes."""
    packed: int
    """Bytes of the archive."""
    unpacked: int
    """Bytes of the files in it."""


STL10 = Archive(
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    packed=2_640_397_119,
    unpacked=3_124_237_000,
)


def ensure_stl10(
    data_dir: Path, archive: Archive = STL10, patience: Patience | None = None
) -> None:
    """Download STL-10 into `data_dir` unless images of it are there already.

    Raises:
        UserError: it cannot be had; the message says what to do instead.
    """
    if stl10_splits(data_dir / STL10_FOLDER):
        return
    try:
        get_stl10(data_dir, archive, patience=patience)
    except DownloadError as error:
        raise UserError(
            f"there is no STL-10 in {data_dir / STL10_FOLDER}, and it cannot be downloaded: "
            f"{error}. Get {archive.url} elsewhere and run python dataset/download_dataset.py "
            "--archive FILE, name the directory of a copy with --data-dir, or try --dataset digits"
        ) from None


def get_stl10(
    data_dir: Path,
    archive: Archive = STL10,
    file: Path | None = None,
    patience: Patience | None = None,
) -> None:
    """Bring `<data_dir>/stl10_binary/` about.

    Args:
        data_dir: where it goes.
        archive: what to download, or what `file` has to be.
        file: a copy of the archive on this machine, which is left as it is.
        patience: with connections that break.

    Raises:
        DownloadError: the archive did not come, or another file came.
        UserError: there is too little space, or `file` is no such archive.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    # Processes of a distributed run all come here: the first works, the others find its result.
    with FileLock(data_dir / f".{STL10_FOLDER}.lock"):
        if stl10_splits(data_dir / STL10_FOLDER):
            return
        if file:
            _check_space(data_dir, archive.unpacked)
            _verify(file, archive.md5)
            _unpack(file, data_dir)
        else:
            target = data_dir / PurePosixPath(archive.url).name
            _check_space(data_dir, archive.unpacked + max(0, archive.packed - arrived(target)))
            _download(archive, target, patience or Patience())
            _unpack(part_of(target), data_dir)
            discard(target)


def _download(archive: Archive, target: Path, patience: Patience) -> None:
    print(f"downloading {archive.url} into {target.parent}", file=sys.stderr)
    several = fetch(archive.url, target, patience)
    found = _md5(part_of(target)) if archive.md5 else None
    if found != archive.md5 and several:
        print("the pieces do not make the right file: downloading it afresh", file=sys.stderr)
        discard(target)
        fetch(archive.url, target, patience)
        found = _md5(part_of(target))
    if found != archive.md5:
        size = part_of(target).stat().st_size
        discard(target)
        raise DownloadError(
            f"{archive.url} gave {size:,} bytes with the MD5 {found}, expected {archive.md5}"
        )


def _verify(file: Path, md5: str | None) -> None:
    if not file.is_file():
        raise UserError(f"--archive {file}: there is no such file")
    if md5 and (found := _md5(file)) != md5:
        raise UserError(
            f"{file} has the MD5 {found}, expected {md5}: it is damaged or another archive; "
            "--md5 None takes it if its contents have the right shapes"
        )


def _md5(file: Path) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream, _bar("verifying", file.stat().st_size) as bar:
        while block := stream.read(1 << 20):
            md5.update(block)
            bar.update(len(block))
    return md5.hexdigest()


def _unpack(file: Path, data_dir: Path) -> None:
    folder = data_dir / STL10_FOLDER
    temporary = data_dir / f".{STL10_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir()
    try:
        _extract(file, temporary)
        if not stl10_splits(temporary):
            raise UserError(f"{file} holds no train_X.bin, test_X.bin or unlabeled_X.bin")
        load_stl10(temporary)
        for unpacked in temporary.iterdir():
            artifacts.sync(unpacked)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is in the way and holds no images: move it away")
        temporary.rename(folder)
        artifacts.sync(data_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(file: Path, target: Path) -> None:
    """Write STL-10's files out of the archive, under names of our own, so that no path in it
    can lead anywhere."""
    try:
        with (
            file.open("rb") as stream,
            _bar("unpacking", file.stat().st_size) as bar,
            tarfile.open(fileobj=stream) as tar,
        ):
            for member in tar:
                _refuse_if_hostile(member, file)
                name = PurePosixPath(member.name).name
                if member.isreg() and name in STL10_FILES:
                    _check_space(target, member.size)
                    _copy(tar, member, target / name, lambda: bar.update(stream.tell() - bar.n))
            while tar.fileobj and tar.fileobj.read(1 << 20):
                pass  # gzip compares its checksum at the very end
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(f"{file} is not a whole .tar.gz archive ({reason})") from None


def _refuse_if_hostile(member: tarfile.TarInfo, file: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise UserError(
            f"{file} holds {member.name!r}, which leads out of it or is a link or a device: "
            "this is not STL-10's archive, and nothing of it was kept"
        )


def _copy(
    tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, moved: Callable[[], object]
) -> None:
    source = tar.extractfile(member)
    assert source is not None
    with source, target.open("wb") as out:
        while block := source.read(1 << 20):
            out.write(block)
            moved()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"STL-10 needs {needed / 1e9:.1f} GB more in {folder}, which has {free / 1e9:.1f} GB "
            "free: make room, or name another place with --data-dir"
        )


def _bar(doing: str, size: int) -> tqdm:
    return tqdm(
        total=size, desc=doing, unit="B", unit_scale=True, dynamic_ncols=True, leave=False,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
