"""The front door of every script: flags from a dataclass, errors in one line."""

import argparse
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import tyro
from tqdm import tqdm

Config = TypeVar("Config")

ENVIRONMENT_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # no permission
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file where a folder should be, or the reverse
}
"""Errors of the operating system that a person can do something about, and this code cannot."""


class UserError(ValueError):
    """Bad usage or input: one line that names what is wrong and what mends it. Exit code 2."""

    exit_code = 2


class RunError(UserError):
    """A run that was asked for rightly and failed on its way. Exit code 1."""

    exit_code = 1


def run_script(main: Callable[[Config], int | None], config: type[Config]) -> NoReturn:
    """Parse the command line into `config`, call `main`, leave with its exit code.

    `UserError` and errors of the operating system (disk full, no permission) become one line on
    standard error; a bug keeps its traceback. Where `config` has `for_dataset`, the defaults are
    those of the `--dataset` on the command line, and `--help` shows them.
    """
    prog = Path(sys.argv[0]).name
    try:
        about = sys.modules[main.__module__].__doc__ or ""
        code = main(parse(config, sys.argv[1:], prog, about)) or 0
    except UserError as error:
        code = _complain(prog, str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _complain(prog, "interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe left, as `| head` does
        sys.stderr.close()
        code = 141
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRORS:
            raise
        where = f": {error.filename}" if error.filename else ""
        code = _complain(prog, f"{error.strerror}{where}", 1)
    sys.exit(code)


def parse(config: type[Config], arguments: list[str], prog: str, about: str) -> Config:
    """The dataclass `config` from command line arguments; exits with 2 and one line on bad ones."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config,
                prog=prog,
                description=about.strip(),
                args=arguments,
                default=_default(config, arguments),
            )
    except SystemExit as left:
        if left.code:
            _complain(prog, f"{_first_message(complaint.getvalue())} (see --help)", 2)
        raise


def check_seed(seed: int) -> None:
    """Raises UserError where NumPy or scikit-learn would not take it."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: it must be from 0 to {2**32 - 1}")


def _default(config: type[Config], arguments: list[str]) -> Any:
    if not hasattr(config, "for_dataset"):
        return config()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataset")
    with contextlib.suppress(SystemExit):  # `--dataset` without a value: tyro says so
        dataset = first.parse_known_args(arguments)[0].dataset
        if dataset in get_args(get_type_hints(config)["dataset"]):
            return config.for_dataset(dataset)  # type: ignore[attr-defined]
    return config()


def _first_message(box: str) -> str:
    """tyro draws its errors into a box with help below a rule; the error itself is above it."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    message = " ".join(lines).split("───")[0]
    return re.sub(r"\s+", " ", message).strip() or box.strip()


def _complain(prog: str, message: str, code: int) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code


def progress(iterable: Iterable | None = None, **options: object) -> tqdm:
    """A tqdm bar on a terminal, silence elsewhere."""
    shown = os.environ.get("RANK", "0") == "0" and sys.stderr.isatty()
    return tqdm(iterable, disable=not shown, dynamic_ncols=True, **options)  # type: ignore[arg-type]
