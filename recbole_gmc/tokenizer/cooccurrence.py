"""What users take one after the other, as further dimensions of the vectors that become semantic IDs.

The singular vectors of positive pointwise mutual information are embeddings of items by the company they keep (Levy and
Goldberg 2014). Domains share no users, so their spaces are unrelated; each is turned towards the text before they are
joined, or the first level of the codes would only tell the domains apart.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.sparse import coo_array, csr_array
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import CooccurrenceSettings
from recbole_gmc.tokenizer.rkmeans import moments, principal_axes
from recbole_gmc.vectors import Vectors, sample_rows

SAMPLE = 131_072  # items that decide the axes of the text


def cooccurrences(history: np.ndarray, length: np.ndarray, target: np.ndarray, count: int, window: int) -> csr_array:
    """How often two items stand at most ``window`` places apart in a user's sequence: symmetric, zero diagonal.

    Args:
        history: int64 [n, S], items before each target, oldest first; every item of a sequence but its first is the
            target of one row.
        length: int64 [n], how many of them count.
        target: int64 [n].
        count: items there are.
    """
    before, after = [], []
    for distance in range(1, min(window, history.shape[1]) + 1):
        rows = np.flatnonzero(length >= distance)
        before.append(history[rows, length[rows] - distance])
        after.append(target[rows])
    one, two = np.concatenate(before), np.concatenate(after)
    one, two = one[one != two], two[one != two]
    found = coo_array((np.ones(len(one)), (one, two)), (count, count)).tocsr()
    return csr_array(found + found.T)


def ppmi(counts: csr_array) -> csr_array:
    """max(0, log(c_ij * c / (c_i * c_j))) of symmetric counts with the sums c_i of rows and c of all."""
    of_item, pairs = counts.sum(1), counts.tocoo()
    one, two = pairs.coords
    found = np.log(pairs.data * counts.sum() / (of_item[one] * of_item[two])) if pairs.nnz else pairs.data
    result = csr_array((np.maximum(found, 0.0), (one, two)), counts.shape)
    result.eliminate_zeros()
    return result


def factors(information: csr_array, dim: int) -> np.ndarray:
    """[items, dim]: U sqrt(S) of the truncated singular value decomposition, with rows of length 1.

    Without that length a few rare items, whose information is highest, would make up most of the block. Rows of items
    that stand beside no others are zero, as are columns past the rank that there can be.
    """
    found = np.zeros((information.shape[0], dim))
    if information.nnz:
        left, values, _ = randomized_svd(information, min(dim, information.shape[0]), random_state=0)
        found[:, : len(values)] = normalize(left * np.sqrt(values))
    return found


def aligned(block: np.ndarray, known: np.ndarray, text: np.ndarray) -> np.ndarray:
    """A domain's block [n, d], centred and turned to lie as near to its text [n, d] as a rotation can bring it.

    Args:
        known: bool [n], items that stand beside others; they decide, and the rest stay at the centre.
    """
    centred = np.where(known[:, None], block - block[known].mean(0), 0.0)
    turn, _ = orthogonal_procrustes(centred[known], text[known] - text[known].mean(0))
    return centred @ turn


def with_cooccurrence(
    items: ItemIndex, text: Vectors, counts: csr_array, settings: CooccurrenceSettings, seed: int
) -> np.ndarray:
    """float32 [items, D + d]: the text vectors [items, D] with the block behind them.

    In every domain the block's variance is ``settings.weight`` times that of all text; squared distances are made of
    both in this proportion.

    Args:
        counts: [items, items], of training interactions alone; pairs across domains are not read.
    """
    dim = min(settings.dim, text.shape[1])
    mean, squares = moments(text)
    axes = principal_axes(text, sample_rows(len(items), SAMPLE, seed), mean, dim, seed)
    whole = np.asarray(text[:], dtype=np.float32)
    block = np.zeros((len(items), dim))
    for domain in items.domains:
        rows = items.rows(domain)
        own = csr_array(counts[rows, :][:, rows])
        known = own.sum(1) > 0
        if known.any():
            place = (whole[rows] - mean) @ axes
            turned = aligned(factors(ppmi(own), dim), known, place)
            spread = (turned**2).sum() / len(turned)
            block[rows] = turned * np.sqrt(settings.weight * squares / len(items) / spread) if spread > 0 else 0.0
    return np.concatenate([whole, block.astype(np.float32)], 1)
