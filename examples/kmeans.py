"""Three clusters by scikit-learn, and every point's squared distance to the centres from one product.

|p - c|^2 = |p|^2 - 2 p.c + |c|^2: all distances of all points come out of P C^T.
"""

import torch
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from pytorch_ext.functional import matmul


def cluster():
    """300 points (300, 2) and scikit-learn's fit of three clusters.

    scikit-learn adds up each thread's points by themselves. In float64 that moves a centre by less than float32 shows.
    """
    points, _ = make_blobs(n_samples=300, centers=3, cluster_std=0.8, random_state=0)
    points = points.astype("float32")
    return points, KMeans(n_clusters=3, n_init=10, random_state=0).fit(points.astype("float64"))


def load_data():
    points, fit = cluster()
    return torch.from_numpy(points), torch.from_numpy(fit.cluster_centers_).float()


def compute(points, centers):
    products = matmul(points, centers.t())
    squares = (points * points).sum(dim=1, keepdim=True) + (centers * centers).sum(dim=1)
    distances = squares - 2 * products
    return {"squared distances": distances, "labels": distances.argmin(dim=1)}


if __name__ == "__main__":
    labels = compute(*load_data())["labels"]
    agree = (labels.numpy() == cluster()[1].labels_).mean()
    print(f"points per cluster {labels.bincount().tolist()}, as scikit-learn says for {agree:.0%} of them")
