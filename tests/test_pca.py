import tracemalloc

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from src.clusters.pca import fit_pca
from src.evaluation.metrics import effective_rank
from src.evaluation.neighbors import l2_normalized
from src.runtime.cli import UserError


def features(rows: int, dim: int) -> np.ndarray:
    """Float32 with a large mean and a falling spectrum, as a ReLU network gives."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 60)) * np.geomspace(1, 0.01, 60)
    return np.maximum(x @ rng.normal(size=(60, dim)) + 3, 0).astype(np.float32)


@pytest.mark.parametrize(("rows", "dim"), [(700, 400), (150, 2048), (64, 64)])
def test_pca_agrees_with_a_full_svd(rows: int, dim: int) -> None:
    x = features(rows, dim)
    pca = fit_pca(x, 30, l2_normalize=True)
    svd = PCA(30, svd_solver="full").fit(l2_normalized(x).astype(np.float64))
    assert subspace_angles(pca.components_PD.T.astype(np.float64), svd.components_.T).max() < 1e-3
    np.testing.assert_allclose(pca.variance_ratio_P, svd.explained_variance_ratio_, atol=1e-6)
    assert pca.effective_rank == pytest.approx(effective_rank(l2_normalized(x)), rel=1e-4)
    ours = pca.transform(x)
    theirs = svd.transform(l2_normalized(x).astype(np.float64))
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-4 * np.abs(theirs).max())


def test_many_dimensions_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of raw pixels, which in float64 take eight times the memory of the pictures."""
    x = (255 * np.random.default_rng(0).random((200, 30_000))).astype(np.uint8)
    expected = fit_pca(x, 20, l2_normalize=True)
    monkeypatch.setattr("src.clusters.pca.WIDE", 2**19)
    tracemalloc.start()
    pca = fit_pca(x, 20, l2_normalize=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * x.nbytes
    np.testing.assert_allclose(pca.components_PD, expected.components_PD, atol=1e-6)


def test_components_stop_at_the_dimensions_there_are() -> None:
    assert len(fit_pca(features(8, 30), 100, l2_normalize=True).variance_ratio_P) == 7
    three_points = np.repeat(features(3, 30), 4, axis=0)
    pca = fit_pca(three_points, 100, l2_normalize=True)
    assert len(pca.variance_ratio_P) == 2
    assert np.isfinite(pca.transform(three_points)).all()


def test_equal_rows_are_an_error() -> None:
    row = np.random.default_rng(0).random((1, 64), dtype=np.float32)
    for l2_normalize in (True, False):
        with pytest.raises(UserError, match="all 20 rows are equal"):
            fit_pca(np.repeat(row, 20, axis=0), 5, l2_normalize)


def test_rows_of_zeros_stay_zeros() -> None:
    assert l2_normalized(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0, 0], [0.6, 0.8]]
