"""Runs `tracked_run.py` and reads back what W&B's own viewer finds."""

import json
import os
import pty
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.storage.metrics_log import MetricsLog
from tests.helpers import HELPERS
from tests.helpers.fake_wandb_server import FakeServer
from tests.helpers.processes import start_tracked, track
from tests.helpers.tracked_run import (
    KEY,
    assert_trained,
    distinct,
    expected_rows,
    history,
    inspect,
    own,
    rows,
    segments,
)


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        for step in (1, 2, 3):
            log.write({"kind": "step", "step": step, "epoch": 0.5, "loss": 1.5})
    with file.open("a") as torn:
        torn.write('{"kind": "step", "st')
    with MetricsLog(file, 2) as resumed:
        resumed.write({"kind": "step", "step": 3, "loss": float("nan")})
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.5), (2, 1.5), (3, None)]
    with MetricsLog(file, 0):
        assert file.read_text() == ""


def test_an_offline_run_holds_everything(tmp_path: Path, environment: dict[str, str]) -> None:
    out, errors = track(tmp_path, environment, mode="offline")
    assert_trained(tmp_path)
    (log,) = segments(tmp_path)
    assert f"W&B: offline run in wandb/{log.parent.name}, sync with: make sync" in out
    assert errors == ""

    inspected = inspect(log, environment)
    assert {"exit"} <= {record["type"] for record in inspected}
    about = next(record["run"] for record in inspected if record["type"] == "run")
    assert (about["run_group"], about["job_type"]) == ("a group", "train")
    assert about["config"]["update"].items() >= {"data_dir": "dataset", "epochs": 3}.items()
    metrics = [record["metric"] for record in inspected if record["type"] == "metric"]
    axes = {m["glob_name"]: m["step_metric"] for m in metrics if "step_metric" in m}
    assert axes == {"train/*": "train/step", "epoch/*": "epoch", "pca/*": "pca/component"}

    *training, quality, figure, table = history(inspected)
    assert training == expected_rows(3)
    assert quality == {"test/nmi": 0.25}
    files = log.parent / "files"
    assert (files / figure["figure.path"]).read_bytes() == (tmp_path / "figure.png").read_bytes()
    page = (files / table["examples.path"]).read_text()
    assert "data:image/png;base64," in page
    assert "&lt;cat&gt;" in page


@pytest.mark.parametrize(
    ("variables", "reason", "is_wrong"),
    [
        ({"WANDB_API_KEY": ""}, "no key (see: wandb login)", False),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer", False),
        ({"WANDB_BASE_URL": "SILENT"}, "does not answer", False),
        ({}, "project is read-only", False),
        (
            {"WANDB_BASE_URL": "127.0.0.1", "WANDB_MODE": "Offline", "WANDB_DISABLED": "true"},
            "WANDB_BASE_URL, WANDB_MODE, WANDB_DISABLED: not a valid setting",
            True,
        ),
    ],
)
def test_offline_where_online_cannot_be(
    variables: dict[str, str], reason: str, is_wrong: bool, tmp_path: Path,
    online: dict[str, str], server: FakeServer,
) -> None:  # fmt: skip
    server.reply = {"errors": [{"message": "project is read-only"}]}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        given = {name: value.replace("SILENT", silent_url) for name, value in variables.items()}
        outputs = track(tmp_path, online | given)
    (line,) = (line for line in outputs[is_wrong].splitlines() if "W&B" in line)
    assert reason in line
    assert "; offline run in" in line
    assert outputs[1].splitlines() == ([line] if is_wrong else [])
    assert KEY not in "".join(outputs)
    assert_trained(tmp_path)
    assert rows(tmp_path, online) == distinct(expected_rows(3))


