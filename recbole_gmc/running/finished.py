"""What a finished run with the same settings and data has of a domain already, for a run that takes it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.data import create_dataset
from recbole.utils import init_logger

from recbole_gmc.errors import SettingError
from recbole_gmc.evaluate.topk import LISTS, VALID_LISTS, TopKTable
from recbole_gmc.files import read_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.keys import FINISHED
from recbole_gmc.running.domain_run import DomainRun, read_run
from recbole_gmc.running.planning import DomainPlan


def folders(settings: Mapping[str, Any]) -> dict[str, Path]:
    """Domain -> folder of the run that has it.

    Raises:
        SettingError: another form, or a folder without results.
    """
    given = settings.get(FINISHED) or {}
    if not isinstance(given, Mapping) or not all(isinstance(folder, str) for folder in given.values()):
        raise SettingError(f"{given!r} is no mapping", FINISHED, "Write {<domain>: <run folder>}")
    for folder in given.values():
        if not (Path(folder) / "result.json").is_file():
            raise SettingError(f"{folder!r} has no results", FINISHED, "Name a finished run, or leave the key out")
    return {domain: Path(folder) for domain, folder in given.items()}


def of_ours(folder: Path, domain: str) -> DomainRun:
    """Of a registered model, whose run on one domain stands in a folder of its own."""
    inside = folder / "domains" / domain
    return _told(read_run(inside if inside.is_dir() else folder, domain), folder)


def of_recboles(folder: Path, plan: DomainPlan) -> DomainRun:
    """Of one of RecBole's models; arguments as ``read_recboles``."""
    return _told(read_recboles(folder, plan), folder)


def read_recboles(folder: Path, plan: DomainPlan) -> DomainRun:
    """One domain of a run of one of RecBole's models, from the files of all that it had.

    Args:
        plan: the run that is not needed. Its data are read for the names of the items that are in no list.
    """
    domain = plan.domain
    config = Config(plan.model, domain, [], dict(plan.settings))
    init_logger(config)
    dataset = create_dataset(config)
    items = ItemIndex.of({domain: dataset.field2id_token[dataset.iid_field][1:].tolist()})
    report, watched = read_json(folder / "result.json"), None
    table = TopKTable.read(folder / LISTS, items, among_others=True)
    if (folder / VALID_LISTS).is_file():
        watched = TopKTable.read(folder / VALID_LISTS, items, among_others=True)
    end = f":{domain}"
    return DomainRun(
        table=replace(table, certified=np.ones(len(table), bool)),
        result={name: value for name, value in report["domains"][domain].items() if name not in ("users", "items")},
        valid=report["validation"]["metrics"][domain],
        parameters=report["parameters"]["model"][domain],
        epochs=report["epochs"][domain],
        seconds={name.removesuffix(end): value for name, value in report["seconds"].items() if name.endswith(end)},
        watched=watched if watched is not None and len(watched) else None,
        label=report["label"],
        facts=report.get("runs", {}).get(domain, {}),
        limited=report["budget_limited"],
    )


def _told(made: DomainRun, folder: Path) -> DomainRun:
    (domain,) = made.table.items.domains
    getLogger().info(f"{domain}: taken over from {folder}, where it was made with the same settings")
    return replace(made, facts={**made.facts, "taken_from": str(folder)})
