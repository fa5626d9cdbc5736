"""Every row of a split to its ranked list."""

from __future__ import annotations

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex
from recbole_gmc.recommender import ListRecommender

USERS_PER_TICK = 2048


def rank_rows(
    recommender: ListRecommender, items: ItemIndex, rows: SequenceRows, users: tuple[str, ...], progress: bool = False
) -> TopKTable:
    """Ranks the items of each row's own domain for its history.

    Args:
        users: the original user token of each row.
    """
    width = recommender.decode.beam_size
    ranked = np.full((len(rows), width), -1, np.int64)
    scores = np.full((len(rows), width), -np.inf, np.float32)
    certified = np.zeros(len(rows), bool)
    domain, length = rows.domain.cpu(), rows.length.cpu()
    with tqdm(total=len(rows), ncols=100, desc=set_color("Evaluate   ", "pink"), disable=not progress) as bar:
        for position in domain.unique().tolist():
            mine = (domain == position).nonzero().flatten()
            for part in mine[torch.argsort(length[mine], stable=True)].split(USERS_PER_TICK):
                there = part.to(rows.history.device)
                found = recommender.rank(items.domains[position], rows.history[there], rows.length[there])
                ranked[part], scores[part], certified[part] = found.ranked, found.scores, found.certified
                bar.update(len(part))
    return TopKTable(items, domain.numpy(), users, rows.target.cpu().numpy(), ranked, scores, certified)
