import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from dataset.load_dataset import load_dataset
from src.clusters import trust
from src.clusters.protocol import Protocol
from src.clusters.trust import clear_from, describe, halves_agreement, small_pixels, trust_report


def protocol(hops: int = 0, **labels: np.ndarray) -> Protocol:
    return Protocol("train", labels, [], False, components=10, restarts=3, hops=hops)


def groups(count: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = 10 * np.eye(4, 8)[np.arange(count) % 4] + spread * rng.normal(size=(count, 8))
    return x.astype(np.float32)


def test_agreement_of_halves_is_that_of_scikit_learn() -> None:
    """Without smoothing, a half assigns an image to its nearest centroid."""
    x, scores = groups(201, 5), []
    for i in range(6):
        halves = np.array_split(np.random.default_rng([7, i]).permutation(201), 2)
        models = [KMeans(6, n_init=3, random_state=7).fit(x[half]) for half in halves]  # type: ignore[arg-type]
        scores.append(adjusted_rand_score(*(model.predict(x) for model in models)))
    assert len(set(scores)) > 1
    assert halves_agreement(protocol(), x, 6, seed=7) == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("hops", [0, 2])
def test_groups_are_clear_and_noise_is_not(hops: int) -> None:
    assert halves_agreement(protocol(hops), groups(200, 0.5), 4, 0) == 1
    noise = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    assert halves_agreement(protocol(hops), noise, 4, 0) < 0.4


def test_labels_do_not_change_it() -> None:
    x = groups(100, 5)
    with_labels = halves_agreement(protocol(train=np.zeros(100, int)), x, 5, 0)
    assert with_labels == halves_agreement(protocol(), x, 5, 0)


def test_the_word_follows_halves_and_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((20, 3, 24, 24), np.uint8)
    images[::2] = 255
    x = np.zeros((20, 2), np.float32)
    for own, pixels, word in (
        (0.46, 0.9, "clear"), (0.44, 0.4, "partial"), (0.4, 0.5, "no better than pixels"),
    ):  # fmt: skip
        values = iter((own, pixels))
        monkeypatch.setattr(trust, "halves_agreement", lambda *_, values=values: next(values))
        report = trust_report(protocol(), x, images, 3, 0) or {}
        assert (report["verdict"], report["halves"]) == (word, own)
        assert report["pixels"]["halves"] == pixels
        assert describe(report).startswith(f"trust: {word}: ")
    monkeypatch.setattr(trust, "halves_agreement", lambda *_: 0.1)
    alone = trust_report(protocol(), x, None, 3, 0) or {}
    assert (alone["verdict"], alone["halves"], alone["pixels"]) == ("partial", 0.1, None)
    assert trust_report(protocol(), x, images, 1, 0) is None
    assert trust_report(protocol(), x, images, 11, 0) is None


def test_more_images_must_agree_better() -> None:
    assert [round(clear_from(count), 2) for count in (20, 400, 2_000, 10_000)] == [
        0.45, 0.53, 0.65, 0.65,
    ]  # fmt: skip


def test_small_pixels_are_means_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (9, 3, 48, 48)).astype(np.uint8)
    expected = images.reshape(9, 3, 24, 2, 24, 2).mean(axis=(3, 5)).reshape(9, -1)
    np.testing.assert_allclose(small_pixels(images, block=4), expected, rtol=1e-5)
    monkeypatch.setattr(trust, "IMAGES", 5)
    np.testing.assert_allclose(small_pixels(images), expected[::2], rtol=1e-5)


def test_raw_digits_are_as_good_as_themselves() -> None:
    images = load_dataset("digits", None).splits["test"].images  # type: ignore[arg-type]
    own = protocol(2)
    _, reduced = own.reduce({"train": small_pixels(images)})
    report = trust_report(own, reduced["train"], images, 10, 0)
    assert report is not None
    assert report["pixels"]["halves"] == report["halves"]
