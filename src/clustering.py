"""Cluster the features and score the clusters.

    python src/clustering.py
    python src/clustering.py --names    # follow names.json, without clustering again

L2 normalization, exact PCA, K-means++; PCA and K-means are fitted on one split and applied to
all of them. K-means runs twice: on the principal components, and on rows averaged with their
nearest neighbors. Later stages use the clusters of the averaged rows; --no-smooth skips them.

Reads features/{split}_features.npy and _labels.npy. Writes features/{split}_pca.npy, pca_*.npy,
centroids.npy, head_*.npy, cluster_to_class.npy, {split}_clusters.npy, _certainty.npy,
_distance.npy (to the own cluster) and _unusual.npy, {split}_fine.npy and fine_tree.npy (about 50
fine clusters and a tree over them), metrics.json and its part of manifest.json. If there is a
names.json, it is carried over to the new clusters, and group_*.npy assign new pictures to the
groups in it; clusters_*.json remember the last clusterings for that.
Labels are used only to name and score the clusters, never to find them.

There are two accuracies. `hungarian_accuracy` matches clusters to classes separately on each split,
as papers report. `transferred_accuracy` matches them once, on the split that K-means was fitted on,
and scores the other splits with this matching, as you would without test labels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.clusters.flags import ClusteringConfig
from src.runtime.cli import run_script


def main(config: ClusteringConfig) -> None:
    from src.clusters.stage import run

    run(config)


if __name__ == "__main__":
    run_script(main, ClusteringConfig)
