"""A tree of item clusters from the graph of items that occur together (arXiv 2305.06569, section 4.2)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from threadpoolctl import threadpool_limits

from recbole_gmc.data.rows import SequenceRows

DENSE_UP_TO = 400  # items from which the eigenvectors are found without the whole matrix

SINGLE = -1


def co_occurrence(train: SequenceRows, items: int) -> csr_matrix:
    """How many users have both items in their training histories: float64 [items, items], zero diagonal.

    Every pair of a user's items counts once, however far apart. Training rows hold no validation or test item.
    """
    history, target, user = train.history.cpu().numpy(), train.target.cpu().numpy(), train.user.cpu().numpy()
    width = history.shape[1]
    item = np.concatenate([history.ravel(), target])
    owner = np.concatenate([np.repeat(user, width), user])
    inside = item >= 0
    users = int(user.max(initial=0)) + 1
    seen = csr_matrix((np.ones(inside.sum()), (owner[inside], item[inside])), shape=(users, items))
    seen.data[:] = 1.0  # an item that a user took twice
    graph = csr_matrix(seen.T @ seen)
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def spectral_clusters(graph: csr_matrix, clusters: int, seed: int = 0) -> np.ndarray:
    """Cluster numbers int64 [n] of a connected graph: normalised cut by eigenvectors, assigned by pivoted QR.

    What scikit-learn's ``spectral_clustering(assign_labels="cluster_qr")`` computes (Damle, Minden and Ying, arXiv
    1708.07481), without factorising the matrix: on thousands of items its factors would fill the memory.
    """
    count = graph.shape[0]
    clusters = min(clusters, count)
    degree = np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    scaled = csr_matrix(graph.multiply(1 / degree[:, None]).multiply(1 / degree[None, :]))
    with threadpool_limits(1):  # sums in another order would move the last bits
        if count <= max(DENSE_UP_TO, 2 * clusters):
            vectors = scipy.linalg.eigh(scaled.toarray(), subset_by_index=(count - clusters, count - 1))[1]
        else:
            start = np.random.default_rng(seed).uniform(-1, 1, count)
            vectors = eigsh(scaled, k=clusters, which="LA", v0=start, tol=1e-8)[1]
        vectors = vectors / degree[:, None]
        pivots = scipy.linalg.qr(vectors.T, mode="r", pivoting=True)[1][:clusters]
        left, _, right = scipy.linalg.svd(vectors[pivots].T)
        return np.abs(vectors @ (left @ right)).argmax(axis=1)


@dataclass(frozen=True)
class ClusterTree:
    """Where each item of a graph lies.

    Attributes:
        codes: int32 [n, depth + 1]. Each but the last column numbers the clusters of one depth from 1, 0 where the
            path has ended; the last numbers the items of a cluster from 0. Rows are distinct.
        leaf: int64 [n], the number of each item's last cluster.
    """

    codes: np.ndarray
    leaf: np.ndarray

    @property
    def codebook_size(self) -> int:
        return int(self.codes.max()) + 1


def cluster_tree(graph: csr_matrix, clusters: int, leaf_size: int, depth: int, seed: int = 0) -> ClusterTree:
    """Cuts the items into ``clusters``, and every cluster of more than ``leaf_size`` items again, breadth first.

    Items of other components than the largest are a cluster of their own, and so are those that occur with no other.
    Where nothing can be cut, and at the last ``depth``, a cluster is cut evenly in the order of the rows, which should
    therefore be a random one.
    """
    count = graph.shape[0]
    paths: list[list[int]] = [[] for _ in range(count)]
    number = np.zeros(count, dtype=np.int32)
    leaf = np.zeros(count, dtype=np.int64)
    named = [0] * depth  # clusters so far, a depth
    waiting = deque([(np.arange(count), 0)])
    leaves = 0
    while waiting:
        members, level = waiting.popleft()
        if level and len(members) <= leaf_size:
            number[members], leaf[members] = np.arange(len(members)), leaves
            leaves += 1
            continue
        for part in _cut(graph, members, clusters, leaf_size, seed, first=level == 0, last=level == depth - 1):
            named[level] += 1
            for item in part:
                paths[item].append(named[level])
            waiting.append((part, level + 1))
    longest = max(map(len, paths))
    codes = np.zeros((count, longest + 1), dtype=np.int32)
    for item, path in enumerate(paths):
        codes[item, : len(path)] = path
    codes[:, -1] = number
    return ClusterTree(codes, leaf)


def _cut(
    graph: csr_matrix, members: np.ndarray, clusters: int, leaf_size: int, seed: int, *, first: bool, last: bool
) -> list[np.ndarray]:
    """The parts of one cluster in the order of their first rows; those without neighbours last, whoever they are."""
    within = graph[members][:, members]
    component = connected_components(within, directed=False)[1]
    sizes = np.bincount(component)
    largest = int(sizes.argmax())
    if not last and sizes[largest] > (1 if first else leaf_size):
        label = np.where(sizes[component] > 1, clusters, SINGLE)  # what is not in the largest component
        inside = component == largest
        label[inside] = spectral_clusters(within[inside][:, inside], clusters, seed)
    else:  # blocks of neighbours in the order of components, so that most stay whole
        place = np.argsort(component, kind="stable")
        label = np.empty(len(members), dtype=np.int64)
        label[place] = np.arange(len(members)) // leaf_size
    if len(members) > leaf_size and len(np.unique(label)) == 1:
        label = np.arange(len(members)) // leaf_size
    parts = [(name == SINGLE, members[label == name]) for name in np.unique(label)]
    return [part for _, part in sorted(parts, key=lambda pair: (pair[0], pair[1][0]))]


def within_clusters(graph: csr_matrix, tree: ClusterTree) -> tuple[float, float]:
    """Share of the co-occurrences that lie inside last clusters, and the share that clusters of these sizes would have
    if items were put into them at random."""
    pairs = graph.tocoo()
    inside = pairs.data[tree.leaf[pairs.row] == tree.leaf[pairs.col]].sum()
    sizes, count = np.bincount(tree.leaf), len(tree.leaf)
    chance = float((sizes * (sizes - 1)).sum()) / max(1, count * (count - 1))
    return float(inside / max(pairs.data.sum(), 1.0)), chance
