"""Metrics of clusters and features, with labels and without.

Shape letters: N images, D features, P principal components, C classes, K clusters.

A label of -1 is an unknown class; callers leave those images out.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, davies_bouldin_score, normalized_mutual_info_score

from src.evaluation.neighbors import BLOCK, CosineBank
from src.evaluation.sampling import are_many, scored_rows, standard_error
from src.evaluation.silhouette import silhouette_samples, silhouettes_of
from src.storage.scores import ClassScores, InternalScores, LabelScores


def hungarian_match(labels: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """Match clusters to classes one to one, so that the most images are right.

    Memory is for the classes that occur, not for all that have a name.

    Returns:
        int64 (K,), the class of each cluster; -1 where there are more clusters than classes, or
        where the cluster holds no image of its class.

    Source: Kuhn 1955, as solved by scipy.
    """
    classes, places = np.unique(labels, return_inverse=True)
    counts = np.bincount(places * n_clusters + clusters, minlength=len(classes) * n_clusters)
    table_CK = counts.reshape(len(classes), n_clusters)  # images of each class in each cluster
    rows, columns = linear_sum_assignment(table_CK, maximize=True)
    named = table_CK[rows, columns] > 0
    class_K = np.full(n_clusters, -1)
    class_K[columns[named]] = classes[rows[named]]
    return class_K


def hungarian_accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of images right, with clusters matched to classes on these images, as papers report."""
    match_K = hungarian_match(labels, clusters, clusters.max() + 1)
    return float(np.mean(match_K[clusters] == labels))


def knn_accuracy(
    bank_ND: np.ndarray,
    bank_labels: np.ndarray,
    queries_MD: np.ndarray,
    labels: np.ndarray,
    leave_one_out: bool = False,
) -> float:
    """Share of the `knn_right`, with its arguments."""
    own_M = np.arange(len(queries_MD)) if leave_one_out else None
    return float(knn_right(bank_ND, bank_labels, queries_MD, labels, own_M).sum() / len(queries_MD))


def knn_right(
    bank_ND: np.ndarray,
    bank_labels: np.ndarray,
    queries_MD: np.ndarray,
    labels: np.ndarray,
    own_M: np.ndarray | None = None,
) -> np.ndarray:
    """bool (M,), the queries whose weighted nearest neighbors in the bank vote for their class.

    The 20 most similar by cosine, or all of a smaller bank, vote with the weight
    exp(similarity / 0.07).

    Args:
        bank_ND: numbers of any real dtype, as the queries.
        own_M: the row of the bank that is the query itself, which is not its own neighbor. Without
            it, no query may be in the bank, where it would vote for itself.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", section 3.4.
    """
    own = None if own_M is None else torch.as_tensor(own_M)
    similarity, near_Mk = CosineBank(bank_ND).nearest(queries_MD, 20, own)
    classes_N, right = torch.as_tensor(bank_labels), []
    for start in range(0, len(near_Mk), BLOCK):
        part = slice(start, start + BLOCK)
        ballots = torch.zeros(len(near_Mk[part]), int(classes_N.max()) + 1)
        ballots.scatter_add_(1, classes_N[near_Mk[part]], (similarity[part] / 0.07).exp())
        right.append(ballots.argmax(dim=1) == torch.as_tensor(labels[part]))
    return torch.cat(right).numpy()


def effective_rank(x_ND: np.ndarray) -> float:
    """How many dimensions the rows use: from 1 to D, 0.0 where all rows are equal.

    exp of the Shannon entropy of the singular values, divided by their sum, of the centered
    matrix. Source: Roy & Vetterli 2007, "The effective rank", definition 1 (there uncentered).
    """
    x = np.asarray(x_ND, np.float64)
    x = x - x[0]  # equal rows become exact zeros, which the rounded mean would not give
    x = x - x.mean(axis=0)
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return entropy_rank(np.linalg.eigvalsh(gram))


def entropy_rank(eigenvalues: np.ndarray) -> float:
    """`effective_rank` from the eigenvalues of the covariance, in any scale."""
    singular = np.sqrt(np.clip(eigenvalues, 0, None))
    share = singular[singular > 1e-7 * singular.max()]
    if not len(share):
        return 0.0
    share = share / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def internal_metrics(x_NP: np.ndarray, clusters: np.ndarray) -> InternalScores:
    """Mean silhouette and Davies-Bouldin index (Davies & Bouldin 1979), both Euclidean.

    Both are exact. Beyond `EXACT` rows, the silhouette is the mean of a sample of `SCORED` rows,
    each among all rows. None where undefined: fewer than two clusters hold rows, or none has two.
    """
    if not 1 < len(np.unique(clusters)) < len(clusters):
        return {"silhouette": None, "davies_bouldin": None}
    is_exact, rows = not are_many(len(x_NP)), scored_rows(len(x_NP))
    each = silhouette_samples(x_NP, clusters) if is_exact else silhouettes_of(x_NP, clusters, rows)
    scores: InternalScores = {
        "silhouette": float(each.mean()),
        "davies_bouldin": float(davies_bouldin_score(x_NP, clusters)),
    }
    if not is_exact:
        scores["silhouette_error"] = standard_error(each, len(x_NP))
    return scores


def external_metrics(
    labels: np.ndarray, clusters: np.ndarray, class_K: np.ndarray, class_names: list[str]
) -> LabelScores:
    """Compare clusters with labels, under each way to name the clusters.

    Args:
        class_K: the class of each cluster on the split that names them, -1 for none.

    Returns:
        hungarian_accuracy: clusters matched to classes one to one on these images.
        transferred_accuracy: clusters named by `class_K`.
        nmi (arithmetic mean), ari: None with a single class or a single cluster.
        confusion: class, predicted class by the Hungarian match (-1 in a cluster without one) and
            number of images, for every pair that occurs.
        per_class: precision, recall and F1 of every class with images here; precision is 0 where
            no image was predicted to be of the class.
    """
    matched_K = hungarian_match(labels, clusters, len(class_K))
    predicted = matched_K[clusters]
    pairs, counts = np.unique([labels, predicted], axis=1, return_counts=True)
    defined = len(np.unique(labels)) > 1 and len(np.unique(clusters)) > 1
    return {
        "hungarian_accuracy": float(np.mean(matched_K[clusters] == labels)),
        "transferred_accuracy": float(np.mean(class_K[clusters] == labels)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)) if defined else None,
        "ari": float(adjusted_rand_score(labels, clusters)) if defined else None,
        "confusion": np.stack([*pairs, counts], axis=1).tolist(),
        "per_class": _per_class(labels, predicted, class_names),
    }


def _per_class(
    labels: np.ndarray, predicted: np.ndarray, class_names: list[str]
) -> dict[str, ClassScores]:
    each = (labels, labels[predicted == labels], predicted[predicted >= 0])
    images_C, right_C, predicted_C = (np.bincount(x, minlength=len(class_names)) for x in each)
    return {
        class_names[c]: {
            "precision": float(right_C[c] / max(predicted_C[c], 1)),
            "recall": float(right_C[c] / images_C[c]),
            "f1": float(2 * right_C[c] / (predicted_C[c] + images_C[c])),
        }
        for c in np.flatnonzero(images_C)
    }
