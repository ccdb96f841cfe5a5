"""Downloads from a server that misbehaves, and archives that are damaged or hostile."""

import hashlib
import io
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dataset.load_dataset import load_dataset
from dataset.stl10_archive import Archive, get_stl10
from dataset.transfer import DownloadError, RetryPolicy, fetch
from src.runtime.cli import UserError
from tests.helpers.processes import Script

IMAGE = 3 * 96 * 96
Answer = Callable[[BaseHTTPRequestHandler], object]
QUICK = RetryPolicy(timeout=0.5, attempts=4, pause=0.001)


def stl10_files(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    images = {"train": 3, "test": 2, "unlabeled": 4}
    return {f"{split}_X.bin": rng.bytes(count * IMAGE) for split, count in images.items()} | {
        "train_y.bin": bytes([1, 10, 5]), "test_y.bin": bytes([2, 2]),
        "class_names.txt": b"polar bear\nb\nc\nd\ne\nf\ng\nh\ni\nj\n", "fold_indices.txt": b"0 1 2",
    }  # fmt: skip


def packed(
    files: dict[str, bytes], *extra: tarfile.TarInfo, folder: str = "stl10_binary/"
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


ARCHIVE = packed(stl10_files())
MD5 = hashlib.md5(ARCHIVE).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        answers = self.server.answers
        self.server.ranges.append(self.headers["Range"])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `answers`, the last one again and again."""

    daemon_threads = True
    answers: list[Answer]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/stl10_binary.tar.gz"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def serve(
    content: bytes = ARCHIVE,
    ranges: bool = True,
    send: int | None = None,
    length: int | None = None,
    then: Answer = lambda _: None,
) -> Answer:
    """An answer: at most `send` bytes of `content`, then the connection ends."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers["Range"] or "")
        if wanted and ranges:
            start = int(wanted[1])
            request.send_response(206 if start < len(content) else 416)
            place = f"{start}-{len(content) - 1}" if start < len(content) else "*"
            request.send_header("Content-Range", f"bytes {place}/{len(content)}")
        else:
            request.send_response(200)
        body = content[start:]
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body[:send])
        request.wfile.flush()
        then(request)

    return answer


def refuse(code: int) -> Answer:
    return lambda request: request.send_error(code)


def stall(_: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def cut_off_chunk(request: BaseHTTPRequestHandler) -> None:
    """No length is sent, and the connection ends before the last chunk."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"1388\r\n" + ARCHIVE[:5000] + b"\r\n")


def archive(url: str, md5: str | None = MD5) -> Archive:
    return Archive(url, md5, packed=len(ARCHIVE), unpacked=10 * IMAGE)


def assert_whole(data_dir: Path, files: dict[str, bytes] | None = None) -> None:
    """The folder has STL-10's files, and nothing else is left behind."""
    found = {file.name: file.read_bytes() for file in (data_dir / "stl10_binary").iterdir()}
    assert found == (files or stl10_files())
    assert visible(data_dir) == {"stl10_binary"}


def visible(data_dir: Path) -> set[str]:
    return {file.name for file in data_dir.iterdir() if file.name != ".stl10_binary.lock"}


def download(server: Server, data_dir: Path, *answers: Answer, md5: str | None = MD5) -> None:
    server.answers, server.ranges = list(answers), []
    get_stl10(data_dir, archive(server.url, md5), policy=QUICK)


THIRD = len(ARCHIVE) // 3
PART = {"stl10_binary.tar.gz.part"}
OTHER = packed(stl10_files(seed=1))


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([serve()], [None]),
        # Nothing is requested twice.
        ([serve(send=THIRD)] * 3 + [serve()], [None, *(f"bytes={THIRD * n}-" for n in (1, 2, 3))]),
        ([serve(send=1000), serve(ranges=False)], [None, "bytes=1000-"]),
        # Nothing follows the last byte, although a length was sent that is too long.
        ([serve(length=len(ARCHIVE) + 99), serve()], [None, f"bytes={len(ARCHIVE)}-"]),
        # The file changes in between: one fresh start, also if it is now shorter than what arrived.
        ([serve(OTHER, send=1000), serve()], [None, "bytes=1000-", None]),
        (
            [serve(ARCHIVE + bytes(9), length=len(ARCHIVE) + 99), serve()],
            [None, f"bytes={len(ARCHIVE) + 9}-", None],
        ),
        ([cut_off_chunk, serve()], [None, "bytes=5000-"]),
        ([refuse(429), refuse(500), refuse(503), serve()], [None] * 4),
        ([serve(send=1000, then=stall), serve()], [None, "bytes=1000-"]),
        ([serve(send=len(ARCHIVE) // 20)], None),  # many attempts, each of which gets further
    ],
)
def test_what_ends_well(
    server: Server, tmp_path: Path, answers: list[Answer], ranges: list[str | None] | None
) -> None:
    download(server, tmp_path / "data", *answers)
    assert_whole(tmp_path / "data")
    assert ranges in (None, server.ranges)


@pytest.mark.parametrize("path", ["stl10_binary.tar.gz", "mirror/stl10_binary.tar.gz"])
def test_a_later_run_resumes_also_from_a_mirror(server: Server, tmp_path: Path, path: str) -> None:
    with pytest.raises(DownloadError, match="500"):
        download(server, tmp_path, serve(send=1000), refuse(500))
    assert visible(tmp_path) == PART
    server.url = server.url.replace("stl10_binary.tar.gz", path)
    download(server, tmp_path, serve())
    assert server.ranges == ["bytes=1000-"]
    assert_whole(tmp_path)


def test_a_damaged_download_without_checksum_is_not_resumed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a complete \.tar\.gz"):
        download(server, tmp_path, serve(OTHER, send=THIRD), serve(), md5=None)
    assert visible(tmp_path) == set()
    download(server, tmp_path, serve(), md5=None)
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("answer", "message", "attempts", "left"),
    [
        # The first attempt gets somewhere, and no other gets further.
        (serve(send=1000, ranges=False), "connection ended at 1,000 bytes", QUICK.attempts, PART),
        (refuse(500), "500 .*4 attempts in a row", QUICK.attempts, set()),
        (refuse(404), "404", 1, set()),
        (stall, "stopped responding", QUICK.attempts, set()),
        # Complete but wrong: another attempt would get the same file.
        (serve(length=5000, send=5000), "5,000 bytes with the MD5", 1, set()),
        (serve(OTHER), "expected", 1, set()),
    ],
)
def test_what_cannot_be_downloaded_is_an_error(
    server: Server, tmp_path: Path, answer: Answer, message: str, attempts: int, left: set[str]
) -> None:
    with pytest.raises(DownloadError, match=message):
        download(server, tmp_path, answer)
    assert len(server.ranges) == attempts
    assert visible(tmp_path) == left


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("http://127.0.0.1:1/file", DownloadError, r"cannot be reached .*refused"),
        *((url, UserError, "not an http:// or https:// address")
          for url in ("file:///etc/hostname", "stl10.tar.gz", "http://[bad/x.tar.gz")),
    ],
)  # fmt: skip
def test_addresses_that_lead_nowhere(
    tmp_path: Path, url: str, error: type, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(error, match=message):
        fetch(url, tmp_path / "file", QUICK)


def test_too_little_space_is_found_before_anything_is_asked(server: Server, tmp_path: Path) -> None:
    huge = Archive(server.url, "0", packed=10**17, unpacked=10**17)
    with pytest.raises(UserError, match=r"needs 200000000\.0 GB"):
        get_stl10(tmp_path, huge, policy=QUICK)
    assert server.ranges == []


def test_failure_is_explained_and_success_is_final(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"404 .*--archive.*--data-dir.*--dataset digits"):
        download(server, tmp_path, refuse(404))
    for requests in (1, 0):
        download(server, tmp_path, serve())
        assert_whole(tmp_path)
        assert len(server.ranges) == requests


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(then=lambda _: time.sleep(0.2))]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: get_stl10(tmp_path, archive(server.url), policy=QUICK), range(2)))
    assert len(server.ranges) == 1
    assert_whole(tmp_path)


