"""Files on disk: read only where they are regular and sound, written whole or not at all.

File systems of networks, containers and memory cards lack some calls: locks, memory maps, flushing
a folder. Here everything works without them.
"""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from src.runtime.cli import UserError, printable

MISSING_CALL = {
    *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF),
    *(errno.ENODEV, errno.ENOLCK),
    524,  # the ENOTSUPP of the Linux kernel, which reaches programs in spite of having no name
}
"""How a file system answers a call that it lacks, if the call is correct."""

LOCK = ".lock"
"""It stays in every directory that was ever `locked`."""


def open_regular(file: Path) -> BinaryIO:
    """`file`, opened for reading without ever waiting, as opening a pipe would.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a device or a link to itself.
    """
    stream = open(file, "rb", opener=_without_waiting)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise OSError(errno.EINVAL, "not a regular file", str(file))


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # not on Windows


@contextlib.contextmanager
def reading(file: Path, remedy: str) -> Iterator[BinaryIO]:
    """`file`, open for the block; what the block finds wrong with it becomes one line.

    Args:
        remedy: how to get a sound file, the end of that line.

    Raises:
        UserError: the file is missing, no regular file, or damaged.
    """
    try:
        with open_regular(file) as stream:
            yield stream
    except (UserError, PermissionError):
        raise
    except FileNotFoundError:
        raise UserError(f"{file} is missing: {remedy}") from None
    except (OSError, ValueError, EOFError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(f"{file} is damaged ({reason}): {remedy}") from None


def digest(stream: BinaryIO, function: Callable[[], Any] = xxhash.xxh3_128) -> str:
    """Of the rest of the stream, in hexadecimal. XXH3 takes hardly longer than reading it."""
    state = function()
    while block := stream.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def map_array(stream: BinaryIO, mode: Literal["r", "c"]) -> np.ndarray:
    """The array of a `.npy` file, open at its start, memory-mapped. Only for a file whose digest is
    known: NumPy's parser answers damage with errors of many kinds."""
    assert npy.read_magic(stream) == (1, 0)
    shape, _, dtype = npy.read_array_header_1_0(stream)
    return mapped(stream, dtype, shape, mode)


def mapped(
    stream: BinaryIO,
    dtype: Any,
    shape: tuple[int, ...],
    mode: Literal["r", "c"] = "r",
    order: Literal["C", "F"] = "C",
) -> np.ndarray:
    """The array that begins where `stream` is, memory-mapped; in memory where that is impossible.

    Args:
        mode: read-only, or writable without changing the file. File systems that lack the first
            may have the second.
    """
    start = stream.tell()
    for possible in (mode, "c"):
        try:
            return np.memmap(stream, dtype, possible, start, shape, order)
        except OSError as error:
            if error.errno not in MISSING_CALL:
                raise
    stream.seek(start)
    return np.fromfile(stream, dtype, math.prod(shape)).reshape(shape, order=order)


@contextlib.contextmanager
def new_array(file: Path, dtype: Any, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A memory map of the new `.npy` file `file`; where that is impossible, an array in memory that
    is written after the block."""
    try:
        array = npy.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
        # Writing to a map on a full disk kills the process with SIGBUS: reserve the blocks.
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with file.open("r+b") as out:
                os.posix_fallocate(out.fileno(), 0, file.stat().st_size)
    except OSError as error:
        if error.errno not in MISSING_CALL:
            raise
        array = np.empty(shape, dtype)
    yield array
    if isinstance(array, np.memmap):
        array.flush()
        return
    with file.open("wb") as out:
        npy.write_array(out, array, (1, 0))


def json_digest(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `content`, any JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in `file`; raises UserError that ends in `remedy` where there is none."""
    with reading(file, remedy) as stream:
        content = json.loads(stream.read())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content


def misfit(content: Any, description: Any) -> str | None:
    """Where `content` differs from its `description`, such as "dataset.splits.train: input should
    be a valid integer"; None if it is like that.

    Args:
        description: a TypedDict; keys that it does not name are allowed.
    """
    from pydantic import ValidationError

    try:
        _adapter(description).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}"
    return None


@functools.cache
def _adapter(description: Any) -> Any:
    from pydantic import TypeAdapter  # takes 0.1 s, which decoding processes do without

    return TypeAdapter(description)


def write_json(file: Path, content: Any) -> None:
    """Write `content` to `file`; raises ValueError for NaN, which JSON does not have."""
    with replacing(file) as temporary:
        temporary.write_text(to_json(content), encoding="utf-8")


def to_json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def refuse_to_replace(flag: str, file: Path, what: str, is_own: Callable[[Path], bool]) -> None:
    """Raise UserError if something else than `what` is already at `file`, which `flag` names.

    Args:
        is_own: whether a regular file, not empty, is `what`; any Exception that it raises is a no.
    """
    try:
        with open_regular(file) as stream:
            is_empty = not stream.read(1)
        if is_empty or is_own(file):
            return
    except (FileNotFoundError, NotADirectoryError):
        return  # writing will say why, if it cannot
    except Exception:  # neither a file nor readable as `what`
        pass
    raise UserError(f"{flag} {file} exists and is not {what}: choose another name, or remove it")


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new empty file next to `file`, flushed to disk and renamed to `file` after the block.

    If the block raises, the new file is removed and `file` stays. A symbolic link to a file
    stays a link, and its target is replaced; one to a device, a pipe or itself is itself replaced.

    Raises:
        OSError: `file` is a folder, or cannot be written; errors name it, not the new file.
    """
    target = Path(os.path.realpath(file))
    file = target if target.is_file() or not target.exists() else file.absolute()
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that write the same file each have their own.
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(file)
            sync(file.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(file)
        raise


def half_written(directory: Path, names: str) -> Iterator[Path]:
    """What killed processes left of files in `directory` whose names match the pattern `names`,
    and what others are writing now."""
    return directory.glob(f".{names}*.tmp")


class _Tried(Exception):
    """Ends a block that replaces nothing."""


def try_writing(*files: Path) -> None:
    """Raise what `replacing` would, so that no work is done in vain; the files stay."""
    for file in files:
        with contextlib.suppress(_Tried), replacing(file) as temporary:
            temporary.touch()
            raise _Tried


def sync(file: Path) -> None:
    """Flush a file, or a directory's entries if its file system can, to disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in MISSING_CALL or not file.is_dir():
            raise
    finally:
        os.close(descriptor)


def refuse_strangers(directory: Path, names: Iterable[str], flag: str) -> None:
    """Raise UserError if `directory`, which `flag` names, has files called `names`, and nobody has
    used it yet, so that they are of another program or a user's own."""
    for name in names:
        if os.path.lexists(directory / name) and not os.path.lexists(directory / LOCK):
            raise UserError(
                f"{directory / name} is not of this program and would be replaced: choose another "
                f"{flag}, or move it away"
            )


@contextlib.contextmanager
def locked(file: Path, refusal: str | None = None) -> Iterator[None]:
    """Let one process at a time into the block, by locking `file`, which is created. The system
    frees the lock of one that dies.

    On a file system without locks, with a note, the processes of this machine alone.

    Args:
        refusal: the message if another process is in it; None waits for it.

    Raises:
        UserError: another process is in it, and there is a `refusal`.
    """
    try:
        lock = _acquired(file, timeout=0 if refusal else -1)
    except Timeout:
        raise UserError(refusal or "") from None
    with lock:
        yield


def _acquired(file: Path, timeout: int) -> contextlib.AbstractContextManager:
    try:
        return FileLock(file, fallback_to_soft=False).acquire(timeout)
    except OSError as error:
        if error.errno not in MISSING_CALL:
            raise
    note = f"note: the file system of {file.parent} has no locks: use it from one machine at a time"
    print(printable(note), file=sys.stderr)
    user = os.getuid() if hasattr(os, "getuid") else ""  # not on Windows
    local = f"simclr-clusters-{user}-{json_digest(str(file.resolve()))}.lock"
    return FileLock(Path(tempfile.gettempdir(), local)).acquire(timeout)


def require_space(folder: Path, needed: int, what: str, flag: str) -> None:
    """Raises UserError if `folder` has no room for `needed` bytes of `what`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB more in {folder}, which has {free / 1e9:.1f} GB "
            f"free: make room, or name another directory with {flag}"
        )
