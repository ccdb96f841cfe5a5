"""Commands in messages: they read and write where the running script does."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

DIRECTORIES = {
    "src/train.py": ("checkpoint_dir",),
    "src/feature_extraction.py": ("checkpoint_dir", "feature_dir"),
    "src/import_features.py": ("feature_dir",),
    "src/clustering.py": ("feature_dir",),
    "src/inference.py": ("feature_dir",),
    "visualize_features.py": ("feature_dir",),
}
"""The scripts that take --name, and their flags for the directories that it names."""

_given: dict[str, str] = {}
"""--name and the directories that the running script was given; empty in a library."""
_typed: list[str] = []
"""The running script and its arguments; empty in a library."""
LONGEST = 200
"""Letters of a command that is worth repeating: a shell may have expanded * to many pictures."""


def of_experiment(flags: Any, name: str | None) -> Any:
    """A script's `flags` with the directories of `name`: folders of that name in their own."""
    if not name:
        return flags
    directories = {flag: getattr(flags, flag, None) for flag in ("checkpoint_dir", "feature_dir")}
    return replace(flags, **{flag: own / name for flag, own in directories.items() if own})


def run_with(flags: Any, typed: Sequence[str] = ()) -> None:
    """Have every `command` from now on repeat --name and the directories in the running script's
    `flags`, where they are not the defaults.

    Args:
        typed: the script and its arguments.
    """
    _given.clear()
    _typed[:] = typed
    if name := getattr(flags, "name", None):
        _given["name"] = name
    default = of_experiment(type(flags)(), name)
    for flag in ("checkpoint_dir", "feature_dir"):
        directory = getattr(flags, flag, None)
        if directory and directory != getattr(default, flag):
            _given[flag] = str(directory)


def command(script: str, *arguments: str | Path) -> str:
    """What to type to run a script, such as "src/train.py", in the same place as this one."""
    words = ["python", script]
    for flag in ("name", *DIRECTORIES[script]) if script in DIRECTORIES else ():
        if flag in _given:
            words += [f"--{flag.replace('_', '-')}", _given[flag]]
    return shlex.join([*words, *map(str, arguments)])


def again(given: Mapping[str, str]) -> str | None:
    """What to type to run the running script with the flags `given` in place of its --name and
    directories; None in a library, or if it is long."""
    if not _typed:
        return None
    kept, words = [], iter(_typed[1:])
    for word in words:
        flag, _, value = word.replace("_", "-").partition("=")
        if flag not in ("--name", "--feature-dir", "--checkpoint-dir"):
            kept.append(word)
        elif not value:
            next(words, None)
    flags = [part for flag in given.items() for part in flag]
    text = shlex.join(["python", _typed[0], *flags, *kept])
    return text if len(text) <= LONGEST else None
