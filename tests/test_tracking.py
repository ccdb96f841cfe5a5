"""Runs `tracked_run.py` as a person would and reads back what W&B's own viewer finds."""

import json
import os
import pty
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from src.storage.metrics_log import MetricsLog
from tests.fake_wandb_server import FakeServer
from tests.tracking_tools import (
    KEY,
    QUICK,
    assert_trained,
    command,
    expected_rows,
    in_order,
    inspect,
    online,
    rows,
    seconds_to,
    segments,
    track,
    uploaded,
    warnings,
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
        assert [record["step"] for record in resumed.earlier] == [1, 2, 3]
        resumed.write({"kind": "step", "step": 3, "loss": float("nan")})
        lines = file.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
        assert json.loads(lines[-1])["loss"] is None
        assert list(file.parent.iterdir()) == [file]


def test_step_0_starts_the_metrics_afresh(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "step", "step": 1}\n')
    with MetricsLog(file, 0) as log:
        assert log.earlier == []
        assert file.read_text() == ""


# An offline run


def test_an_offline_run_holds_everything(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment, mode="offline", pictures=True)
    assert_trained(run, tmp_path)
    (log,) = segments(tmp_path)
    assert f"W&B: offline run in {os.path.relpath(log.parent)}, sync with: make sync" in run.stdout
    assert warnings(run) == []

    found = inspect(log, environment)
    of_type = Counter(record["type"] for record in found)
    assert of_type["exit"] == 1
    assert of_type["artifact"] == 0  # it could not be synced from another machine
    about = next(record["run"] for record in found if record["type"] == "run")
    assert about["run_group"] == "a group"
    assert about["job_type"] == "train"
    config = about["config"]["update"]
    assert config.items() >= {"data_dir": "dataset", "commit": "abc", "fingerprint": "def"}.items()
    axes = {
        record["metric"]["glob_name"]: record["metric"]["step_metric"]
        for record in found
        if record["type"] == "metric" and "step_metric" in record["metric"]
    }
    assert axes == {"train/*": "train/step", "epoch/*": "epoch", "pca/*": "pca/component"}

    *training, quality, variance, figure, table = rows(tmp_path, environment)
    assert training == expected_rows(3)
    assert quality == {"test/hungarian_accuracy": 0.5, "test/nmi": 0.25}
    assert variance == {"pca/component": 1, "pca/cumulative": 0.75}
    files = log.parent / "files"
    assert (files / figure["figures/confusion.path"]).read_bytes().startswith(b"\x89PNG")
    page = (files / table["examples.path"]).read_text()
    assert "data:image/png;base64," in page
    assert "&lt;cat&gt;" in page


def test_killed_twice_and_resumed_is_one_history(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    options: dict = {"mode": "offline", "run_id": "abcd1234", "pause": 0.05, "epochs": 30}
    for start, killed in ((0, 9), (4, 15)):
        run = track(tmp_path, environment, **options, from_epoch=start, kill_after=killed)
        assert run.returncode == -signal.SIGKILL
    # A kill in the middle of a write: the tracker has to find its way through that as well.
    os.truncate(segments(tmp_path)[0], segments(tmp_path)[0].stat().st_size - 20)
    last = track(tmp_path, environment, **options | {"pause": 0, "epochs": 20}, from_epoch=12)
    assert_trained(last, tmp_path, epochs=20)
    assert warnings(last) == []
    assert len(segments(tmp_path)) == 3
    logged = rows(tmp_path, environment)
    assert in_order(logged) == in_order(expected_rows(20))


def test_a_run_whose_segments_were_removed_is_not_logged_again(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    track(tmp_path, environment, mode="disabled", epochs=8)
    assert not segments(tmp_path)
    run = track(tmp_path, environment, mode="offline", run_id="abcd1234", from_epoch=5, epochs=10)
    assert_trained(run, tmp_path, epochs=10)
    assert rows(tmp_path, environment) == expected_rows(10)[16:]


def test_a_run_that_was_not_tracked_before_is_logged_whole(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    track(tmp_path, environment, mode="disabled", epochs=3)
    assert_trained(track(tmp_path, environment, from_epoch=2, epochs=4), tmp_path, epochs=4)
    assert rows(tmp_path, environment) == expected_rows(4)


# Without a key, an answer, a place to write, or the package


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_no_key_means_offline(mode: str, tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment, mode=mode)
    assert_trained(run, tmp_path)
    said = run.stderr if mode == "online" else run.stdout
    assert said.startswith("W&B: no key (see: wandb login); offline run in")
    assert rows(tmp_path, environment) == expected_rows(3)


def test_no_key_on_a_terminal_asks_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    person, terminal = pty.openpty()
    run = subprocess.Popen(
        command(tmp_path, mode="online"),
        env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(person, 4096):
            shown += part
    except OSError:  # how Linux says that the other side has closed the terminal
        pass
    os.close(person)
    assert run.wait(timeout=30) == 0
    lines = shown.decode().splitlines()
    assert len(lines) == 3, shown
    assert lines[0].startswith("W&B: no key")
    assert lines[2].startswith("finished")


@pytest.mark.parametrize("server_is", ["not there", "silent"])
def test_no_answer_means_offline(
    server_is: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if server_is == "not there":
            listener.close()
        run = track(
            tmp_path, environment | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}, mode="auto"
        )
    assert_trained(run, tmp_path)
    assert f"W&B: {url} does not answer; offline run in" in run.stdout
    assert rows(tmp_path, environment) == expected_rows(3)


def test_a_server_that_refuses_the_run_means_offline(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    server.reply = {"errors": [{"message": "project is read-only"}]}
    run = track(tmp_path, online(environment, server))
    assert_trained(run, tmp_path)
    assert "offline run in" in run.stdout
    assert rows(tmp_path, environment) == expected_rows(3)


def test_a_place_that_cannot_be_written(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "wandb").touch()
    run = track(tmp_path, environment, mode="offline", pictures=True)
    assert_trained(run, tmp_path)
    (warning,) = warnings(run)
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
    assert warnings(run)
    assert all(warning.startswith(reasons) for warning in warnings(run))
    kept = rows(tmp_path, environment)
    assert kept == expected_rows(epochs)[: len(kept)]
    assert len(kept) < 2 * epochs


def test_without_the_package(tmp_path: Path, environment: dict[str, str]) -> None:
    run = track(tmp_path, environment, without_wandb=True, pictures=True)
    assert_trained(run, tmp_path)
    assert warnings(run) == ["W&B: wandb is not installed"]


# Online


def test_online(tmp_path: Path, environment: dict[str, str], server: FakeServer) -> None:
    environment = online(environment, server)
    run = track(tmp_path, environment, run_id="abcd1234")
    assert_trained(run, tmp_path)
    assert f"W&B: online at {server.url}" in run.stdout
    assert warnings(run) == []
    assert uploaded(server) == expected_rows(3)
    assert KEY not in run.stdout
    holding = [f for f in tmp_path.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    assert holding == []


def test_killed_online_and_resumed(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    environment = online(environment, server)
    options: dict = {"run_id": "abcd1234", "epochs": 20}
    run = track(tmp_path, environment, **options, pause=0.02, kill_after=15)
    assert run.returncode == -signal.SIGKILL
    assert server.rows == []  # W&B sends every 15 seconds
    for row in expected_rows(8)[:-1]:  # as if the kill had come after the step of epoch 8
        server.rows.append(row | {"_step": len(server.rows)})
        server.summary = json.dumps(json.loads(server.summary) | server.rows[-1])
    run = track(tmp_path, environment, **options, from_epoch=12)
    assert_trained(run, tmp_path, epochs=20)
    assert warnings(run) == []
    assert uploaded(server) == expected_rows(20)
    assert [row["_step"] for row in server.rows] == list(range(40))


def test_a_server_that_dies_in_the_middle(
    tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    environment = online(environment, server)
    quick = QUICK | {"FINISH_SECONDS": 6.0}
    arguments = command(tmp_path, run_id="abcd1234", epochs=8, pause=0.2, seconds=quick)
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    shown = process.stdout.readline() + process.stdout.readline()  # it has started
    server.stop()
    rest, errors = process.communicate(timeout=60)
    run = subprocess.CompletedProcess(arguments, process.returncode, shown + rest, errors)
    assert_trained(run, tmp_path, epochs=8)
    assert seconds_to("finished", run) < quick["FINISH_SECONDS"] + 2
    (log,) = segments(tmp_path)
    mend = f"python src/sync_wandb.py {os.path.relpath(log.parent)}"
    assert warnings(run) == [f"W&B: not all was uploaded; later: {mend}"]
    assert rows(tmp_path, environment) == expected_rows(8)


def test_an_answer_that_comes_late_does_not_delay_the_run(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        impatient = QUICK | {"START_SECONDS": 0.1}
        run = track(tmp_path, environment, mode="auto", seconds=impatient)
    assert_trained(run, tmp_path)
    assert seconds_to("started", run) < 1
    assert warnings(run) == ["W&B: no answer yet; the run starts without waiting for it"]
    assert rows(tmp_path, environment) == expected_rows(3)


@pytest.mark.parametrize("harm", ["SIGKILL", "SIGSTOP"])
def test_a_service_that_dies_or_hangs(
    harm: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    quick = QUICK | {"FINISH_SECONDS": 2.0}
    run = track(tmp_path, environment, mode="offline", harm_service=harm, seconds=quick)
    assert_trained(run, tmp_path)
    assert seconds_to("finished", run) < 10
    assert len(warnings(run)) == 1
