"""Top-k lists from RecBole's full-sort scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.evaluator import Collector
from recbole.utils.case_study import full_sort_scores

from recbole_gmc.decode.soundness import refuse_broken
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex

WIDTH = 20  # lists are at least as long as a default beam, so files of all models look alike


class ShortLists(Collector):
    """RecBole's collector for catalogues below the largest k, on which ``torch.topk`` would fail."""

    def eval_batch_collect(self, scores_tensor: torch.Tensor, *rest: Any) -> None:
        lacking = (0, max(0, max(self.topk) - scores_tensor.shape[1]))
        super().eval_batch_collect(torch.nn.functional.pad(scores_tensor, lacking, value=-torch.inf), *rest)


@torch.no_grad()
def lists_of(network: torch.nn.Module, dataset: Dataset, test: Any, domain: str, width: int = WIDTH) -> TopKTable:
    """Lists of ``width`` from RecBole's full-sort scores; equal scores keep the catalogue's order.

    Raises:
        GMCError: a score is not a number.
    """
    network.eval()
    device = next(network.parameters()).device
    tokens = dataset.field2id_token[dataset.iid_field]
    items = ItemIndex.of({domain: tokens[1:].tolist()})
    row = np.array([-1, *(items.row_of[domain][token] for token in tokens[1:])])
    item_of_row = torch.from_numpy(np.argsort(row)[1:])
    users, ranked, scores = dataset.inter_feat[dataset.uid_field], [], []
    for part in users.split(1024):
        dense = full_sort_scores(part.numpy(), network, test, device).cpu()[:, item_of_row]
        refuse_broken(dense.isnan())
        best = dense.sort(dim=1, descending=True, stable=True)
        short = (0, max(0, width - dense.shape[1]))  # a catalogue below width ends in -1 with no score
        ranked.append(torch.nn.functional.pad(best.indices[:, :width], short, value=-1).numpy())
        scores.append(torch.nn.functional.pad(best.values[:, :width], short, value=-torch.inf).numpy())
    return TopKTable(
        items=items,
        domain=np.zeros(len(users), np.int64),
        user=tuple(dataset.id2token(dataset.uid_field, users)),
        target=row[dataset.inter_feat[dataset.iid_field].numpy()],
        ranked=np.concatenate(ranked).astype(np.int64),
        scores=np.concatenate(scores).astype(np.float32),
        certified=np.ones(len(users), bool),
    )
