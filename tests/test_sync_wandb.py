"""`src/sync_wandb.py` against a server on this machine."""

import os
from pathlib import Path

import pytest

from tests.helpers.fake_wandb_server import FakeServer
from tests.helpers.processes import start_tracked, track
from tests.helpers.tracked_run import distinct, expected_rows, own, segments


def sync(directory: Path, env: dict[str, str], *arguments: str) -> tuple[int, list[str], str]:
    """Its exit code, the lines of its standard output, and its standard error."""
    process = start_tracked(env, "src/sync_wandb.py", *arguments, cwd=directory)
    out, errors = process.communicate(timeout=60)
    return process.wait(), out.splitlines(), errors


def damaged_run(directory: Path) -> Path:
    log = directory / "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"garbage")
    return log.parent


def test_an_interrupted_run_arrives_as_one_from_another_place(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    """Next to a damaged one, and after a server that refused both."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    track(here, online, mode="offline", pause=0.2, kill_after=3)
    (log,) = segments(here)
    os.truncate(log, log.stat().st_size - 20)  # a kill in the middle of writing
    track(here, online, mode="offline", from_epoch=1, epochs=4)
    damaged_run(here)
    (here / "wandb").rename(there / "wandb")
    names = [f"wandb/{log.parent.name}" for log in segments(there)]

    server.reply = {"errors": [{"message": "project is read-only"}]}
    code, lines, _ = sync(there, online)
    assert code == 1
    for name, line in zip(names, lines[:3], strict=True):
        assert line.startswith(f"{name}: did NOT arrive: ")
    assert lines[3:] == ["0 of 3 arrived"]

    server.reply = {}
    code, lines, errors = sync(there, online)
    assert (code, errors) == (1, "")
    assert lines[1:] == [
        f"{names[1]}: arrived, up to where it was killed",
        f"{names[2]}: arrived",
        "2 of 3 arrived",
    ]
    assert distinct([own(row) for row in server.rows]) == distinct(expected_rows(4))

    (there / names[0]).rename(there / "damaged")
    assert sync(there, online) == (0, ["nothing to sync in wandb"], "")


@pytest.mark.parametrize(
    ("variables", "directory", "reason"),
    [
        ({"WANDB_API_KEY": ""}, None, "cannot sync 1 run(s): no key"),
        ({"WANDB_MODE": "Offline"}, None, "cannot sync 1 run(s): WANDB_MODE: not a valid"),
        ({}, ".", ". is not a run directory"),
    ],
)
def test_why_nothing_can_arrive(
    variables: dict[str, str], directory: str | None, reason: str, tmp_path: Path,
    online: dict[str, str],
) -> None:  # fmt: skip
    run = directory or str(damaged_run(tmp_path))
    code, lines, errors = sync(tmp_path, online | variables, run)
    assert (code != 0, lines) == (True, [])
    assert errors.startswith(f"sync_wandb.py: error: {reason}")
