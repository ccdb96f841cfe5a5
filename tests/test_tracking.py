"""Runs `tracked_run.py` as a person would and reads back what W&B's own viewer finds."""

import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from src.storage.metrics_log import MetricsLog
from tests.fake_wandb_server import FakeServer
from tests.tracked_run import (
    KEY,
    assert_trained,
    command,
    distinct,
    expected_rows,
    history,
    inspect,
    own,
    rows,
    segments,
    track,
)

# metrics.jsonl


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        for step in (1, 2, 3):
            log.write({"kind": "step", "step": step, "loss": 1.5})
    with file.open("a") as torn:
        torn.write('{"kind": "step", "st')

    with MetricsLog(file, 2) as resumed:
        resumed.write({"kind": "step", "step": 3, "loss": float("nan")})
        lines = file.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
        assert json.loads(lines[-1])["loss"] is None
        assert list(file.parent.iterdir()) == [file]
    with MetricsLog(file, 0):
        assert file.read_text() == ""


# An offline run


def test_an_offline_run_holds_everything(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment, mode="offline", pictures=True)
    assert_trained(run, tmp_path)
    (log,) = segments(tmp_path)
    assert f"W&B: offline run in {os.path.relpath(log.parent)}, sync with: make sync" in run.stdout
    assert run.stderr == ""

    inspected = inspect(log, environment)
    of_type = Counter(record["type"] for record in inspected)
    assert of_type["exit"] == 1
    assert of_type["artifact"] == 0  # it could not be synced from another machine
    about = next(record["run"] for record in inspected if record["type"] == "run")
    assert (about["run_group"], about["job_type"]) == ("a group", "train")
    assert about["config"]["update"].items() >= {"data_dir": "dataset", "commit": "abc"}.items()
    axes = {
        record["metric"]["glob_name"]: record["metric"]["step_metric"]
        for record in inspected
        if record["type"] == "metric" and "step_metric" in record["metric"]
    }
    assert axes == {"train/*": "train/step", "epoch/*": "epoch", "pca/*": "pca/component"}

    *training, quality, variance, figure, table = history(inspected)
    assert training == expected_rows(3)
    assert quality == {"test/hungarian_accuracy": 0.5, "test/nmi": 0.25}
    assert variance == {"pca/component": 1, "pca/cumulative": 0.75}
    files = log.parent / "files"
    assert (files / figure["figures/confusion.path"]).read_bytes().startswith(b"\x89PNG")
    page = (files / table["examples.path"]).read_text()
    assert "data:image/png;base64," in page
    assert "&lt;cat&gt;" in page


def test_killed_offline_and_resumed_nothing_is_missing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    killed = track(tmp_path, environment, mode="offline", pause=0.4, epochs=6, kill_after=5)
    assert killed.returncode == -signal.SIGKILL
    last = track(tmp_path, environment, mode="offline", from_epoch=2, epochs=6)
    assert_trained(last, tmp_path, epochs=6)
    assert last.stderr == ""
    assert len(segments(tmp_path)) == 2
    assert distinct(rows(tmp_path, environment)) == distinct(expected_rows(6))


# Without a key, an answer, a place to write, or the package


def test_no_key_means_offline(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment)
    assert_trained(run, tmp_path)
    assert run.stdout.startswith("W&B: no key (see: wandb login); offline run in")
    assert run.stderr == ""
    assert rows(tmp_path, environment) == expected_rows(3)


