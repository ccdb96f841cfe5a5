"""`src/sync_wandb.py` against a server on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fake_wandb_server import FakeServer
from tests.tracking_tools import (
    ROOT,
    expected_rows,
    in_order,
    online,
    segments,
    track,
    uploaded,
)


def sync(
    directory: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "src/sync_wandb.py"), *arguments],
        env=environment, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


def killed_run(directory: Path, environment: dict[str, str]) -> Path:
    """The log of an offline run of 9 epochs; the kill tore its last record."""
    options: dict = {"mode": "offline", "run_id": "abcd1234", "pause": 0.05}
    track(directory, environment, **options, epochs=10, kill_after=9)
    (log,) = segments(directory)
    os.truncate(log, log.stat().st_size - 20)
    return log


def test_an_interrupted_run_arrives_as_one_from_another_place(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    killed_run(here, environment)
    resume: dict = {"mode": "offline", "run_id": "abcd1234", "from_epoch": 4, "epochs": 12}
    track(here, environment, **resume)
    there.mkdir()
    (here / "wandb").rename(there / "wandb")
    environment = online(environment, server)

    soon = sync(there, environment)
    first, second = (f"wandb/{log.parent.name}" for log in segments(there))
    assert soon.stdout.splitlines() == [
        f"{first}: still running, sync it when it has ended",
        f"{second}: arrived",
        "1 of 2 arrived",
    ]
    assert soon.returncode == 1

    os.utime(segments(there)[0], (time.time() - 120,) * 2)
    later = sync(there, environment)
    assert later.stdout.splitlines() == [
        f"{first}: arrived, up to where it was killed",
        "1 of 1 arrived",
    ]
    assert later.returncode == 0
    assert in_order(uploaded(server)) == in_order(expected_rows(12))

    again = sync(there, environment)
    assert (again.returncode, again.stdout) == (0, "nothing to sync in wandb\n")


def test_what_did_not_arrive_is_said(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    track(tmp_path, environment, mode="offline")
    (log,) = segments(tmp_path)
    server.reply = {"errors": [{"message": "project is read-only"}]}
    refused = sync(tmp_path, online(environment, server))
    assert refused.returncode == 1
    assert f"wandb/{log.parent.name}: did NOT arrive: " in refused.stdout
    assert "0 of 1 arrived" in refused.stdout

    server.reply = {}
    assert sync(tmp_path, online(environment, server)).returncode == 0
    assert uploaded(server) == expected_rows(3)


def test_a_damaged_one_does_not_stop_the_others(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    track(tmp_path, environment, mode="offline")
    damaged = tmp_path / "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb"
    damaged.parent.mkdir()
    damaged.write_bytes(b"garbage")  # just now, as if it were still running
    run = sync(tmp_path, online(environment, server))
    assert run.returncode == 1
    assert f"wandb/{damaged.parent.name}: did NOT arrive: " in run.stdout
    assert "1 of 2 arrived" in run.stdout
    assert run.stderr == ""


def test_without_key_or_server_it_says_so(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    log = killed_run(tmp_path, environment)
    server.stop()
    for settings, reason in (
        (environment, "no key (see: wandb login)"),
        (online(environment, server), f"{server.url} does not answer"),
    ):
        run = sync(tmp_path, settings, str(log.parent))
        assert run.returncode == 1
        assert run.stderr == f"sync_wandb.py: error: cannot sync 1 run(s): {reason}\n"
        assert run.stdout == ""


def test_a_directory_that_is_no_run(tmp_path: Path, environment: dict[str, str]) -> None:
    run = sync(tmp_path, environment, str(tmp_path))
    assert run.returncode == 2
    assert "is not a run directory" in run.stderr
