"""One large file over HTTP, through connections that break.

Each attempt asks for the bytes that are still missing (RFC 9110, section 14). Whether attempts
fetched parts of the same file is for the caller's checksum to find out.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as ReadTimeout

from src.runtime.cli import RunError, UserError, progress

RETRIED = (408, 425, 429)
"""Status codes of refusals that pass, besides every 5xx."""


class DownloadError(RunError):
    """The download failed; the message is the reason."""


class _Interrupted(Exception):
    """This attempt failed; the next one may succeed."""


@dataclass(frozen=True)
class RetryPolicy:
    timeout: float = 30.0
    """Seconds for which a connection may stay silent."""
    attempts: int = 8
    """How many attempts in a row may fail without a new byte."""
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
    most, failures = size_of(file), 0
    while True:
        try:
            return _attempt(url, file, policy.timeout)
        except _Interrupted as reason:
            failures = 1 if size_of(file) > most else failures + 1
            most = max(most, size_of(file))
            if failures >= policy.attempts:
                raise DownloadError(f"{reason}, after {failures} attempts in a row") from None
            pause = min(policy.pause * 2 ** (failures - 1), 60)
            print(f"{reason}; trying again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _attempt(url: str, file: Path, timeout: float) -> bool:
    """Use one connection; returns whether `file` also holds bytes from an earlier one."""
    have = size_of(file)
    headers = {"User-Agent": "simclr-clusters", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            return _receive(response, file, have)
    except (MissingSchema, InvalidSchema, InvalidURL) as error:
        raise UserError(f"--url {url}: not an http:// or https:// address ({error})") from None
    except requests.ConnectionError as error:
        cause: BaseException = error
        while cause.__context__:
            cause = cause.__context__
        reason = getattr(cause, "strerror", None) or cause
        # Before the first byte, there is probably no network.
        failure = _Interrupted if have else DownloadError
        raise failure(f"{url} cannot be reached ({reason})") from None
    except (requests.Timeout, ReadTimeout):
        raise _Interrupted("the server stopped responding") from None
    except (requests.RequestException, HTTPError) as error:
        reason = type(error).__name__
        raise _Interrupted(f"the connection ended at {size_of(file):,} bytes ({reason})") from None


def _receive(response: requests.Response, file: Path, have: int) -> bool:
    code, content_range = response.status_code, response.headers.get("Content-Range", "")
    if code in RETRIED or code >= 500:
        raise _Interrupted(f"{response.url} answers {code} {response.reason}")
    if code not in (200, 206, 416):
        raise DownloadError(f"{response.url} answers {code} {response.reason}")
    if code == 200:  # also from a server that ignores Range
        have = 0
    elif content_range == f"bytes */{have}":  # nothing follows the last byte
        return True
    elif not content_range.startswith(f"bytes {have}-"):
        file.unlink(missing_ok=True)
        raise _Interrupted("the file on the server has changed")
    length = response.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else None
    bar = progress(total=total, initial=have, desc="downloading", unit="B", unit_scale=True)
    with bar, file.open("ab" if have else "wb") as out:
        while block := response.raw.read1(1 << 18):  # what has arrived, not a full block
            out.write(block)
            bar.update(len(block))
    return have > 0
