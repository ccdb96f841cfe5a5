"""`src/sync_wandb.py` against a server on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.runtime.cli import UserError
from src.sync_wandb import SyncConfig, main
from tests.fake_wandb_server import FakeServer
from tests.tracked_run import ROOT, distinct, expected_rows, own, segments, track


def sync(
    directory: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "src/sync_wandb.py"), *arguments],
        env=environment, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


def damaged_run(directory: Path) -> Path:
    log = directory / "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"garbage")  # just now, as if it were still running
    return log.parent


def test_an_interrupted_run_arrives_as_one_from_another_place(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    """Next to a damaged one, and after a server that refused both."""
    here, there = tmp_path / "here", tmp_path / "there"
    track(here, online, mode="offline", pause=0.2, kill_after=3)
    (log,) = segments(here)
    os.truncate(log, log.stat().st_size - 20)  # a kill in the middle of writing
    track(here, online, mode="offline", from_epoch=1, epochs=4)
    damaged = damaged_run(here).name
    there.mkdir()
    (here / "wandb").rename(there / "wandb")
    _, first, second = (f"wandb/{log.parent.name}" for log in segments(there))

    server.reply = {"errors": [{"message": "project is read-only"}]}
    refused = sync(there, online)
    assert refused.returncode == 1
    lines = refused.stdout.splitlines()
    assert lines[0].startswith(f"wandb/{damaged}: did NOT arrive: ")
    assert lines[1] == f"{first}: still running, sync it when it has ended"
    assert lines[2].startswith(f"{second}: did NOT arrive: ")
    assert lines[3:] == ["0 of 3 arrived"]

    server.reply = {}
    os.utime(segments(there)[1], (time.time() - 120,) * 2)
    later = sync(there, online)
    assert later.stdout.splitlines()[1:] == [
        f"{first}: arrived, up to where it was killed",
        f"{second}: arrived",
        "2 of 3 arrived",
    ]
    assert (later.returncode, later.stderr) == (1, "")
    assert distinct([own(row) for row in server.rows]) == distinct(expected_rows(4))

    (there / "wandb" / damaged).rename(there / "damaged")
    again = sync(there, online)
    assert (again.returncode, again.stdout) == (0, "nothing to sync in wandb\n")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"WANDB_API_KEY": ""}, "no key (see: wandb login)"),
        ({}, "http://127.0.0.1:9 does not answer"),
        ({"WANDB_BASE_URL": "127.0.0.1:9"}, "WANDB_BASE_URL: not a valid setting of W&B"),
    ],
)
def test_why_nothing_can_arrive(
    variables: dict[str, str], reason: str, tmp_path: Path, online: dict[str, str]
) -> None:
    run = damaged_run(tmp_path)
    environment = online | {"WANDB_BASE_URL": "http://127.0.0.1:9"} | variables
    process = sync(tmp_path, environment, str(run))
    assert process.returncode == 1
    assert process.stderr == f"sync_wandb.py: error: cannot sync 1 run(s): {reason}\n"
    assert process.stdout == ""


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        main(SyncConfig(runs=(tmp_path,)))
