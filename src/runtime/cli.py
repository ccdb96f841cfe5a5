"""The command line of every script: flags from a dataclass, errors in one line, progress bars."""

import argparse
import atexit
import contextlib
import errno
import getpass
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import tyro
from tqdm import tqdm

from src.runtime import commands

Config = TypeVar("Config")

ENVIRONMENT_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # no permission
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file where a folder should be, or the reverse
    *(errno.ENAMETOOLONG, errno.ELOOP),
}
"""Errors of the operating system that the user can fix and this code cannot."""


class CommandError(Exception):
    """What a command reports in one line, without a traceback."""

    exit_code: int


class UserError(CommandError, ValueError):
    """Bad usage or input: one line that says what is wrong and how to fix it."""

    exit_code = 2


class RunError(CommandError):
    """A failure in spite of correct usage and input. No `except UserError` takes it for a note."""

    exit_code = 1


def run_script(main: Callable[[Config], int | None], config: type[Config]) -> NoReturn:
    """Read the command line as the dataclass `config`, call `main` with it, exit with the code
    that it returns. The help begins with the docstring of the script.

    If `config` has `for_dataset`, the defaults are those of `--dataset` and `--weights` on the
    command line, and `--help` shows them; if it has a `name`, so are the directories of `--name`.

    `UserError` and `ENVIRONMENT_ERRORS` become one line on standard error; a bug keeps its
    traceback.
    """
    _prepare_standard_streams()
    _prepare_user()
    prog, description = Path(sys.argv[0]).name, sys.modules["__main__"].__doc__ or ""
    with _errors_in_one_line():
        flags = parse(config, sys.argv[1:], prog, description)
        commands.run_with(flags, sys.argv)
        sys.exit(main(flags) or 0)


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    prog = Path(sys.argv[0]).name
    try:
        yield
    except CommandError as error:
        code = _complain(prog, str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _complain(prog, "interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe exited, as `| head` does
        sys.stderr.close()
        code = 141
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRORS:
            raise
        file = f": {error.filename}" if error.filename else ""
        code = _complain(prog, f"{error.strerror}{file}", 1)
    else:
        return
    sys.exit(code)


def parse(config: type[Config], arguments: list[str], prog: str, description: str) -> Config:
    """The dataclass `config` from command line arguments; bad ones exit with 2 and one line."""
    tyro_error = io.StringIO()
    try:
        with contextlib.redirect_stderr(tyro_error):
            return tyro.cli(
                config,
                prog=prog,
                description=description.strip(),
                args=arguments,
                default=_default(config, arguments),
            )
    except SystemExit as exit_:
        if exit_.code:
            _complain(prog, f"{_first_message(tyro_error.getvalue())} (see --help)", 2)
        raise


def printable(text: str) -> str:
    """`text` in one line: ? for line breaks, control sequences and bytes that are no UTF-8, all of
    which names of files may hold."""
    return "".join(c if c.isprintable() else "?" for c in text)


def reason_of(error: BaseException) -> str:
    """The first line of what it says; its class where it says nothing, as a MemoryError."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_seed(seed: int) -> None:
    """Raises UserError if NumPy or scikit-learn would reject the seed."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: it must be from 0 to {2**32 - 1}")


def _prepare_standard_streams() -> None:
    """Open the null device in place of closed streams; escape what standard output cannot encode,
    as standard error does."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the number that the next file would get, with what C libraries print.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _prepare_user() -> None:
    """A name and a home for a user whom the system does not know, as in containers that run under
    any number: caches of torch, Matplotlib and W&B need both. The home ends with the process."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    # Docker's for unknown users is /. A home that is read-only may hold keys.
    needed = os.W_OK if home == "/" else os.X_OK
    if Path(home).is_absolute() and os.access(f"{home}/.", needed):  # and so it is a folder
        return
    os.environ["HOME"] = tempfile.mkdtemp(prefix="simclr-clusters-home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def _default(config: type[Config], arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--dataset", "--weights", "--name"):
        parser.add_argument(flag)
    given = argparse.Namespace(dataset=None, weights=None, name=None)
    with contextlib.suppress(SystemExit):  # a flag without its value: tyro reports it
        parser.parse_known_args(arguments, given)
    default: Any = config()
    if hasattr(config, "for_dataset"):
        dataset, pretrained = given.dataset or default.dataset, given.weights not in (None, "none")
        if dataset in get_args(get_type_hints(config)["dataset"]):
            default = config.for_dataset(dataset, pretrained)  # type: ignore[attr-defined]
    if given.name is None or not hasattr(default, "name"):
        return default
    if not re.fullmatch(r"\w[\w.-]*", given.name):
        raise UserError(
            f"--name {given.name}: it may only hold letters, digits, - _ and ., and not begin with "
            "- or ."
        )
    return commands.of_experiment(default, given.name)


def _first_message(box: str) -> str:
    """tyro prints errors in a box: the message, a horizontal rule, and help."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    message = " ".join(lines).split("───")[0]
    return re.sub(r"\s+", " ", message).strip() or box.strip()


def _complain(prog: str, message: str, code: int) -> int:
    print(printable(f"{prog}: error: {message}"), file=sys.stderr)
    return code


def progress(iterable: Iterable | None = None, **options: object) -> tqdm:
    """A tqdm bar: only on a terminal, and only in the main process."""
    shown = os.environ.get("RANK", "0") == "0" and sys.stderr.isatty()
    return tqdm(iterable, disable=not shown, dynamic_ncols=True, **options)  # type: ignore[arg-type]
