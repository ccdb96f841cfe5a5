"""The linear probe against scikit-learn's own cross-validation, and what it says it was given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from threadpoolctl import threadpool_info, threadpool_limits

from src.clusters.head import fit_head
from src.evaluation.linear_probe import STRENGTHS, linear_probe
from tests.helpers.blobs import blobs, metrics, write


def noisy(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and features that tell them apart only in part."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    return labels, np.float32(np.eye(classes, 6)[labels] + 7 + 0.6 * rng.normal(size=(count, 6)))


@pytest.mark.parametrize("regress", [
    lambda labels, x: linear_probe(labels, x, (labels, x), seed=0),
    lambda labels, x: fit_head(x, labels, 3),
])  # fmt: skip
def test_regressions_take_one_thread(regress: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more, NumPy's threads and SciPy's wait for each other: up to ten times as long."""
    fit, threads = LogisticRegression.fit, []

    def observed(*args: Any) -> LogisticRegression:
        threads.extend(x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas")
        return fit(*args)

    monkeypatch.setattr(LogisticRegression, "fit", observed)
    with threadpool_limits(2, "blas"):
        regress(*noisy(60, 0))
    assert set(threads) == {1}


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_the_best_of_cold_started_regressions(classes: int) -> None:
    labels, x = noisy(240, 0, classes)
    test_labels, test_x = noisy(300, 1, classes)
    mean, splitter = x.mean(axis=0), StratifiedKFold(3, shuffle=True, random_state=5)
    length = np.sqrt(((x - mean) ** 2).sum(axis=1).mean())
    models = [LogisticRegression(C=c, tol=1e-8, max_iter=5000) for c in STRENGTHS]
    folds = [cross_val_score(m, (x - mean) / length, labels, cv=splitter) for m in models]
    accuracies = np.mean(folds, axis=1)
    assert len(set(accuracies)) > 2  # C matters
    best = int(accuracies.argmax())
    expected = (
        models[best].fit((x - mean) / length, labels).score((test_x - mean) / length, test_labels)
    )
    found = linear_probe(labels, x, (test_labels, test_x), seed=5)
    assert found == {"accuracy": expected, "C": STRENGTHS[best], "folds": 3}
    alone = linear_probe(labels, x, None, seed=5)
    assert alone == found | {"accuracy": pytest.approx(accuracies[best], abs=1e-9)}


def test_it_stands_in_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, labels = blobs(60, 1)
    labels[:20] = -1  # not used
    config = replace(write(tmp_path, train=(x, labels), test=blobs(30, 2)), linear_probe=True)
    probe = metrics(config)["linear_probe"]
    assert probe["accuracy"] == 1.0
    assert (probe["fit_on"], probe["scored_on"], probe["folds"]) == ("train", "test", 3)
    line = "linear probe: accuracy 1.000 on test of a classifier that learned the labels of train"
    assert line in capsys.readouterr().out
    assert "linear_probe" not in metrics(replace(config, linear_probe=False))


@pytest.mark.parametrize(
    ("splits", "scored_on", "said"),
    [
        ({"train": blobs(30, 1)}, "train", "1.000 on train itself, cross-validated, of a"),
        ({"train": (blobs(30, 1)[0], None), "test": blobs(30, 2)}, None, "no linear probe: it"),
        ({"train": (blobs(30, 1)[0], np.zeros(30, int))}, None, "no linear probe: it needs"),
        ({"train": (blobs(30, 1)[0], np.arange(30) % 29 // 28)}, None, "no linear probe: it"),
    ],
)
def test_without_labels_it_says_what_is_scored_instead(
    splits: dict, scored_on: str | None, said: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    result = metrics(replace(write(tmp_path, **splits), linear_probe=True))
    assert result.get("linear_probe", {}).get("scored_on") == scored_on
    assert said in capsys.readouterr().out
