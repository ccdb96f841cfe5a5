"""One large file over HTTP, through connections that break.

Each attempt asks for the bytes that are still missing (RFC 9110, section 14). Whether attempts
fetched parts of the same file is for the caller's checksum to find out.
"""

import http.client
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.runtime.cli import RunError, UserError, progress

RETRIED = (408, 425, 429)
"""Status codes of refusals that pass, besides every 5xx."""


class DownloadError(RunError):
    """The download failed; the message is the reason."""


class _Interrupted(Exception):
    """This attempt failed; the next one may succeed."""


class _Unreachable(_Interrupted):
    """No server answered at all."""


@dataclass(frozen=True)
class RetryPolicy:
    timeout: float = 30.0
    """Seconds for which a connection may stay silent."""
    attempts: int = 8
    """How many attempts in a row may fail without a new byte."""
    attempts_unreachable: int = 3
    """The same while no server has answered: then there is probably no network."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled before every further one, up to a minute."""


def size_of(file: Path) -> int:
    """Bytes of `file`; 0 if it does not exist."""
    return file.stat().st_size if file.exists() else 0


def fetch(url: str, file: Path, policy: RetryPolicy) -> bool:
    """Download `url` into `file`, continuing after the bytes that `file` already holds.

    Returns:
        Whether several connections contributed. If the checksum is then wrong, the file may have
        changed in between, and a fresh start may help.

    Raises:
        DownloadError: the server refuses, or too many attempts in a row failed.
        UserError: `url` is not an HTTP address.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: it has to start with http:// or https://")
    try:
        urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"--url {url}: {error}") from None
    url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # as a browser does
    most, failures = size_of(file), 0
    answered = most > 0
    while True:
        try:
            return _attempt(url, file, policy.timeout)
        except _Interrupted as reason:
            answered = answered or not isinstance(reason, _Unreachable)
            failures = 1 if size_of(file) > most else failures + 1
            most = max(most, size_of(file))
            if failures >= (policy.attempts if answered else policy.attempts_unreachable):
                raise DownloadError(f"{reason}, after {failures} attempts in a row") from None
            pause = min(policy.pause * 2 ** (failures - 1), 60)
            print(f"{reason}; trying again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _attempt(url: str, file: Path, timeout: float) -> bool:
    """Use one connection; returns whether `file` also holds bytes from an earlier one."""
    have = size_of(file)
    request = urllib.request.Request(url, headers={"User-Agent": "simclr-clusters"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _open(request, timeout) as response:
        content_range = response.headers["Content-Range"] or ""
        if response.status == http.client.OK:  # the server ignores Range
            length = response.headers["Content-Length"] or ""
            have, size = 0, int(length) if length.isdecimal() else None
        elif rest := re.fullmatch(rf"bytes {have}-\d+/(\d+)", content_range):
            size = int(rest[1])
        elif content_range == f"bytes */{have}":  # nothing follows the last byte
            return True
        else:
            file.unlink(missing_ok=True)
            raise _Interrupted("the file on the server has changed")
        _append(response, file, have, size)
    return have > 0


def _append(response: http.client.HTTPResponse, file: Path, have: int, size: int | None) -> None:
    bar = progress(total=size, initial=have, desc="downloading", unit="B", unit_scale=True)
    with bar, file.open("ab" if have else "wb") as out:
        for block in _blocks(response):
            out.write(block)
            have += len(block)
            bar.update(len(block))
    if size is not None and have != size:
        raise _Interrupted(f"the connection ended at {have:,} of {size:,} bytes")


def _open(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error  # type: ignore[return-value]  # a response like others
        error.close()
        reason = f"{request.full_url} answers {error.code} {error.reason}"
        if error.code in RETRIED or error.code >= 500:
            raise _Interrupted(reason) from None
        raise DownloadError(reason) from None
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise _Unreachable(f"{request.host} cannot be reached ({reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _connection_lost(error) from None


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read1(1 << 18):  # what has arrived, not a full block
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _connection_lost(error) from None


def _connection_lost(error: Exception) -> _Interrupted:
    if isinstance(error, TimeoutError):
        return _Interrupted("the server stopped responding")
    return _Interrupted(f"the connection was lost ({error or type(error).__name__})")
