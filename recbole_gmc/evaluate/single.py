"""RecBole's own models, one domain at a time, with results in the same form as ours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import Collector
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from recbole.utils.case_study import full_sort_scores

from recbole_gmc.data.rows import last_of_each
from recbole_gmc.evaluate.collector import ListEvaluator
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex

WIDTH = 20  # lists are as long as a default beam, so files of all models look alike


@dataclass(frozen=True)
class DomainRun:
    """One model on one domain: its test lists, RecBole's own test result, and what it took."""

    table: TopKTable
    result: Mapping[str, float]
    valid: Mapping[str, float]
    parameters: int
    epochs: int
    seconds: Mapping[str, float]


def run_domain(
    model: str,
    domain: str,
    config_file_list: Sequence[str],
    config_dict: Mapping[str, Any],
    max_prefixes: int | None = None,
) -> DomainRun:
    """Trains and tests a RecBole model by RecBole's own steps; ``max_prefixes`` keeps each user's last training rows."""
    config = Config(model, domain, list(config_file_list), dict(config_dict))
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    getLogger().info(f"{model} on {domain}")
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    if max_prefixes:
        train = _shortened(config, train, max_prefixes)
    init_seed(config["seed"], config["reproducibility"])
    network = get_model(model)(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    started = perf_counter()
    _, best_valid = trainer.fit(train, valid, show_progress=config["show_progress"])
    fitted = perf_counter()
    result = trainer.evaluate(test, show_progress=config["show_progress"])
    table = lists_of(network, test._dataset, test, domain)
    seconds = {"train": fitted - started, "test": perf_counter() - fitted}
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return DomainRun(table, result, best_valid or {}, parameters, len(trainer.train_loss_dict), seconds)


def _shortened(config: Config, train: TrainDataLoader, n: int) -> TrainDataLoader:
    data = train._dataset
    kept = data.inter_feat[last_of_each(data.inter_feat[data.uid_field], n)]
    return TrainDataLoader(config, data.copy(kept), train._sampler, shuffle=train.shuffle)


@torch.no_grad()
def lists_of(network: torch.nn.Module, dataset: Dataset, test: Any, domain: str) -> TopKTable:
    """Top lists from RecBole's full-sort scores; equal scores keep the catalogue's order."""
    network.eval()
    device = next(network.parameters()).device
    tokens = dataset.field2id_token[dataset.iid_field]
    items = ItemIndex.of({domain: tokens[1:].tolist()})
    row = np.array([-1, *(items.row_of[domain][token] for token in tokens[1:])])
    item_of_row = torch.from_numpy(np.argsort(row)[1:])
    users, ranked, scores = dataset.inter_feat[dataset.uid_field], [], []
    for part in users.split(1024):
        dense = full_sort_scores(part.numpy(), network, test, device).cpu()[:, item_of_row]
        best = dense.sort(dim=1, descending=True, stable=True)
        ranked.append(best.indices[:, :WIDTH].numpy())
        scores.append(best.values[:, :WIDTH].numpy())
    return TopKTable(
        items=items,
        domain=np.zeros(len(users), np.int64),
        user=tuple(dataset.id2token(dataset.uid_field, users)),
        target=row[dataset.inter_feat[dataset.iid_field].numpy()],
        ranked=np.concatenate(ranked).astype(np.int64),
        scores=np.concatenate(scores).astype(np.float32),
        certified=np.ones(len(users), bool),
    )


def union(tables: Mapping[str, TopKTable]) -> TopKTable:
    """The tables of several domains as one."""
    items = ItemIndex({domain: table.items.tokens[domain] for domain, table in tables.items()})
    parts = []
    for position, (domain, table) in enumerate(tables.items()):
        shift = items.rows(domain).start
        moved = [np.where(rows >= 0, rows + shift, -1) for rows in (table.target, table.ranked)]
        there = np.full(len(table), position)
        parts.append(replace(table, items=items, domain=there, target=moved[0], ranked=moved[1]))
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("domain", "target", "ranked", "scores", "certified")}
    return TopKTable(items=items, user=tuple(user for part in parts for user in part.user), **joined)


def measure(table: TopKTable, config: Config) -> OrderedDict[str, float]:
    """RecBole's metrics of lists; list metrics never read item ids, so rows stand in for them."""
    return ListEvaluator(config, Collector(config))(table, np.arange(1, len(table.items) + 1))
