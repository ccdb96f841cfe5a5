"""Opening and closing a Weights & Biases run, online where that is possible, else offline.

An offline run that is interrupted and resumed is several directories ("segments") that carry one
run id; W&B joins them when they are synced. Nothing here asks for a key: it is read from where
`wandb login` put it.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tqdm import tqdm

from src.runtime.cli import RunError

WandbMode = Literal["auto", "online", "offline", "disabled"]

CHECK_SECONDS = 5.0
"""How long the server may take to say anything at all."""
INIT_SECONDS = 20.0
"""How long the server may take to open the run."""
FINISH_SECONDS = 60.0
"""How long the end of a run waits for uploads. What is left is on disk, for a later sync."""
FLUSH_SECONDS = 0.1
"""What a kill may cost an offline run; W&B's own default is 15. A checkpoint takes longer to write,
so that a resumed run logs all of it again."""
SEND_SECONDS = 1.0
"""What a kill may cost an online run; W&B's own default is 15."""
INSPECT_SECONDS = 60.0


def load_wandb(directory: Path) -> tuple[ModuleType, str]:
    """The package, told to keep all it writes under `directory` and to print nothing; and which of
    its environment variables are invalid, "" if none. It refuses to start with an invalid value:
    those are taken out of the environment.

    Raises:
        RunError: it is not installed.
    """
    # Artifacts are staged in the data directory before they are synced: they belong to the run.
    os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(directory / ".staging")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reporter delays the exit by 20 s
    try:
        import wandb
        from wandb import Settings  # not in the output folder `wandb/`, which imports as well
    except ImportError:
        raise RunError("wandb is not installed") from None
    variables = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    invalid = [name for name, value in variables.items() if not _is_valid(wandb, name, value)]
    for name in invalid:
        del os.environ[name]
    logging.raiseExceptions = False  # on a full disk its own log would print tracebacks
    wandb.setup(settings=Settings(silent=True, console="off"))
    return wandb, f"{', '.join(invalid)}: not a valid setting of W&B" if invalid else ""


def _is_valid(wandb: ModuleType, name: str, value: str) -> bool:
    if name == "WANDB_DISABLED":  # W&B ignores it today: the run would be online
        return value.lower() in ("", "0", "false")
    try:
        wandb.Settings().update_from_env_vars({name: value})
    except Exception:  # they have no common class
        return False
    return True


def open_run(mode: WandbMode, directory: Path, options: dict[str, Any]) -> Any:
    """What `wandb.init` returns, offline where online cannot be. Prints where the run is.

    Args:
        mode: what was asked for.
        directory: takes all files; see `Tracker`.
        options: further arguments of `wandb.init`.

    Raises:
        RunError: W&B is not installed or was disabled, or `directory` cannot be written.
        Exception: of many kinds, from W&B.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):  # W&B would quietly use the system's temporary one
        raise RunError(f"{directory} is not writable; nothing is recorded")
    wandb, problem = load_wandb(directory)
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,  # a remote's address may hold a password; the commit is in the config
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=FLUSH_SECONDS,
        x_file_stream_transmit_interval=SEND_SECONDS,
    )
    if mode != "auto":
        settings.mode = mode  # stronger than WANDB_MODE
    place = directory.parent if directory.name == "wandb" else directory
    options |= {"dir": place, "settings": settings}
    wanted = wandb.setup(settings=settings).settings.mode
    if wanted == "disabled":
        raise RunError("disabled by WANDB_MODE or `wandb disabled`")
    unexpected = bool(problem) or mode == "online"
    if wanted == "online" and not (problem := problem or why_not_online(wandb)):
        try:
            run = wandb.init(mode="online", **options)
            tqdm.write(f"W&B: online at {run.url}", file=sys.stdout)
            return run
        except Exception as error:
            problem = first_line(error)
            with contextlib.suppress(SystemExit):
                wandb.teardown()  # else the id counts as in use
    run = wandb.init(mode="offline", **options)
    reason = f"{problem}; " if problem else ""
    text = f"{reason}offline run in {os.path.relpath(Path(run.dir).parent)}, sync with: make sync"
    tqdm.write(f"W&B: {text}", file=sys.stderr if unexpected else sys.stdout)
    return run


def close_run(run: Any, exit_code: int) -> None:
    """Finish the run.

    Raises:
        RunError: uploading took longer than FINISH_SECONDS, or the file of an offline run is cut
            short: W&B itself says nothing of a full disk.
        Exception: of many kinds, from W&B.
    """
    import wandb

    log = Path(run.dir).parent / f"run-{run.id}.wandb"
    directory = os.path.relpath(log.parent)
    try:
        run.finish(exit_code)
    except TimeoutError:
        raise RunError(
            f"not all was uploaded; later: python src/sync_wandb.py {directory}"
        ) from None
    except Exception:
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()  # takes out the exit hook, which would print a traceback
        raise
    if run.offline and not has_ended(log):
        raise RunError(f"{directory} is cut short, as on a full disk")


def why_not_online(wandb: ModuleType) -> str:
    """ "" where a key is configured and the server answers. Never asks for a key."""
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


def has_ended(log: Path) -> bool:
    """Whether the log file of a run goes to the run's end, by W&B's own viewer.

    Raises:
        subprocess.SubprocessError: the viewer failed.
    """
    log = log.resolve()
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    viewer = subprocess.run(
        command, cwd=log.parents[2], capture_output=True, timeout=INSPECT_SECONDS, check=True
    )
    return any(json.loads(line)["type"] == "exit" for line in viewer.stdout.splitlines())