# --- archives -----------------------------------------------------------------------------------


def saved(folder: Path, content: bytes = ARCHIVE) -> Path:
    file = folder / "mine.tar.gz"
    file.write_bytes(content)
    return file


def unpack(folder: Path, content: bytes) -> Path:
    """Returns the directory into which `content` was unpacked; no checksum is expected."""
    get_stl10(folder / "data", archive("", md5=None), saved(folder, content))
    return folder / "data"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 5 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "added",
    [
        member("../train_X.bin"),
        member("/evil/train_X.bin"),
        member("stl10_binary", tarfile.SYMTYPE, "../.."),
        member("stl10_binary/train_X.bin", tarfile.SYMTYPE),
        member("stl10_binary/train_X.bin", tarfile.LNKTYPE, "../../precious"),
        member("stl10_binary/train_X.bin", tarfile.FIFOTYPE),
    ],
    ids=lambda added: f"{added.name} {added.type.decode()}",
)
def test_hostile_archives_write_nothing_outside(tmp_path: Path, added: tarfile.TarInfo) -> None:
    (tmp_path / "precious").write_text("untouched")
    assert_whole(unpack(tmp_path, packed(stl10_files(), added)))
    assert (tmp_path / "precious").read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "precious", "mine.tar.gz"}
    assert not Path("/evil").exists()


