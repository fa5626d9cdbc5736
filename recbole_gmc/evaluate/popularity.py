"""The most popular items of each domain: what any model must beat."""

from __future__ import annotations

import numpy as np

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex


def popular(items: ItemIndex, train: SequenceRows, test: SequenceRows, users: tuple[str, ...], width: int) -> TopKTable:
    """Ranks each domain's items by how often training rows have them as target; equals keep the order of ``items``."""
    counts = np.bincount(train.target.cpu().numpy(), minlength=len(items))
    domain = test.domain.cpu().numpy()
    ranked = np.full((len(test), width), -1, np.int64)
    scores = np.full((len(test), width), -np.inf, np.float32)
    for position, name in enumerate(items.domains):
        rows = items.rows(name)
        best = np.argsort(-counts[rows], kind="stable")[:width] + rows.start
        mine = domain == position
        ranked[mine, : len(best)] = best
        scores[mine, : len(best)] = counts[best]
    return TopKTable(items, domain, users, test.target.cpu().numpy(), ranked, scores, np.ones(len(test), bool))
