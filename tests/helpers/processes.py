"""Scripts run as a user runs them."""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from src.storage import checkpoint
from tests.helpers import ROOT
from tests.helpers.script_server import ScriptProcess, ScriptServer

Script = Callable[..., subprocess.CompletedProcess[str]]
Process = ScriptProcess | subprocess.Popen[str]


def environment(**changes: str) -> dict[str, str]:
    """For scripts: one thread, as rounding depends on their number, and no Weights & Biases unless
    a flag asks for it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return {
        **kept, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::DeprecationWarning:__main__", **changes,
    }  # fmt: skip


@functools.cache
def script_server() -> ScriptServer:
    server = ScriptServer(environment())
    atexit.register(server.close)
    return server


def start_python(*arguments: object, cwd: Path = ROOT, **changes: str) -> Process:
    """A script and its flags, or other arguments of Python; `changes` are environment variables."""
    first, *others = map(str, arguments)
    if first.endswith(".py"):
        return script_server().start(first, others, cwd, environment(**changes))
    return subprocess.Popen(
        [sys.executable, first, *others], cwd=cwd, env=environment(**changes), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_python(
    *arguments: object, cwd: Path = ROOT, **changes: str
) -> subprocess.CompletedProcess[str]:
    """The same until it ends."""
    process = start_python(*arguments, cwd=cwd, **changes)
    outputs = process.communicate(timeout=240)
    return subprocess.CompletedProcess(arguments, process.wait(), *outputs)


def assert_refused(run: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """It ended with this code and one line of standard error."""
    assert run.returncode == code, run.stderr
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def start_tracked(env: dict[str, str], script: str, *arguments: str, cwd: Path) -> ScriptProcess:
    """A script in exactly the environment `env`."""
    return script_server().start(str(ROOT / script), [*arguments], cwd, env)


def track(directory: Path, env: dict[str, str], **options: object) -> tuple[str, str]:
    """Run `tracked_run.py`; returns its standard output and standard error."""
    arguments = (str(directory), json.dumps(options))
    process = start_tracked(env, "tests/helpers/tracked_run.py", *arguments, cwd=directory)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if "kill_after" in options else 0), errors
    return out, errors


def wait_for_steps(directory: Path, steps: int, process: Process) -> None:
    """Wait until a training has logged this many steps in `directory`."""
    log = directory / checkpoint.METRICS_LOG
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"kind": "step"') >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps: {process.communicate()[1]}")
