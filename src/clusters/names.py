"""Cluster names: from `features/names.json` if given, otherwise the matched class.

    {"clusters": "<Manifest.clusters_id>", "names": {"0": "sparrow", "3": "sparrow"}}

Clusters that share a name are one group for the user; numbers and scores do not change.
"""

import os
import unicodedata

from typing_extensions import TypedDict

from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import CLUSTER_TO_CLASS, Manifest
from src.storage.files import misfit, read_json

LONGEST = 60
"""Characters of a name; in UTF-8 they fit into the name of a folder."""


class NamesFile(TypedDict):
    clusters: str
    """`Manifest.clusters_id` of the clusters that have these names."""
    names: dict[str, str]
    """The number of a cluster, and its name; clusters may be left out."""


def load_names(manifest: Manifest) -> list[str | None]:
    """The name of each of the K clusters: the given one, otherwise its class, otherwise None.

    Raises:
        UserError: as `given_names`.
    """
    classes = manifest.extraction["dataset"]["class_names"]
    class_K = manifest.load(CLUSTER_TO_CLASS)
    given = given_names(manifest)
    return [g or (classes[c] if c >= 0 else None) for g, c in zip(given, class_K, strict=True)]


def given_names(manifest: Manifest) -> list[str | None]:
    """The name that names.json gives to each of the K clusters; None where it gives none.

    Raises:
        UserError: the file is damaged, names the clusters of another clustering or a cluster that
            does not exist, or a name is empty, too long or no line of text.
    """
    file, count = manifest.directory / artifacts.NAMES, manifest.clustering["clusters"]
    if not os.path.lexists(file):
        return [None] * count
    content = read_json(file, "correct it, or remove it")
    if problem := misfit(content, NamesFile):
        raise UserError(f"{file}: {problem}: correct it, or remove it")
    if content["clusters"] != manifest.clusters_id:
        raise UserError(
            f"{file} names the clusters of another clustering ({content['clusters']!r}, now "
            f"{manifest.clusters_id!r}): remove it, and name the clusters again"
        )
    names: list[str | None] = [None] * count
    numbers = {str(k): k for k in range(count)}
    for key, text in content["names"].items():
        name = unicodedata.normalize("NFC", text).strip()
        if key not in numbers:
            raise UserError(f"{file}: no cluster {key!r}; clusters are 0 to {count - 1}")
        if problem := _problem(name):
            raise UserError(f"{file}: the name of cluster {key} {problem}: correct it")
        names[numbers[key]] = name
    return names


def _problem(name: str) -> str | None:
    if not name:
        return "is empty"
    if len(name) > LONGEST:
        return f"has {len(name)} characters, more than {LONGEST}"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        return "has a line break or another control character"
    return None
