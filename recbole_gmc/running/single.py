"""RecBole's own models, one domain at a time, with results in the same form as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import TrainDataLoader
from recbole.utils import get_model, get_trainer, init_logger, init_seed

from recbole_gmc.data.rows import last_of_each
from recbole_gmc.evaluate.collector import ListEvaluator
from recbole_gmc.evaluate.dense_lists import WIDTH, ShortLists, lists_of
from recbole_gmc.evaluate.split import hold_out
from recbole_gmc.running.domain_run import DomainRun
from recbole_gmc.running.planning import DomainPlan
from recbole_gmc.running.refusals import refusing
from recbole_gmc.train.budget import Budget, BudgetReached
from recbole_gmc.train.memory import keep_freed_memory

PRETRAINED = ("S3Rec",)  # models of RecBole whose training has two stages


@dataclass(frozen=True)
class FittedDomain:
    """One of RecBole's models, trained on one domain by RecBole's own steps and not tested yet.

    ``watched`` and ``test`` are the loaders of both. ``score`` is the validation metric's, as RecBole rounds it, and
    ``users`` counts those who decided it. ``first`` is what a stage of pre-training left, ``limited`` that the budget
    ended training.
    """

    config: Config
    network: torch.nn.Module
    trainer: Any
    watched: Any
    test: Any
    domain: str
    score: float
    valid: Mapping[str, float]
    users: int
    seconds: float
    first: Pretrained | None = None
    limited: bool = False


def run_domain(plan: DomainPlan, budget: Budget | None = None) -> DomainRun:
    """Trains and tests by RecBole's own steps; ``max_prefixes`` keeps only the last training rows of each user."""
    return test_domain(fit_domain(plan, budget=budget))


def fit_domain(
    plan: DomainPlan, callback: Callable[[int, float], None] | None = None, budget: Budget | None = None
) -> FittedDomain:
    """Trains; ``callback`` is RecBole's, told of every epoch's validation score.

    A model with a stage of pre-training (S3Rec) has it first, unless ``pre_model_path`` names what it would make.
    """
    budget, first = budget or Budget(None), None
    if plan.model in PRETRAINED:
        if not plan.settings.get("pre_model_path"):
            first = _pretrain(plan, budget)
            plan = plan.having(pre_model_path=str(first.file))
        plan = plan.having(train_stage="finetune")
    config, (train, valid, test), network, trainer = _prepared(plan)
    items = test._dataset.item_num - 1
    if items < max(config["topk"]):
        getLogger().warning(f"{plan.domain} has {items} items: lists end before {max(config['topk'])}")
        trainer.eval_collector = ShortLists(config)
    budget.bind(trainer)
    started = perf_counter()
    try:
        trainer.fit(train, valid, show_progress=config["show_progress"], callback_fn=callback)
    except BudgetReached:
        if not Path(trainer.saved_model_file).is_file():  # no epoch was validated
            trainer._save_checkpoint(-1)
    seconds = perf_counter() - started
    score, best = trainer.best_valid_score, trainer.best_valid_result or {}
    rows = len(valid._dataset)
    return FittedDomain(
        config, network, trainer, valid, test, plan.domain, score, best, rows, seconds, first, budget.reached
    )


def _prepared(plan: DomainPlan) -> tuple[Config, tuple[Any, Any, Any], torch.nn.Module, Any]:
    """All that RecBole makes before it trains: Config, loaders of the three parts, network, trainer."""
    model, domain = plan.model, plan.domain
    with refusing(f"settings of {model}"):
        config = Config(model, domain, [], dict(plan.settings))
    if plan.threads:
        torch.set_num_threads(plan.threads)
    if config["device"].type == "cpu":
        keep_freed_memory()
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    getLogger().info(f"{model} on {domain}")
    with refusing(f"data of {domain}"):
        dataset = hold_out(create_dataset(config), domain)
        train, valid, test = data_preparation(config, dataset)
    if plan.max_prefixes:
        train = _shortened(config, train, plan.max_prefixes)
    init_seed(config["seed"], config["reproducibility"])
    with refusing(model):
        network = get_model(model)(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    return config, (train, valid, test), network, trainer


@dataclass(frozen=True)
class Pretrained:
    """What the first of two stages left."""

    file: Path
    epochs: int
    seconds: float


def _pretrain(plan: DomainPlan, budget: Budget) -> Pretrained:
    """The first stage, with at most half of the budget.

    RecBole asks for two runs and a path copied between them, and would test the half-made model after the first.
    """
    own = {"train_stage": "pretrain"}
    if size := plan.settings.get("pretrain_train_batch_size"):
        own["train_batch_size"] = size
    if "pretrain_epochs" in plan.settings:
        own["save_step"] = plan.settings["pretrain_epochs"] + 1  # saved once, below
    config, (train, _, _), _, trainer = _prepared(plan.having(**own))
    half, started = budget.share(2), perf_counter()
    half.bind(trainer)
    getLogger().info(f"{plan.model} on {plan.domain}: pre-training, {trainer.pretrain_epochs} epochs")
    try:
        trainer.pretrain(train, show_progress=config["show_progress"])
    except BudgetReached:
        budget.reached = True
    epochs = len(trainer.train_loss_dict)
    file = Path(trainer.checkpoint_dir) / f"{plan.model}-{plan.domain}-pretrained.pth"
    trainer.save_pretrained_model(epochs - 1, str(file))
    return Pretrained(file, epochs, perf_counter() - started)


def test_domain(fitted: FittedDomain) -> DomainRun:
    """Lists and metrics of the best weights."""
    config, network, trainer, test = fitted.config, fitted.network, fitted.trainer, fitted.test
    started = perf_counter()
    trainer.evaluate(test, show_progress=config["show_progress"])  # loads the best weights, and logs as RecBole does
    width = max(WIDTH, *config["topk"])
    table = lists_of(network, test._dataset, test, fitted.domain, width)
    result = ListEvaluator(config, trainer.eval_collector)(table)
    seconds = {"train": fitted.seconds, "test": perf_counter() - started}
    users = len(fitted.watched._dataset)
    watched = lists_of(network, fitted.watched._dataset, fitted.watched, fitted.domain, width) if users else None
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    facts: dict[str, Any] = {}
    if fitted.first is not None:
        seconds, facts = {"pretrain": fitted.first.seconds, **seconds}, {"pretrain_epochs": fitted.first.epochs}
    epochs = len(trainer.train_loss_dict)
    return DomainRun(table, result, fitted.valid, parameters, epochs, seconds, watched, "", facts, fitted.limited)


def _shortened(config: Config, train: TrainDataLoader, n: int) -> TrainDataLoader:
    data = train._dataset
    kept = data.inter_feat[last_of_each(data.inter_feat[data.uid_field], n)]
    return TrainDataLoader(config, data.copy(kept), train._sampler, shuffle=train.shuffle)
