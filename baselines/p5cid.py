"""P5CID: item IDs by collaborative indexing, for one domain alone (arXiv 2305.06569)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
from recbole.config import Config
from recbole_gmc.baselines.clusters import cluster_tree, co_occurrence, within_clusters

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.gmc import GMC
from recbole_gmc.settings import key, read
from recbole_gmc.tokenizer.quality import codes_used
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.prepare import Prepared
from recbole_gmc.train.trainer import GMCTrainer


@dataclass(frozen=True)
class P5CIDSettings:
    """The tree of clusters."""

    clusters: int = key("cid_clusters", 20, least=2)
    leaf_size: int = key("cid_leaf_size", 500, least=1)
    depth: int = key("cid_depth", 8, least=2, most=15)


class P5CID(GMC):
    """A T5 over collaborative IDs: the path of an item's clusters, and its number in the last one."""

    label = "small from-scratch setting"
    own_settings: ClassVar[tuple[type, ...]] = (P5CIDSettings,)


class P5CIDTrainer(GMCTrainer):
    """GMC's trainer with IDs from the training interactions; item text decides nothing."""

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        """Nothing is read but the interactions."""

    def _make_ids(self, dataset: GMCDataset, show_progress: bool) -> Prepared:
        started = time.perf_counter()
        ids, figures = collaborative_ids(dataset, read(P5CIDSettings, self.config))
        figures["seconds"] = round(time.perf_counter() - started, 2)
        self.logger.info(
            f"Collaborative IDs: {figures['clusters']} clusters of at most {figures['largest_cluster']} items, "
            f"{figures['within_clusters']:.0%} of the co-occurrences inside them ({figures['by_chance']:.0%} by chance)"
        )
        return Prepared(ids, figures, {"items": ids.items.fingerprint, "semantic_ids": ids.fingerprint})


def collaborative_ids(train: GMCDataset, settings: P5CIDSettings) -> tuple[SemanticIds, dict[str, Any]]:
    """IDs from the training split alone, and the figures that say how good they are.

    The path of clusters stands in the first codes (0 where it has ended), each cluster with a number of its own; the
    last code is the item's number in its cluster. Items are numbered in the order of a hash of their tokens: tokens
    that count in the order of someone's history would tell the next item.
    """
    items = train.items
    tokens = [token for domain in items.domains for token in items.tokens[domain]]
    order = np.argsort([sha256(token.encode()).hexdigest() for token in tokens])
    graph = co_occurrence(SequenceRows.of(train), len(items))[order][:, order]
    tree = cluster_tree(graph, settings.clusters, settings.leaf_size, settings.depth)
    codes = np.empty_like(tree.codes)
    codes[order] = tree.codes
    inside, chance = within_clusters(graph, tree)
    figures = {
        "method": "collaborative indexing",
        "levels": codes.shape[1],
        "codebook_size": tree.codebook_size,
        "codes_used": codes_used(codes),
        "clusters": int(tree.leaf.max()) + 1,
        "largest_cluster": int(np.bincount(tree.leaf).max()),
        "items_without_neighbours": int((np.diff(graph.indptr) == 0).sum()),
        "within_clusters": inside,
        "by_chance": chance,
        "unique_after": True,
    }
    return SemanticIds(items, codes, tree.codebook_size), figures
