"""Fine clusters and the tree over them, against SciPy and a naive loop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import is_valid_linkage, leaves_list, linkage
from sklearn.metrics import adjusted_rand_score

from src.clustering import main
from src.clusters.fine import ward
from src.storage import artifacts
from src.storage.artifacts import Manifest
from tests.helpers.blobs import blobs, write


def test_the_tree_of_equal_weights_is_scipys() -> None:
    centers = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_allclose(ward(centers, np.ones(20)), linkage(centers, "ward"), atol=1e-9)


def test_the_tree_weighs_centers_by_their_images() -> None:
    """It is the upper part of the tree over all images, if those of a center are equal."""
    rng = np.random.default_rng(0)
    centers, sizes = rng.normal(size=(12, 3)), rng.integers(1, 9, 12)
    tree = ward(centers, sizes)
    full = linkage(centers.repeat(sizes, axis=0), "ward")[-11:]
    np.testing.assert_allclose(tree[:, 2], full[:, 2], atol=1e-9)
    assert tree[-1, 3] == 12
    assert is_valid_linkage(tree)


@pytest.mark.parametrize(
    ("images", "clusters", "count"), [(60, "3", 7), (60, "12", 12), (3, "1", 1), (900, "3", 50)]
)
def test_the_stage_writes_fine_clusters_in_tree_order(
    tmp_path: Path, images: int, clusters: str, count: int
) -> None:
    x, labels = blobs(images, 1)
    config = write(tmp_path, train=(x, None), test=(x[::-1] + 1e-4, None))
    main(replace(config, clusters=clusters))
    manifest = Manifest(tmp_path)
    fine, tree = manifest.load(artifacts.FINE, "train"), manifest.load(artifacts.FINE_TREE)
    assert sorted({*fine.tolist()}) == [*range(count)]
    assert tree.shape == (count - 1, 4)
    if count > 1:
        assert leaves_list(tree).tolist() == [*range(count)]
    if count == 7:
        # An image of another split goes where its like of the fitted split went.
        assert adjusted_rand_score(manifest.load(artifacts.FINE, "test"), fine[::-1]) > 0.9
        # Cut at 3 groups, the tree finds the three directions.
        group = {f: f for f in range(count)}
        for i, (a, b, *_) in enumerate(tree[:-2].astype(int).tolist()):
            group = {f: count + i if g in (a, b) else g for f, g in group.items()}
        assert adjusted_rand_score([group[f] for f in fine.tolist()], labels) == 1


def test_equal_images_make_fewer_fine_clusters(tmp_path: Path) -> None:
    x = np.repeat(np.eye(3, 20), 8, axis=0)
    main(replace(write(tmp_path, train=(x, None)), clusters="5", smooth=False))
    fine = Manifest(tmp_path).load(artifacts.FINE, "train")
    assert sorted({*fine.tolist()}) == [0, 1, 2]
