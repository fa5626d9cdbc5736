"""The same held-out items for every model of RecBole.

Its leave-one-out counts rows. A sequential model has a row for each interaction but a user's first, so it tests who has
3 interactions and validates who has 4; any other model would test 2 and validate 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from logging import getLogger

import numpy as np
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import cat_interactions

from recbole_gmc.errors import DataError

TESTED, VALIDATED = 3, 4  # interactions of a user


def refuse_untested(counts: Iterable[int], domain: str) -> None:
    """Raises ``DataError`` if no user has the interactions that a test needs; ``counts`` holds one number a user."""
    counts = list(counts)
    if counts and max(counts) < TESTED:
        what = f"no user has {TESTED} interactions, so there are no test users"
        raise DataError(what, f"domain {domain}", "Add data, or leave the domain out")


def hold_out(dataset: Dataset, domain: str) -> Dataset:
    """Splits a data set as ``GMCDataset`` does; RecBole's ``data_preparation`` then finds this split.

    Raises:
        DataError: no user has the interactions that a test needs.
    """
    count = np.bincount(dataset.inter_feat[dataset.uid_field].to_numpy(), minlength=dataset.user_num)
    refuse_untested(count, domain)
    if short := int(((count > 0) & (count < TESTED)).sum()):
        getLogger().warning(f"{domain}: {short} users with fewer than {TESTED} interactions serve training only")
    splits = dataset.build()
    if not isinstance(dataset, SequentialDataset):
        splits = _as_sequential(splits, count)
    dataset.build = partial(list, splits)  # some models pickle their data set
    return dataset


def _as_sequential(splits: list[Dataset], count: np.ndarray) -> list[Dataset]:
    """Moves to training whom a sequential model would not test or validate; ``count`` is a user's interactions."""
    train, *held_out = splits
    rows, kept = [train.inter_feat], []
    for split, least in zip(held_out, (VALIDATED, TESTED), strict=True):
        stays = count[split.inter_feat[split.uid_field].numpy()] >= least
        rows.append(split.inter_feat[~stays])
        kept.append(split.copy(split.inter_feat[stays]))
    return [train.copy(cat_interactions(rows)), *kept]
