"""Opens and closes a Weights & Biases run, online if possible, otherwise offline. A resumed offline
run consists of several directories ("segments") with one run id, which a sync joins."""

import contextlib
import logging
import os
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from src.runtime.cli import RunError, reason_of
from src.runtime.commands import command
from src.runtime.flag_choices import WandbMode

CHECK_SECONDS = 5.0  # for the server to say anything at all
FINISH_SECONDS = 60.0  # for uploads at the end of a run; what is left is on disk


def load_wandb(directory: Path, mode: WandbMode = "auto") -> tuple[ModuleType, str]:
    """The package, set to write under `directory` alone and to print nothing; and which of its
    environment variables are invalid, "" if none."""
    # There are no settings for these two.
    os.environ.setdefault("WANDB_CACHE_DIR", str(directory / ".staging"))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reporter delays the exit by 20 s
    try:
        import wandb
        from wandb import Settings  # not in the output folder `wandb/`, which imports as well
    except ImportError:
        raise RunError("wandb is not installed") from None
    invalid = []
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        try:
            Settings().update_from_env_vars({name: os.environ[name]})
        except Exception:  # of many kinds
            invalid.append(name)
            del os.environ[name]  # W&B reads it before any setting, and refuses to start
    if os.environ.get("WANDB_DISABLED"):  # W&B ignores it: the run would be online
        invalid.append("WANDB_DISABLED")
    # On a full disk its own log, which no setting turns off, would print tracebacks.
    logging.raiseExceptions = False
    settings = Settings(
        silent=True,
        console="off",
        disable_git=True,  # a remote's address may hold a password; the commit is in the config
        init_timeout=20,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        # Seconds that a kill may cost; W&B's own default is 15. A checkpoint takes longer to
        # write than 0.1 s, so that a resumed offline run logs all of it again.
        x_transaction_log_flush_interval=0.1,
        x_file_stream_transmit_interval=1,
    )
    if mode != "auto":
        settings.mode = mode  # stronger than WANDB_MODE
    wandb.setup(settings=settings)
    return wandb, f"{', '.join(invalid)}: not a valid setting of W&B" if invalid else ""


def open_run(mode: WandbMode, directory: Path, options: dict[str, Any]) -> Any:
    """What `wandb.init` returns for `options`, offline where online cannot be; prints where the
    run is. None if W&B is disabled. Raises RunError and whatever W&B raises."""
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):  # W&B would quietly use the system's temporary one
        raise RunError(f"{directory} is not writable")
    wandb, problem = load_wandb(directory, mode)
    options["dir"] = directory.parent if directory.name == "wandb" else directory
    options["project"] = os.environ.get("WANDB_PROJECT", "simclr-clusters")
    allowed = wandb.setup().settings.mode
    if allowed == "disabled":  # the user said so, by WANDB_MODE or `wandb disabled`
        return None
    # W&B logs the arguments, and fails where a path is no UTF-8. It has no setting for that; the
    # config has the flags.
    del sys.argv[1:]
    unexpected = bool(problem) or mode == "online"
    if allowed == "online" and not (problem := problem or why_not_online(wandb)):
        try:
            run = wandb.init(mode="online", **options)
            tqdm.write(f"W&B: online at {run.url}", file=sys.stdout)
            return run
        except Exception as error:
            problem = first_line(error)
            with contextlib.suppress(SystemExit):
                wandb.teardown()  # else the id counts as in use
            load_wandb(directory)
    run = wandb.init(mode="offline", **options)
    if unexpected or options["job_type"] == "train":  # later stages need no line of their own
        reason = f"W&B: {problem}; " if problem else "W&B: "
        is_default = directory == Path("wandb").resolve()
        sync = command("src/sync_wandb.py", "--wandb-dir", os.path.relpath(directory))
        sync = "make sync" if is_default else sync
        text = f"offline run in {os.path.relpath(Path(run.dir).parent)}, sync with: {sync}"
        tqdm.write(reason + text, file=sys.stderr if unexpected else sys.stdout)
    return run


def close_run(run: Any, exit_code: int) -> None:
    """Finish the run.

    Raises RunError where uploading takes longer than FINISH_SECONDS, or where an offline run is
    incomplete, and whatever W&B raises."""
    folder, offline = Path(run.dir).parent, run.offline
    later = command("src/sync_wandb.py", os.path.relpath(folder))
    try:
        run.finish(exit_code)
    except TimeoutError:
        raise RunError(f"not everything was uploaded; later: {later}") from None
    except Exception:
        import wandb

        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()  # takes out the exit hook, which would print a traceback
        raise
    if offline and not all(map(_is_complete, folder.glob("run-*.wandb"))):
        raise RunError(f"{os.path.relpath(folder)} lacks its last rows: the disk may be full")


def _is_complete(log: Path) -> bool:
    """Whether W&B wrote the record that ends a run, of which it says nothing on a full disk.

    The format is that of LevelDB's log, after 7 bytes: blocks of 32 KiB, which hold records in
    parts of a checksum, a length, a type and the data.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    block, whole, first = 1 << 15, 1, 2
    record = part = b""
    length = 0
    with log.open("rb") as stream:
        stream.seek(max(7, (log.stat().st_size // block - 1) * block))
        while len(head := stream.read(7)) == 7:
            _, length, kind = struct.unpack("<IHB", head)
            part = stream.read(length)
            record = part if kind in (whole, first) else record + part
            if (left := block - stream.tell() % block) < 7:
                stream.seek(left, os.SEEK_CUR)
    return len(part) == length and Record.FromString(record).WhichOneof("record_type") == "exit"


def why_not_online(wandb: ModuleType) -> str:
    """ "" where a key is configured and the server answers. Never asks for a key."""
    import requests  # comes with wandb, and knows its proxies and certificates

    server = wandb.setup().settings.base_url
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no key (see: wandb login)"
        requests.get(server, timeout=CHECK_SECONDS, allow_redirects=False)
    except wandb.errors.AuthenticationError as error:
        return first_line(error)
    except requests.RequestException:
        return f"{server} does not answer"
    return ""


def first_line(error: Exception) -> str:
    return reason_of(error)[:200]
