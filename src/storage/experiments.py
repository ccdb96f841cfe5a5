"""What a command says that finds no results: often those of another experiment are meant."""

import difflib
from pathlib import Path
from typing import Literal

from src.runtime import commands
from src.runtime.commands import command

KINDS = {
    "--feature-dir": (Path("features"), "manifest.json"),
    "--checkpoint-dir": (Path("checkpoints"), "simclr_epoch_*.pt"),
}
"""The default directory of each kind, and a file that every experiment has there."""


def no_results(directory: Path, flag: Literal["--feature-dir", "--checkpoint-dir"]) -> str:
    """One line: `directory`, which `flag` names, has no results; what is there, and what to type.

    Training is named only if there is no other experiment: it would begin again, or download.
    """
    default, sign = KINDS[flag]
    text = f"no {'results' if flag == '--feature-dir' else 'checkpoint'} in {directory}"
    others = found_near(directory, default, sign)
    names = {_name(other, default): other for other in others}
    if flag == "--feature-dir" and _has_checkpoint(directory):
        also = f"; other experiments: {', '.join(names)}" if names else ""
        return f"{text}: run {command('src/feature_extraction.py')} first{also}"
    if not others:
        train = command("src/train.py", "--dataset", "folder", "--data-dir", "FOLDER")
        if flag == "--checkpoint-dir":
            return f"{text}: run {train} first"
        return f"{text}: run {train}, then {command('src/feature_extraction.py')}"
    asked = directory.name if directory != default else ""
    newest = max(names, key=lambda name: _changed(names[name], sign))
    meant = next(iter(difflib.get_close_matches(asked, names, 1)), newest)
    given = {"--name": meant}
    if names[meant] == default:
        given = {}
    elif names[meant].parent != default:
        given = {flag: str(names[meant])}
    again = commands.again(given)
    advice = " ".join(f"{key} {value}" for key, value in given.items()) or "no --name"
    return f"{text}; the experiments there are: {', '.join(names)}; did you mean {advice}?" + (
        f" Type: {again}" if again else ""
    )


def found_near(directory: Path, default: Path, sign: str) -> list[Path]:
    """Directories with results: in `directory`, beside it, and in the default one."""
    roots = {directory: None, default: None}
    if directory.parent != Path():
        roots[directory.parent] = None
    places = [place for root in roots for place in (root, *sorted(root.glob("*/")))]
    found = {place: None for place in places if next(place.glob(sign), None)}
    return [place for place in found if place != directory]


def _name(directory: Path, default: Path) -> str:
    return directory.name if directory.parent == default else str(directory)


def _has_checkpoint(feature_dir: Path) -> bool:
    """Whether the same experiment has one."""
    features, (checkpoints, sign) = KINDS["--feature-dir"][0], KINDS["--checkpoint-dir"]
    if not feature_dir.is_relative_to(features):
        return False
    own = checkpoints / feature_dir.relative_to(features)
    return next(own.glob(sign), None) is not None


def _changed(directory: Path, sign: str) -> float:
    return max((file.stat().st_mtime for file in directory.glob(sign)), default=0.0)
