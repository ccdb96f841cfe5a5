"""Opening a Weights & Biases run: online or offline, and what its earlier segments hold.

An offline run that is interrupted and resumed is several directories ("segments") that carry one
run id; W&B joins them when they are synced. Nothing here asks for a key: it is read from where
`wandb login` put it.
"""

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

WandbMode = Literal["auto", "online", "offline", "disabled"]

CHECK_SECONDS = 5.0
"""How long the server may take to say anything at all."""
INIT_SECONDS = 10.0
"""How long the server may take to open the run."""
FLUSH_SECONDS = 1.0
"""What a kill may cost; W&B's own default is 15."""
INSPECT_SECONDS = 60.0


class Unavailable(Exception):
    """Why there is no W&B, in a few words."""


@dataclass(frozen=True)
class OpenRun:
    run: Any
    """What `wandb.init` returned."""
    place: str
    """Where it is, for a person to read."""
    why_offline: str = ""
    """Why it is not online although it could have been."""


def load_wandb(directory: Path) -> ModuleType:
    """The package, told to keep all it writes under `directory` and to keep quiet.

    Raises:
        Unavailable: it is not installed.
    """
    # Artifacts are staged in the data directory before they are synced: they belong to the run.
    os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(directory / ".staging")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reporter delays the exit by 20 s
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise Unavailable("wandb is not installed") from None
    if not hasattr(wandb, "init"):  # Python took the output directory `wandb/` for a package
        raise Unavailable("wandb is not installed")
    logging.raiseExceptions = False  # on a full disk its own log would print tracebacks
    wandb.setup(settings=wandb.Settings(silent=True, console="off"))
    return wandb


def open_run(
    mode: WandbMode, directory: Path, finish_seconds: float, options: dict[str, Any]
) -> OpenRun:
    """Start the run, offline where online cannot be.

    Args:
        mode: what was asked for.
        directory: takes all files; see `Tracker`.
        finish_seconds: after which `run.finish()` gives up with TimeoutError.
        options: further arguments of `wandb.init`.

    Raises:
        Unavailable: W&B is not installed or was disabled, or `directory` cannot be written.
        Exception: of many kinds, from W&B.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):  # W&B would quietly use the system's temporary one
        raise Unavailable(f"{directory} is not writable; nothing is recorded")
    wandb = load_wandb(directory)
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,  # a remote's address may hold a password; the commit is in the config
        init_timeout=INIT_SECONDS,
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=FLUSH_SECONDS,
    )
    if mode != "auto":
        settings.mode = mode  # stronger than WANDB_MODE
    there = directory.parent if directory.name == "wandb" else directory
    options = options | {"dir": there, "settings": settings}
    wanted = wandb.setup(settings=settings).settings.mode
    if wanted == "disabled":
        raise Unavailable("disabled by its own settings (wandb enabled, WANDB_MODE)")
    why = ""
    if wanted == "online":
        why = why_not_online(wandb)
        if not why:
            try:
                run = wandb.init(mode="online", **options)
                return OpenRun(run, f"online at {run.url}")
            except Exception as error:  # they have no common class
                why = first_line(error)
                with contextlib.suppress(SystemExit):
                    wandb.teardown()  # else the id counts as in use
    run = wandb.init(mode="offline", **options)
    place = os.path.relpath(Path(run.dir).parent)
    return OpenRun(run, f"offline run in {place}, sync with: make sync", why)


def close_run(run: Any, exit_code: int) -> None:
    """Finish the run; Unavailable where uploading took longer than was allowed, or what it wrote
    is cut short: W&B itself says nothing of a full disk."""
    log = Path(run.dir).parent / f"run-{run.id}.wandb"
    directory = os.path.relpath(log.parent)
    try:
        run.finish(exit_code)
    except TimeoutError:
        raise Unavailable(
            f"not all was uploaded; later: python src/sync_wandb.py {directory}"
        ) from None
    except Exception:
        kill_service()
        raise
    if is_offline(log) and not has_ended(log):
        raise Unavailable(f"{directory} is cut short, as on a full disk")


def why_not_online(wandb: ModuleType) -> str:
    """Empty where a key is configured and the server answers. Never asks for a key."""
    import requests  # comes with wandb, and knows its proxies and certificates

    try:
        if not wandb.login(prompt=False, verify=False):
            return "no key (see: wandb login)"
    except wandb.errors.AuthenticationError as error:
        return first_line(error)
    server = wandb.setup().settings.base_url
    try:
        requests.get(server, timeout=CHECK_SECONDS, allow_redirects=False)
    except requests.RequestException:
        return f"{server} does not answer"
    return ""


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def segments(directory: Path, run_id: str) -> list[Path]:
    """The log files of that run under `directory`, oldest first."""
    logs = directory.glob(f"**/*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(logs, key=start_time)


def is_offline(log: Path) -> bool:
    return log.parent.name.startswith("offline-")


def start_time(log: Path) -> str:
    """20260131_235959 from offline-run-20260131_235959-abcd1234/run-abcd1234.wandb."""
    return log.parent.name.partition("run-")[2]


def read_log(log: Path) -> Iterator[dict[str, Any]]:
    """The records of a log file, up to where a kill tore it, as W&B's own viewer prints them.

    Raises:
        subprocess.SubprocessError: the viewer failed.
    """
    log = log.resolve()
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    run = subprocess.run(
        command, cwd=log.parents[2], capture_output=True, timeout=INSPECT_SECONDS, check=True
    )
    return map(json.loads, run.stdout.splitlines())


def has_ended(log: Path) -> bool:
    """Whether the log file goes to the end of its run."""
    return any(record["type"] == "exit" for record in read_log(log))


def history(log: Path) -> Iterator[dict[str, Any]]:
    """The rows that are logged in a log file."""
    return (record["history"]["item"] for record in read_log(log) if record["type"] == "history")


def kill_service() -> None:
    """End a W&B process that hangs: its exit hook would wait for that process for ever.

    There is no public way; AttributeError where the private one is gone.
    """
    import wandb

    wandb.setup()._connection._proc._process.kill()  # type: ignore[union-attr]
    with contextlib.suppress(ConnectionError, SystemExit):
        wandb.teardown()  # takes out the exit hook before it finds nobody to talk to