def test_no_key_on_a_terminal_asks_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    person, terminal = pty.openpty()
    program = [
        sys.executable,
        HELPERS / "tracked_run.py",
        tmp_path,
        '{"mode": "online"}',
    ]
    run = subprocess.Popen(
        program, env=environment, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    assert run.communicate(timeout=30)[1].startswith("W&B: no key")
    assert os.read(person, 4096).split() == [b"started"]
    os.close(person)
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({}, None),  # WANDB_MODE=disabled: the user knows
        ({"without_wandb": True}, "wandb is not installed; nothing is recorded"),
        ({"mode": "offline", "in_place_of_directory": True}, "/wandb'; nothing is recorded"),
        ({"mode": "offline", "largest_file": 1000}, "File too large"),
        ({"mode": "offline", "kill_service": True, "pause": 0.1}, ""),
    ],
)
def test_a_training_without_tracking_and_one_warning(
    options: dict[str, object], warning: str | None, tmp_path: Path, environment: dict[str, str]
) -> None:
    options = dict(options)
    if options.pop("in_place_of_directory", False):
        (tmp_path / "wandb").touch()
    _, errors = track(tmp_path, environment | {"WANDB_MODE": "disabled"}, **options)
    assert_trained(tmp_path)
    if warning is None:
        assert errors == ""
        assert not (tmp_path / "wandb").exists() or not any((tmp_path / "wandb").iterdir())
        return
    (line,) = errors.splitlines()
    assert line.startswith("W&B: ")
    assert warning in line


def test_a_full_disk_in_the_middle_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    _, errors = track(tmp_path, environment, mode="offline", epochs=40, largest_file=9000)
    assert_trained(tmp_path, epochs=40)
    (log,) = segments(tmp_path)
    assert errors == (f"W&B: wandb/{log.parent.name} lacks its last rows: the disk may be full\n")


def test_a_long_run_is_complete(tmp_path: Path, environment: dict[str, str]) -> None:
    assert track(tmp_path, environment, mode="offline", epochs=60)[1] == ""
    (log,) = segments(tmp_path)
    assert log.stat().st_size > 2**15  # a block of its format


def test_the_run_of_a_sweep_is_the_one_to_resume(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    sweep = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "ofsweep1"}
    track(tmp_path, environment | sweep, mode="offline")
    (log,) = segments(tmp_path)
    assert log.name == "run-ofsweep1.wandb"
    assert (tmp_path / "run_id").read_text() == "ofsweep1"


def test_a_run_elsewhere_can_be_synced_by_the_printed_command(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    (tmp_path / "here").mkdir()
    arguments = (str(tmp_path), '{"mode": "offline"}')
    run = start_tracked(online, "tests/helpers/tracked_run.py", *arguments, cwd=tmp_path / "here")
    out, _ = run.communicate(timeout=60)
    python, script, *flags = shlex.split(out.partition("sync with: ")[2].splitlines()[0])
    assert (python, script) == ("python", "src/sync_wandb.py")
    sync = start_tracked(online, script, *flags, cwd=tmp_path / "here")
    assert "1 of 1 arrived" in sync.communicate(timeout=60)[0]
    assert distinct([own(row) for row in server.rows]) == distinct(expected_rows(3))


def test_killed_online_and_resumed_nothing_is_missing(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    track(tmp_path, online, pause=0.5, epochs=8, kill_after=5)
    out, errors = track(tmp_path, online, from_epoch=2, epochs=6)
    assert_trained(tmp_path, epochs=6)
    assert f"W&B: online at {server.url}" in out
    assert errors == ""
    assert distinct([own(row) for row in server.rows]) == distinct(expected_rows(6))
    assert server.run_names == {"abcd1234"}
    holding = [f for f in tmp_path.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    assert holding == []


def test_a_server_that_dies_in_the_middle(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    arguments = (str(tmp_path), '{"epochs": 8, "pause": 0.2}')
    process = start_tracked(online, "tests/helpers/tracked_run.py", *arguments, cwd=tmp_path)
    deadline = time.monotonic() + 20
    while not server.rows and time.monotonic() < deadline:
        time.sleep(0.02)
    server.stop()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert_trained(tmp_path, epochs=8)
    (log,) = segments(tmp_path)
    remedy = f"python src/sync_wandb.py wandb/{log.parent.name}"
    assert errors == f"W&B: not everything was uploaded; later: {remedy}\n"
    assert rows(tmp_path, online) == distinct(expected_rows(8))
