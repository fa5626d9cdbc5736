"""RecBole's own models, one domain at a time, with results in the same form as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import Collector
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed
from recbole.utils.case_study import full_sort_scores

from recbole_gmc.data.rows import last_of_each
from recbole_gmc.errors import DependencyError, GMCError, SettingError
from recbole_gmc.evaluate import results
from recbole_gmc.evaluate.collector import ListEvaluator
from recbole_gmc.evaluate.split import hold_out
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.files import read_json, telling_where, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.train.budget import Budget, BudgetReached
from recbole_gmc.train.checkpoint import Checkpoint

WITH_ENTITIES = ("GRU4RecKG", "KSR")  # sequential models that read a knowledge graph
PRETRAINED = ("S3Rec",)  # models of RecBole whose training has two stages
WIDTH = 20  # lists are at least as long as a default beam, so files of all models look alike


@dataclass(frozen=True)
class DomainRun:
    """One model on one domain: its test lists, unrounded metrics, what it took, and what else its result file says.

    ``label`` tells of a setting that is not the published one, ``limited`` that its budget ended training.
    """

    table: TopKTable
    result: Mapping[str, float]
    valid: Mapping[str, float]
    parameters: int
    epochs: int
    seconds: Mapping[str, float]
    label: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    limited: bool = False


@dataclass(frozen=True)
class FittedDomain:
    """One of RecBole's models, trained on one domain by RecBole's own steps and not tested yet.

    ``score`` is the validation metric's, unrounded; ``users`` counts those who decided it. ``first`` is what a stage of
    pre-training left, ``limited`` tells that the budget ended training.
    """

    config: Config
    network: torch.nn.Module
    trainer: Any
    test: Any
    domain: str
    score: float
    valid: Mapping[str, float]
    users: int
    seconds: float
    first: Pretrained | None = None
    limited: bool = False


def run_domain(
    model: str,
    domain: str,
    config_file_list: Sequence[str],
    config_dict: Mapping[str, Any],
    max_prefixes: int | None = None,
    budget: Budget | None = None,
) -> DomainRun:
    """Trains and tests by RecBole's own steps; ``max_prefixes`` keeps only the last training rows of each user."""
    return test_domain(fit_domain(model, domain, config_file_list, config_dict, max_prefixes, budget=budget))


def fit_domain(
    model: str,
    domain: str,
    config_file_list: Sequence[str],
    config_dict: Mapping[str, Any],
    max_prefixes: int | None = None,
    callback: Callable[[int, float], None] | None = None,
    budget: Budget | None = None,
) -> FittedDomain:
    """Trains; ``callback`` is RecBole's, told of every epoch's validation score.

    A model with a stage of pre-training (S3Rec) has it first, unless ``pre_model_path`` names what it would make.
    """
    budget, first = budget or Budget(None), None
    if model in PRETRAINED:
        if not config_dict.get("pre_model_path"):
            first = _pretrain(model, domain, config_file_list, config_dict, max_prefixes, budget)
            config_dict = {**config_dict, "pre_model_path": str(first.file)}
        config_dict = {**config_dict, "train_stage": "finetune"}
    config, loaders, network, trainer = _prepared(model, domain, config_file_list, config_dict, max_prefixes)
    train, valid, test = loaders
    items = test._dataset.item_num - 1
    if items < max(config["topk"]):
        getLogger().warning(f"{domain} has {items} items: lists end before {max(config['topk'])}")
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
    return FittedDomain(config, network, trainer, test, domain, score, best, rows, seconds, first, budget.reached)


def _prepared(
    model: str,
    domain: str,
    config_file_list: Sequence[str],
    config_dict: Mapping[str, Any],
    max_prefixes: int | None,
) -> tuple[Config, tuple[Any, Any, Any], torch.nn.Module, Any]:
    """All that RecBole makes before it trains: Config, loaders of the three parts, network, trainer."""
    with refusing(f"settings of {model}"):
        config = Config(model, domain, list(config_file_list), dict(config_dict))
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    getLogger().info(f"{model} on {domain}")
    with refusing(f"data of {domain}"):
        dataset = hold_out(create_dataset(config), domain)
        train, valid, test = data_preparation(config, dataset)
    if max_prefixes:
        train = _shortened(config, train, max_prefixes)
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