@pytest.mark.parametrize("folder", ["", "./", "some/where/else/"])
def test_repacked_and_partial_archives_are_taken_by_shape(tmp_path: Path, folder: str) -> None:
    files = {name: data for name, data in stl10_files().items() if name.startswith("train")}
    content = packed(files | {"notes.md": b"hello"}, folder=folder)
    assert_whole(unpack(tmp_path, content), files)
    assert (tmp_path / "mine.tar.gz").read_bytes() == content  # the person's copy stays


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ARCHIVE[: len(ARCHIVE) // 2], "not a complete .tar.gz"),
        (b"<html>Sign in to this network</html>", "not a complete .tar.gz"),
        (ARCHIVE[:9000] + bytes(99) + ARCHIVE[9099:], "not a complete .tar.gz"),
        (packed({"readme.txt": b"hello"}), "holds no train_X.bin"),
        (packed({"train_X.bin": b"1234"}), "has 4 bytes, not a positive multiple of 27,648"),
    ],
)
def test_bad_archives_leave_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        unpack(tmp_path, content)
    assert visible(tmp_path / "data") == set()


def test_remains_of_a_killed_unpacking_do_not_count(tmp_path: Path) -> None:
    remains = tmp_path / "data" / ".stl10_binary.tmp"
    remains.mkdir(parents=True)
    (remains / "train_X.bin").write_bytes(bytes(IMAGE))
    with pytest.raises(UserError, match=r"no STL-10 images .*download_dataset\.py"):
        load_dataset("stl10", tmp_path / "data")
    assert_whole(unpack(tmp_path, ARCHIVE))


def test_something_else_in_the_way_is_kept(tmp_path: Path) -> None:
    thesis = tmp_path / "data" / "stl10_binary" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    with pytest.raises(UserError, match="in the way"):
        unpack(tmp_path, ARCHIVE)
    assert list(thesis.parent.iterdir()) == [thesis]


# --- the script ---------------------------------------------------------------------------------


DOWNLOAD = "dataset/download_dataset.py"


def test_script_downloads_says_so_and_is_done_at_once_the_second_time(
    server: Server, tmp_path: Path, script: Script
) -> None:
    server.answers = [serve(send=1000), serve()]
    flags = ("--data-dir", tmp_path, "--url", server.url, "--md5", MD5)
    first = script(DOWNLOAD, *flags)
    assert first.returncode == 0, first.stderr
    assert "4 unlabeled, 3 train, 2 test images" in first.stdout
    assert_whole(tmp_path)
    server.ranges = []
    second = script(DOWNLOAD, *flags)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert server.ranges == []


def test_the_folder_of_stl10_is_not_put_into_itself(tmp_path: Path, script: Script) -> None:
    flags = ("--data-dir", tmp_path / "data/stl10_binary", "--archive", saved(tmp_path))
    for _ in range(2):
        run = script(DOWNLOAD, *flags, "--md5", "None")
        assert run.returncode == 0, run.stderr
        assert_whole(tmp_path / "data")


def test_script_errors_are_one_line(server: Server, tmp_path: Path, script: Script) -> None:
    server.answers = [refuse(404)]
    for flags, code, message in (
        (("--url", server.url), 1, r"404 .*--url.*--archive[^\n]*\n$"),
        (("--archive", tmp_path / "none.tar.gz"), 2, "no such file"),
        (("--archive", saved(tmp_path)), 2, "--md5 None"),
    ):
        failed = script(DOWNLOAD, "--data-dir", tmp_path, *flags)
        assert failed.returncode == code
        assert re.search(message, failed.stderr)
        assert "Traceback" not in failed.stderr
