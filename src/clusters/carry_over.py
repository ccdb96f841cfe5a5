"""Names outlive their clusters: which picture was in which cluster is kept of the last clusterings,
and names go over to other clusters by the pictures that both have.

A new cluster gets the name that most of its shared pictures had. One-to-one matching (Hungarian)
keeps less: from 10 clusters to 20 the names of 63% of the pictures, not 93% (docs/log.md). Pictures
are known by a digest of their pixels, and so by any path; those of another size by their path.

Shape letters: N images of all splits, one after another.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from typing_extensions import TypedDict

from dataset.load_dataset import Dataset, image_paths
from src.clusters.names import Names
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import ASSIGNMENTS, FINE, Artifact, Manifest
from src.storage.files import misfit, read_json, write_json

KEPT = 5
"""Clusterings that are remembered besides the present one and that of names.json."""


class Pictures(TypedDict):
    splits: dict[str, int]
    """Numbers of images."""
    paths: list[str]
    """As in images.csv."""
    digests: list[str]
    """The side of the pictures and the digest of the pixels; empty where they are missing."""


class Past(Pictures):
    """A clustering."""

    features: str
    """The extraction's `id`; where it is the same, so are the images."""
    clusters: list[int]
    fine: list[int]
    """Empty of a version without fine clusters."""


# --- remembering ------------------------------------------------------------------------------


def remember(manifest: Manifest, dataset: Dataset | None, named: str | None) -> None:
    """Keep the clusters of every picture, and forget the oldest clusterings.

    Args:
        dataset: None where the pictures are missing.
        named: the `clusters_id` of names.json, which is not forgotten.
    """
    directory, own = manifest.directory, manifest.clusters_id
    features, splits = manifest.extraction["id"], manifest.extraction["dataset"]["splits"]
    known = (read_past(directory, id_) for id_ in _remembered(directory))
    same = [past for past in known if past and past["features"] == features and past["digests"]]

    def all_splits(artifact: Artifact) -> list[int]:
        parts = [manifest.load(artifact, s) for s in splits if manifest.has(artifact, s)]
        return [int(cluster) for part in parts for cluster in part]

    past: Past = {
        "features": features, "splits": splits,
        "paths": same[0]["paths"] if same else image_paths(splits, dataset),
        "digests": same[0]["digests"] if same else _digests(splits, dataset),
        "clusters": all_splits(ASSIGNMENTS), "fine": all_splits(FINE),
    }  # fmt: skip
    write_json(artifacts.past_clusters(directory, own), past)
    for id_ in [id_ for id_ in _remembered(directory) if id_ not in (own, named)][:-KEPT]:
        artifacts.past_clusters(directory, id_).unlink()


def present_pictures(manifest: Manifest) -> Pictures:
    """Those of the present clusters."""
    splits = manifest.extraction["dataset"]["splits"]
    unknown: Pictures = {"splits": splits, "paths": image_paths(splits), "digests": []}
    return read_past(manifest.directory, manifest.clusters_id) or unknown


def picture_paths(manifest: Manifest, dataset: Dataset | None) -> list[str]:
    """Of every image, as in images.csv.

    Args:
        dataset: None where the pictures are missing; then the paths are those that are remembered.
    """
    if dataset is None:
        return present_pictures(manifest)["paths"]
    return image_paths(manifest.extraction["dataset"]["splits"], dataset)


def read_past(directory: Path, clusters_id: str) -> Past | None:
    """The clustering with this `clusters_id`; None if it is not remembered."""
    if clusters_id in _remembered(directory):
        with contextlib.suppress(UserError):
            content: Any = read_json(artifacts.past_clusters(directory, clusters_id), "")
            if not misfit(content, Past) and _is_whole(content):
                return content
    return None


def _is_whole(past: Past) -> bool:
    """Whether it has an entry for every image."""
    count = sum(past["splits"].values())
    complete, optional = (past["paths"], past["clusters"]), (past["digests"], past["fine"])
    return {*map(len, complete)} == {count} and {*map(len, optional)} <= {0, count}


def _remembered(directory: Path) -> list[str]:
    """The `clusters_id` of each, oldest first."""
    any_ = artifacts.past_clusters(directory, "*")
    files = sorted(directory.glob(any_.name), key=lambda file: file.lstat().st_mtime_ns)
    start, end = any_.name.split("*")
    return [file.name.removeprefix(start).removesuffix(end) for file in files]


def _digests(splits: dict[str, int], dataset: Dataset | None) -> list[str]:
    parts = [dataset.splits[split].images for split in splits] if dataset else []
    return [
        f"{image.shape[-1]}-{xxhash.xxh3_64_hexdigest(np.ascontiguousarray(image).data)}"
        for images in parts
        for image in images
    ]


# --- carrying over ----------------------------------------------------------------------------