def _pretrain(
    model: str,
    domain: str,
    config_file_list: Sequence[str],
    config_dict: Mapping[str, Any],
    max_prefixes: int | None,
    budget: Budget,
) -> Pretrained:
    """The first stage, with at most half of the budget.

    RecBole asks for two runs and a path copied between them, and would test the half-made model after the first.
    """
    own = {**config_dict, "train_stage": "pretrain"}
    if size := own.get("pretrain_train_batch_size"):
        own["train_batch_size"] = size
    if "pretrain_epochs" in own:
        own["save_step"] = own["pretrain_epochs"] + 1  # saved once, below
    config, (train, _, _), _, trainer = _prepared(model, domain, config_file_list, own, max_prefixes)
    half, started = budget.share(2), perf_counter()
    half.bind(trainer)
    getLogger().info(f"{model} on {domain}: pre-training, {trainer.pretrain_epochs} epochs")
    try:
        trainer.pretrain(train, show_progress=config["show_progress"])
    except BudgetReached:
        budget.reached = True
    epochs = len(trainer.train_loss_dict)
    file = Path(trainer.checkpoint_dir) / f"{model}-{domain}-pretrained.pth"
    trainer.save_pretrained_model(epochs - 1, str(file))
    return Pretrained(file, epochs, perf_counter() - started)


def test_domain(fitted: FittedDomain) -> DomainRun:
    """Lists and metrics of the best weights."""
    config, network, trainer, test = fitted.config, fitted.network, fitted.trainer, fitted.test
    started = perf_counter()
    trainer.evaluate(test, show_progress=config["show_progress"])  # loads the best weights, and logs as RecBole does
    width = max(WIDTH, *config["topk"])
    table = lists_of(network, test._dataset, test, fitted.domain, width)
    result = ListEvaluator(config, trainer.eval_collector)(table, np.arange(1, len(table.items) + 1))
    seconds = {"train": fitted.seconds, "test": perf_counter() - started}
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    facts: dict[str, Any] = {}
    if fitted.first is not None:
        seconds, facts = {"pretrain": fitted.first.seconds, **seconds}, {"pretrain_epochs": fitted.first.epochs}
    epochs = len(trainer.train_loss_dict)
    return DomainRun(table, result, fitted.valid, parameters, epochs, seconds, facts=facts, limited=fitted.limited)


FACTS = ("certified", "tokenizer", "reused", "precision", "hashes")


def read_run(folder: Path, domain: str) -> DomainRun:
    """What the run folder of a registered model on one domain holds."""
    report = read_json(folder / "result.json")
    return DomainRun(
        table=TopKTable.read(folder / "topk.tsv", Checkpoint(folder).items),
        result=report["average"],
        valid=results.average(report["validation"]["metrics"], (domain,)),
        parameters=report["parameters"]["model"] + report["parameters"]["adapter"],
        epochs=sum(report["epochs"].values()),
        seconds=report["seconds"],
        label=report["label"],
        facts={name: report[name] for name in FACTS if name in report},
        limited=report["budget_limited"],
    )


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Says in one line what RecBole, before any work, finds wrong with settings or data."""
    try:
        yield
    except GMCError:
        raise
    except (ValueError, LookupError, AssertionError, RuntimeError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SettingError(
            f"RecBole refuses this ({found})", what, "Mend the setting or column that it names"
        ) from error


class ShortLists(Collector):
    """RecBole's collector for catalogues below the largest k, on which ``torch.topk`` would fail."""

    def eval_batch_collect(self, scores_tensor: torch.Tensor, *rest: Any) -> None:
        lacking = (0, max(0, max(self.topk) - scores_tensor.shape[1]))
        super().eval_batch_collect(torch.nn.functional.pad(scores_tensor, lacking, value=-torch.inf), *rest)


