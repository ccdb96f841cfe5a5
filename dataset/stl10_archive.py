"""STL-10's official archive: downloaded, verified, and unpacked completely or not at all."""

import contextlib
import gzip
import hashlib
import lzma
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm.utils import CallbackIOWrapper

from dataset.stl10 import STL10_FILES, STL10_FOLDER, load_stl10, stl10_folder, stl10_splits
from dataset.transfer import DownloadError, RetryPolicy, fetch, size_of
from src.runtime.cli import UserError, progress
from src.storage import files


@dataclass(frozen=True)
class Archive:
    url: str
    md5: str | None
    """Expected checksum; None accepts any file that unpacks to STL-10's shapes."""
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


def get_stl10(
    data_dir: Path,
    archive: Archive = STL10,
    file: Path | None = None,
    policy: RetryPolicy | None = None,
) -> None:
    """Create `<data_dir>/stl10_binary/`, unless it already holds images of STL-10.

    Args:
        data_dir: its parent directory, or that folder itself.
        archive: what to download, or what `file` must be.
        file: a copy of the archive on this machine, which stays as it is.
        policy: when to retry a broken connection.

    Raises:
        DownloadError: the download failed, or its checksum is wrong.
        UserError: there is too little space, or `file` is not the archive.
    """
    folder = stl10_folder(data_dir)
    if stl10_splits(folder):
        return
    data_dir = folder.parent
    data_dir.mkdir(parents=True, exist_ok=True)
    # Every process of a distributed run calls this: the first one works, the others wait.
    with files.locked(data_dir / f".{STL10_FOLDER}.lock"):
        if stl10_splits(folder):
            return
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is in the way and holds no images: move it away")
        part = data_dir / f"{PurePosixPath(archive.url).name}.part"
        missing = 0 if file else max(0, archive.packed - size_of(part))
        files.require_space(data_dir, archive.unpacked + missing, "STL-10", "--data-dir")
        if file:
            _verify(file, archive.md5)
            _unpack(file, data_dir)
            return
        try:
            _download(archive, part, policy or RetryPolicy())
        except DownloadError as error:
            raise DownloadError(
                f"there is no STL-10 in {folder}, and it cannot be downloaded: {error}. Run python "
                "dataset/download_dataset.py to resume the download, with --url a mirror or with "
                "--archive a copy of the archive; name a directory that holds stl10_binary/ with "
                "--data-dir, or try --dataset digits"
            ) from None
        try:
            _unpack(part, data_dir)
        except UserError:  # to resume from it would end the same way
            part.unlink()
            raise
        part.unlink()


def _download(archive: Archive, part: Path, policy: RetryPolicy) -> None:
    print(f"downloading {archive.url} into {part.parent}", file=sys.stderr)
    resumed = fetch(archive.url, part, policy)
    if archive.md5 is None:
        return
    md5 = _md5(part)
    if md5 != archive.md5 and resumed:
        print("the resumed download has a wrong checksum: starting over", file=sys.stderr)
        part.unlink()
        fetch(archive.url, part, policy)
        md5 = _md5(part)
    if md5 != archive.md5:
        size = size_of(part)
        part.unlink()
        raise DownloadError(
            f"{archive.url} gave {size:,} bytes with the MD5 {md5}, expected {archive.md5}"
        )


def _verify(file: Path, expected: str | None) -> None:
    if not file.is_file():
        raise UserError(f"--archive {file}: no such file")
    if expected and (md5 := _md5(file)) != expected:
        raise UserError(
            f"{file} has the MD5 {md5}, expected {expected}: it is damaged or another archive; "
            "--md5 None accepts it if its contents have the right shapes"
        )


def _md5(file: Path) -> str:
    with _open(file, "verifying") as stream:
        return files.digest(stream, partial(hashlib.md5, usedforsecurity=False))


def _unpack(file: Path, data_dir: Path) -> None:
    temporary = data_dir / f".{STL10_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # from a run that was killed
    temporary.mkdir()
    try:
        _extract(file, temporary)
        if not load_stl10(temporary):
            raise UserError(f"{file} holds no train_X.bin, test_X.bin or unlabeled_X.bin")
        for unpacked in temporary.iterdir():
            files.sync(unpacked)
        temporary.rename(data_dir / STL10_FOLDER)
        files.sync(data_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(file: Path, target: Path) -> None:
    """Write STL-10's files from the archive under fixed names, so that no path or link in the
    archive can point outside `target`."""
    try:
        with _open(file, "unpacking") as stream, tarfile.open(fileobj=stream) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if member.isreg() else None
                if content and name in STL10_FILES:
                    with content, (target / name).open("wb") as out:
                        shutil.copyfileobj(content, out, 1 << 20)
            while tar.fileobj and tar.fileobj.read(1 << 20):
                pass  # gzip compares its checksum at the very end
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(f"{file} is not a complete .tar.gz archive ({reason})") from None


@contextlib.contextmanager
def _open(file: Path, description: str) -> Iterator[BinaryIO]:
    """`file` for reading, with a progress bar."""
    size = file.stat().st_size
    bar = progress(total=size, desc=description, unit="B", unit_scale=True, leave=False)
    with files.open_regular(file) as stream, bar:
        yield CallbackIOWrapper(bar.update, stream, "read")  # type: ignore[misc]
