"""Ranked lists into RecBole's own evaluator.

RecBole's collector takes dense score matrices. Filled with -inf beside a beam's items they turn ties into hits, because
``torch.topk`` returns arbitrary ones among equals; the lists are handed over as they are instead.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.evaluator import Collector, Evaluator

from recbole_gmc.evaluate.topk import TopKTable

UNROUNDED = 17


class _Unrounded:
    """A Config seen with all decimal places: averages over domains need them."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        return UNROUNDED if key == "metric_decimal_place" else self._config[key]


class ListEvaluator:
    """RecBole's metrics of a ``TopKTable``: plain keys over all users, ``<domain>/<metric>`` for each domain.

    A metric is a mean over users, so the plain keys are the user-weighted average over the domains.
    """

    def __init__(self, config: Config, collector: Collector) -> None:
        self.width = max(config["topk"])
        self.collector = collector
        self.evaluator = Evaluator(_Unrounded(config))

    def __call__(self, table: TopKTable) -> OrderedDict[str, float]:
        """Unrounded values."""
        result = self._measure(table)
        present = [(i, name) for i, name in enumerate(table.items.domains) if (table.domain == i).any()]
        for position, name in present:
            part = self._measure(table.of_domain(position))
            result.update((f"{name}/{metric}", value) for metric, value in part.items())
        return result

    def _measure(self, table: TopKTable) -> OrderedDict[str, float]:
        place = np.arange(self.width)
        hits = torch.from_numpy((table.rank[:, None] == place).astype(np.int32))
        one = torch.ones(len(table), 1, dtype=torch.int32)  # one relevant item a user: the held-out one
        self.collector.data_struct.set("rec.topk", torch.cat([hits, one], 1))
        measured = self.evaluator.evaluate(self.collector.get_data_struct())
        return OrderedDict((name, float(value)) for name, value in measured.items())