def refuse_other_kinds(model: str, settings: Mapping[str, Any]) -> None:
    """Refuses models that cannot rank all items of a domain from its interactions alone.

    Args:
        settings: merged ones, those of the model's property file included.

    Raises:
        SettingError: a model that needs labels, a knowledge graph, or item columns that are not loaded.
        DependencyError: a model that needs a package which is not installed.
    """
    try:
        kind = get_model(model).type
    except ImportError as error:
        raise DependencyError(f"{model} needs a package that is not installed ({error})", "model") from error
    if kind not in (ModelType.GENERAL, ModelType.SEQUENTIAL, ModelType.TRADITIONAL) or model in WITH_ENTITIES:
        what = f"{model} needs labels or a knowledge graph, which the protocol of this command does not have"
        raise SettingError(what, "model", "Choose a general or sequential model, or call RecBole's run_recbole")
    loaded = (settings.get("load_col") or {}).get("item") or ()
    for key in ("selected_features", "item_attribute"):
        names = settings.get(key) or ()
        for name in [names] if isinstance(names, str) else names:
            if name not in loaded:
                mend = "Name columns of .item, and load them: --load_col={inter: [...], item: [item_id, <columns>]}"
                raise SettingError(f"column {name!r} is not loaded", key, mend)


def _shortened(config: Config, train: TrainDataLoader, n: int) -> TrainDataLoader:
    data = train._dataset
    kept = data.inter_feat[last_of_each(data.inter_feat[data.uid_field], n)]
    return TrainDataLoader(config, data.copy(kept), train._sampler, shuffle=train.shuffle)


@torch.no_grad()
def lists_of(network: torch.nn.Module, dataset: Dataset, test: Any, domain: str, width: int = WIDTH) -> TopKTable:
    """Lists of ``width`` from RecBole's full-sort scores; equal scores keep the catalogue's order."""
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


def union(tables: Mapping[str, TopKTable]) -> TopKTable:
    """The tables of several domains as one."""
    items = ItemIndex({domain: table.items.tokens[domain] for domain, table in tables.items()})
    parts = []
    for position, (domain, table) in enumerate(tables.items()):
        shift = items.rows(domain).start
        target, ranked = (np.where(rows >= 0, rows + shift, -1) for rows in (table.target, table.ranked))
        parts.append(replace(table, items=items, domain=np.full(len(table), position), target=target, ranked=ranked))
    arrays = ("domain", "target", "ranked", "scores", "certified")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return TopKTable(items=items, user=tuple(user for part in parts for user in part.user), **joined)


def write(folder: Path, model: str, dataset: str, runs: Mapping[str, DomainRun], settings: Mapping[str, Any]) -> None:
    """result.json and topk.tsv of one model run once a domain, and the table on the terminal."""
    table = union({domain: run.table for domain, run in runs.items()})
    result = {f"{domain}/{name}": run.result[name] for domain, run in runs.items() for name in _plain(run, domain)}
    users = {domain: len(run.table) for domain, run in runs.items()}
    for name in _plain(next(iter(runs.values())), next(iter(runs))):
        result[name] = sum(users[d] * run.result[name] for d, run in runs.items()) / sum(users.values())
    report = {
        **results.head(model, dataset, settings["seed"], table, result),
        "validation": {"metrics": {domain: dict(run.valid) for domain, run in runs.items()}},
        "parameters": {"model": {domain: run.parameters for domain, run in runs.items()}, "adapter": 0},
        "seconds": {f"{what}:{domain}": s for domain, run in runs.items() for what, s in run.seconds.items()},
        "epochs": {domain: run.epochs for domain, run in runs.items()},
        "hashes": results.hashes(table),
        "versions": results.versions(),
        "settings": dict(settings),
    }
    report["label"] = next(iter(runs.values())).label
    report["budget_limited"] = any(run.limited for run in runs.values())
    if any(run.facts for run in runs.values()):
        report["runs"] = {domain: dict(run.facts) for domain, run in runs.items()}
    with telling_where(folder, "Free some space, or name another run_dir, and run again"):
        table.write(folder / "topk.tsv")
        write_json(folder / "result.json", report)
    getLogger().info(f"{model} on {dataset}, test:\n{results.draw(report)}")
    getLogger().info(f"Results are in {folder}")


def _plain(run: DomainRun, domain: str) -> list[str]:
    return [name for name in run.result if not name.startswith(f"{domain}/")]