def test_no_key_on_a_terminal_asks_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    person, terminal = pty.openpty()
    run = subprocess.Popen(
        command(tmp_path, mode="online"),
        env=environment, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    assert run.communicate(timeout=30)[1].startswith("W&B: no key")
    assert os.read(person, 4096).split() == [b"started"]
    os.close(person)
    assert run.returncode == 0


@pytest.mark.parametrize("server_is", ["not there", "silent"])
def test_no_answer_means_offline(
    server_is: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if server_is == "not there":
            listener.close()
        run = track(tmp_path, environment | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY})
    assert_trained(run, tmp_path)
    assert f"W&B: {url} does not answer; offline run in" in run.stdout
    assert rows(tmp_path, environment) == expected_rows(3)


def test_a_server_that_refuses_the_run_means_offline(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    server.reply = {"errors": [{"message": "project is read-only"}]}
    run = track(tmp_path, online)
    assert_trained(run, tmp_path)
    assert "offline run in" in run.stdout
    assert rows(tmp_path, online) == expected_rows(3)


def test_invalid_variables_are_named_and_the_run_is_offline(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    wrong = {"WANDB_MODE": "Offline", "WANDB_BASE_URL": "127.0.0.1:80", "WANDB_DISABLED": "true"}
    run = track(tmp_path, online | wrong)
    assert_trained(run, tmp_path)
    (warning,) = run.stderr.splitlines()
    assert all(name in warning for name in wrong)
    assert "offline run in" in warning
    assert KEY not in warning
    assert rows(tmp_path, online) == expected_rows(3)


def test_disabled_by_its_own_variable(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment | {"WANDB_MODE": "disabled"})
    assert_trained(run, tmp_path)
    assert "disabled by WANDB_MODE" in run.stderr
    assert not segments(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "wandb").touch()
    run = track(tmp_path, environment, mode="offline", pictures=True)
    assert_trained(run, tmp_path)
    (warning,) = run.stderr.splitlines()
    assert str(tmp_path / "wandb") in warning


@pytest.mark.parametrize(("kilobytes", "epochs"), [(1, 3), (12, 40)])
def test_a_disk_that_fills_up(
    kilobytes: int, epochs: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    """From the start, or in the middle of the run: no file can get longer than this."""
    limits = f'ulimit -f {kilobytes}; trap "" XFSZ; exec "$@"'
    arguments = command(tmp_path, mode="offline", epochs=epochs, pause=0.02, pictures=True)
    run = subprocess.run(
        ["bash", "-c", limits, "limited", *arguments],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert_trained(run, tmp_path, epochs)
    (log,) = segments(tmp_path)
    reasons = ("W&B: [Errno 27] File too large", f"W&B: {os.path.relpath(log.parent)} is cut short")
    assert run.stderr
    assert all(warning.startswith(reasons) for warning in run.stderr.splitlines())
    kept = rows(tmp_path, environment)
    assert kept == expected_rows(epochs)[: len(kept)]
    assert len(kept) < 2 * epochs


def test_without_the_package(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment, without_wandb=True, pictures=True)
    assert_trained(run, tmp_path)
    assert run.stderr == "W&B: wandb is not installed\n"


# Online


def test_killed_online_and_resumed_nothing_is_missing(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    killed = track(tmp_path, online, pause=0.5, epochs=8, kill_after=5)
    assert killed.returncode == -signal.SIGKILL
    run = track(tmp_path, online, from_epoch=2, epochs=6)
    assert_trained(run, tmp_path, epochs=6)
    assert f"W&B: online at {server.url}" in run.stdout
    assert run.stderr == ""
    assert distinct([own(row) for row in server.rows]) == distinct(expected_rows(6))
    assert server.run_names == {"abcd1234"}
    assert KEY not in run.stdout
    holding = [f for f in tmp_path.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    assert holding == []


def test_a_server_that_dies_in_the_middle(
    tmp_path: Path, online: dict[str, str], server: FakeServer
) -> None:
    process = subprocess.Popen(
        command(tmp_path, epochs=8, pause=0.2),
        env=online, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("W&B: online at")
    server.stop()
    stopped = time.monotonic()
    out, errors = process.communicate(timeout=60)
    assert time.monotonic() - stopped < 20
    run = subprocess.CompletedProcess((), process.returncode, out, errors)
    assert_trained(run, tmp_path, epochs=8)
    (log,) = segments(tmp_path)
    remedy = f"python src/sync_wandb.py {os.path.relpath(log.parent)}"
    assert errors == f"W&B: not all was uploaded; later: {remedy}\n"
    assert rows(tmp_path, online) == expected_rows(8)


def test_a_service_that_dies(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment, mode="offline", kill_service=True, pause=0.1)
    assert_trained(run, tmp_path)
    assert len(run.stderr.splitlines()) == 1