def located(
    names: Names, pictures: Pictures, had: Set[tuple[str, str]] = frozenset()
) -> dict[str, int]:
    """The row of every picture that was moved or ignored, by what names.json calls it; without
    those that are gone.

    Args:
        had: digest and path of pictures that were there before. A copy among them is not the
            picture under another path.
    """
    digests = pictures["digests"]
    pairs = [*zip(digests, pictures["paths"], strict=False)]
    by_digest = {pair[0]: row for row, pair in enumerate(pairs) if pair not in had}
    by_path = {key: row for row, key in enumerate(image_paths(pictures["splits"]))}
    by_path |= {path: row for row, path in enumerate(pictures["paths"])}
    rows = {}
    for key in (*names.moved, *names.ignored):
        row, digest = by_path.get(key), names.digests.get(key, "")
        is_comparable = digest and digests and digest.split("-")[0] == digests[0].split("-")[0]
        if is_comparable and (row is None or digests[row] != digest):
            row = by_digest.get(digest)
        if row is not None:
            rows[key] = row
    return rows


def at_home(names: Names, pictures: Pictures, had: Set[tuple[str, str]] = frozenset()) -> Names:
    """`names` with pictures called as they are now, and with their digests. Those that are gone
    keep their name, or their digest for a name if another picture has that now; those that left
    copies, see `located`, are forgotten."""
    rows, paths = located(names, pictures, had), {*pictures["paths"]}
    digests, present = dict(names.digests), {*pictures["digests"]}
    called = {}
    for key in dict.fromkeys((*names.moved, *names.ignored)):
        if key not in rows and digests.get(key) in present:
            continue
        called[key] = key
        if key in rows:
            called[key] = pictures["paths"][rows[key]]
            if pictures["digests"]:
                digests[key] = pictures["digests"][rows[key]]
        elif key in paths and key in digests:
            called[key] = digests[key]
    gone_first = sorted(called, key=lambda key: key in rows)
    return replace(
        names,
        moved={called[k]: names.moved[k] for k in gone_first if k in names.moved},
        ignored=sorted({called[key] for key in names.ignored if key in called}),
        digests={called[key]: digests[key] for key in gone_first if key in digests},
    )


def carry(names: Names, old: Past, new: Past, clusters_id: str) -> tuple[Names, dict[str, float]]:
    """The `names` of `old` for the clusters of `new`, and by name the share of the pictures which
    had it from their cluster that keep it.

    Args:
        clusters_id: of `new`.
    """
    pairs = [(i, j) for i, j in enumerate(_same(old, new)) if j >= 0]
    before = [called(names, old, i) for i, _ in pairs]
    clusters, fine = ([new[level][j] for _, j in pairs] for level in ("clusters", "fine"))
    given = _majority((names.names.get(str(old["clusters"][i])) for i, _ in pairs), clusters)
    # Where fine clusters had names, or a name is that of most pictures of no cluster.
    lost = {*before} - {*given.values()}
    usual = _majority((given.get(str(k)) for k in clusters), fine)
    given_fine = {
        f: name
        for f, name in _majority(before, fine).items()
        if name != usual.get(f) and (names.fine or name in lost)
    }
    pictures = {*zip(old["digests"], old["paths"], strict=False)}
    carried = at_home(at_home(names, old), new, pictures)
    carried = replace(carried, clusters=clusters_id, names=given, fine=given_fine)
    after = [called(carried, new, j) for _, j in pairs]
    had, kept = Counter(before), Counter(b for b, a in zip(before, after, strict=True) if a == b)
    all_names = dict.fromkeys([*names.names.values(), *names.fine.values()])
    return carried, {name: kept[name] / max(1, had[name]) for name in all_names}


def called(names: Names, past: Past, row: int) -> str | None:
    """The name that an image has from its fine cluster, otherwise from its cluster."""
    fine = names.fine.get(str(past["fine"][row])) if past["fine"] else None
    return fine or names.names.get(str(past["clusters"][row]))


def _same(old: Past, new: Past) -> list[int]:
    """The row in `new` of each image of `old`; -1 where it is gone."""
    if old["features"] == new["features"]:
        return [*range(len(old["paths"]))]
    rows = _found(old["digests"], old["paths"], new["digests"], new["paths"])
    if not rows or max(rows) < 0:  # without pictures, or of another size
        rows = _found(old["paths"], old["paths"], new["paths"], new["paths"])
    return rows


def _found(
    keys: Sequence[str], paths: Sequence[str], among: Sequence[str], their_paths: Sequence[str]
) -> list[int]:
    """Of equal pictures the one with the same path, if there is one."""
    row_of: dict[object, int] = {key: row for row, key in enumerate(among)}
    row_of |= {pair: row for row, pair in enumerate(zip(among, their_paths, strict=False))}
    return [row_of.get(pair, row_of.get(pair[0], -1)) for pair in zip(keys, paths, strict=False)]


def _majority(names: Iterable[str | None], groups: Iterable[int]) -> dict[str, str]:
    """The most frequent name of each group, None included, where it is one."""
    counts: dict[int, Counter[str | None]] = {}
    for name, group in zip(names, groups, strict=True):
        counts.setdefault(group, Counter())[name] += 1
    most = {group: counts[group].most_common(1)[0][0] for group in sorted(counts)}
    return {str(group): name for group, name in most.items() if name}
