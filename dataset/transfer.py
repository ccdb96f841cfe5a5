"""One large file over HTTP, through connections that break.

What has arrived stands in `<file>.part`, and `<file>.part.json` says of which version of the file
it is the beginning, so that the next attempt, of this run or of a later one, asks for the rest
(RFC 9110, sections 13.1.5 and 14).
"""

import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from src.runtime.cli import RunError, UserError
from src.storage import artifacts

RETRIED = (408, 425, 429)
"""Refusals that pass, besides every 5xx."""


class DownloadError(RunError):
    """The file did not come; the message is the reason."""


class _Cut(Exception):
    """This attempt failed; the next may not."""


class _Unreachable(_Cut):
    """No server answered at all."""


@dataclass(frozen=True)
class Patience:
    timeout: float = 30.0
    """Seconds for which a connection may stay silent."""
    attempts: int = 8
    """How many in a row may bring nothing new."""
    attempts_unreachable: int = 3
    """The same before anything has answered or arrived: then there is probably no network."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled before every further one, up to a minute."""


@dataclass(frozen=True)
class _Version:
    """What a part is the beginning of."""

    url: str
    validator: str | None
    """A strong ETag or a date, which If-Range compares; None where the server gives neither."""
    size: int | None


def part_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def arrived(file: Path) -> int:
    """Bytes of `file` that need not be asked for again."""
    part = part_of(file)
    return part.stat().st_size if part.exists() and _known(file) else 0


def discard(file: Path) -> None:
    """Forget what has arrived of `file`."""
    part_of(file).unlink(missing_ok=True)
    _notes(file).unlink(missing_ok=True)


def fetch(url: str, file: Path, patience: Patience) -> bool:
    """Bring the part of `file` to its whole length.

    Returns:
        Whether several connections made it: if its checksum is wrong, versions may have been
        mixed, and a fresh start may help.

    Raises:
        DownloadError: the server refuses, or too many attempts in a row brought nothing new.
        UserError: `url` is not one of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: it has to start with http:// or https://")
    try:
        urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"--url {url}: {error}") from None
    url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # a browser takes umlauts, too
    most, failures, answered = arrived(file), 0, False
    while True:
        try:
            return _attempt(url, file, patience.timeout)
        except _Cut as cut:
            answered = answered or most > 0 or not isinstance(cut, _Unreachable)
            failures = 1 if arrived(file) > most else failures + 1
            most = max(most, arrived(file))
            if failures >= (patience.attempts if answered else patience.attempts_unreachable):
                raise DownloadError(f"{cut}, after {failures} attempts in a row") from None
            pause = min(patience.pause * 2 ** (failures - 1), 60)
            print(f"{cut}; trying again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _attempt(url: str, file: Path, timeout: float) -> bool:
    """One connection; returns whether the part holds bytes from before it."""
    have, known = arrived(file), _known(file)
    if known and have and known.size == have:
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "simclr-clusters"})
    if known and have:
        request.add_header("Range", f"bytes={have}-")
        if known.validator and known.url == url:
            request.add_header("If-Range", known.validator)
    with _open(request, timeout) as response:
        if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _is_all(response, file, have)
        if response.status == http.client.PARTIAL_CONTENT:
            size = _size_if_it_continues(response, file, have, known, url)
        else:  # a server that ignores Range, or whose file is no longer the one we began
            have, size = 0, _whole_number(response.headers["Content-Length"])
            discard(file)
        artifacts.write_json(_notes(file), asdict(_Version(url, _validator(response), size)))
        _append(response, file, have, size)
    return have > 0


def _append(response: http.client.HTTPResponse, file: Path, have: int, size: int | None) -> None:
    bar = tqdm(
        total=size, initial=have, desc=file.name, unit="B", unit_scale=True,
        dynamic_ncols=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar, part_of(file).open("ab") as part:
        for block in _blocks(response):
            part.write(block)
            have += len(block)
            bar.update(len(block))
    if size is not None and have != size:
        raise _Cut(f"the connection ended at {have:,} of {size:,} bytes")


def _open(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error  # type: ignore[return-value]  # a response like others
        error.close()
        reason = f"{request.full_url} answers {error.code} {error.reason}"
        if error.code in RETRIED or error.code >= 500:
            raise _Cut(reason) from None
        raise DownloadError(reason) from None
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise _Unreachable(f"{request.host} cannot be reached ({reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_lost(error)) from None


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read1(1 << 18):  # what is there now, not a full block
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_lost(error)) from None


def _lost(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server fell silent"
    return f"the connection was lost ({error or type(error).__name__})"


def _is_all(response: http.client.HTTPResponse, file: Path, have: int) -> bool:
    """Asked for what follows the last byte, a server says so and how long the file is."""
    if re.fullmatch(rf"bytes \*/{have}", response.headers["Content-Range"] or ""):
        return True
    discard(file)
    raise _Cut("the file on the server is another one now")


def _size_if_it_continues(
    response: http.client.HTTPResponse, file: Path, have: int, known: _Version | None, url: str
) -> int:
    """The whole file's size, if what comes is the rest of what we have."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    if content_range and known:
        start, size = map(int, content_range.groups())
        validators = {known.validator, _validator(response)} if known.url == url else set()
        if start == have and known.size in (None, size) and len(validators - {None}) <= 1:
            return size
    discard(file)
    raise _Cut("the file on the server is another one now")


def _validator(response: http.client.HTTPResponse) -> str | None:
    etag = response.headers["ETag"]
    if etag and not etag.startswith("W/"):  # If-Range takes strong ones only
        return etag
    return response.headers["Last-Modified"]


def _whole_number(header: str | None) -> int | None:
    return int(header) if header and header.isdecimal() else None


def _notes(file: Path) -> Path:
    return file.with_name(f"{file.name}.part.json")


def _known(file: Path) -> _Version | None:
    try:
        return _Version(**json.loads(_notes(file).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
