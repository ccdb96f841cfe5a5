"""What a person said about the pictures: `features/names.json`, from the page or by hand.

    {"version": 1, "clusters": "<Manifest.clusters_id>",
     "names": {"0": "sparrow", "3": "sparrow"}, "fine": {"17": "wren"},
     "moved": {"IMG_1.jpg": "wren"}, "ignored": ["IMG_7.jpg"]}

Names are those of clusters (`names`), of fine clusters, and of pictures that were moved; the most
specific name of a picture counts. A picture is called as in the column `path` of images.csv. Every
part but `clusters` and `names` may be left out. `groups.py` makes groups of it, and
`clusterings.py` carries it over to other clusters.
"""

import os
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.files import json_digest, misfit, read_json

VERSION = 1


@dataclass(frozen=True)
class Names:
    """The content of names.json."""

    clusters: str
    """`Manifest.clusters_id` of the clusters that have these names."""
    names: dict[str, str] = field(default_factory=dict)
    """By the number of a cluster."""
    fine: dict[str, str] = field(default_factory=dict)
    """By the number of a fine cluster."""
    moved: dict[str, str] = field(default_factory=dict)
    """By picture."""
    ignored: list[str] = field(default_factory=list)
    """Pictures."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the pictures that were moved or ignored, so that they are known by any path; written by
    the clustering."""

    @property
    def is_shaped(self) -> bool:
        """Whether groups are not just clusters, named and joined."""
        return bool(self.fine or self.moved or self.ignored)

    @property
    def digest(self) -> str:
        """Of everything that a person said."""
        return json_digest([self.names, self.fine, self.moved, sorted(self.ignored)])

    @property
    def content(self) -> dict[str, Any]:
        """Of the file."""
        return {"version": VERSION, **asdict(self)}


class _File(TypedDict):
    version: NotRequired[int]
    clusters: str
    names: dict[str, str]
    fine: NotRequired[dict[str, str]]
    moved: NotRequired[dict[str, str]]
    ignored: NotRequired[list[str]]
    digests: NotRequired[dict[str, str]]


def read_names(directory: Path) -> Names | None:
    """The content of names.json in `directory`; None without the file.

    Raises:
        UserError: the file is damaged, of a later version, or a name is empty or no line of text.
    """
    file = directory / artifacts.NAMES
    if not os.path.lexists(file):
        return None
    content = read_json(file, "correct it, or remove it")
    if problem := misfit(content, _File):
        raise UserError(f"{file}: {problem}: correct it, or remove it")
    if content.get("version", VERSION) > VERSION:
        raise UserError(f"{file} is of a later version of this program: update the program")
    kinds = {"names": "cluster", "fine": "fine cluster", "moved": "picture"}
    named = {
        kind: {
            key: clean_name(text, f"{file}: the name of {what} {key}") for key, text in part.items()
        }
        for kind, what in kinds.items()
        for part in [content.get(kind, {})]
    }
    lists = {"ignored": content.get("ignored", []), "digests": content.get("digests", {})}
    return Names(content["clusters"], **named, **lists)


def clean_name(text: str, what: str) -> str:
    """Raises UserError if `text`, which is described by `what`, cannot be a name."""
    name = unicodedata.normalize("NFC", text).strip()
    problem = None
    if not name:
        problem = "is empty"
    elif any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        problem = "has a line break or another control character"
    if problem:
        raise UserError(f"{what} {problem}: correct it")
    return name
