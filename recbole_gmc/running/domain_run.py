"""One model run once a domain: what such a run left, and the files of all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_gmc.evaluate import results
from recbole_gmc.evaluate.topk import LISTS, VALID_LISTS, TopKTable
from recbole_gmc.files import read_json, telling_where, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.logs import TABLES
from recbole_gmc.train.checkpoint import Checkpoint

FACTS = ("certified", "tokenizer", "reused", "precision", "hashes")


@dataclass(frozen=True)
class DomainRun:
    """One model on one domain: its test lists, unrounded metrics, what it took, and what else its result file says.

    ``watched`` holds the validation users' lists by the same weights, ``None`` where there are no such users. ``label``
    tells of a setting that is not the published one, ``limited`` that its budget ended training.
    """

    table: TopKTable
    result: Mapping[str, float]
    valid: Mapping[str, float]
    parameters: int
    epochs: int
    seconds: Mapping[str, float]
    watched: TopKTable | None = None
    label: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    limited: bool = False


def read_run(folder: Path, domain: str) -> DomainRun:
    """What the run folder of a registered model on one domain holds."""
    report, items = read_json(folder / "result.json"), Checkpoint(folder).items
    watched = folder / VALID_LISTS
    return DomainRun(
        table=TopKTable.read(folder / LISTS, items),
        watched=TopKTable.read(watched, items) if watched.is_file() else None,
        result=report["average"],
        valid=results.average(report["validation"]["metrics"], (domain,)),
        parameters=report["parameters"]["model"] + report["parameters"]["adapter"],
        epochs=sum(report["epochs"].values()),
        seconds=report["seconds"],
        label=report["label"],
        facts={name: report[name] for name in FACTS if name in report},
        limited=report["budget_limited"],
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
    """What ``save`` writes, and the table on the terminal."""
    report = save(folder, model, dataset, runs, settings)
    TABLES.info(results.told(report, folder))


def save(
    folder: Path, model: str, dataset: str, runs: Mapping[str, DomainRun], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """result.json, topk.tsv and valid_topk.tsv of a model run once a domain; returns what the first holds."""
    table = union({domain: run.table for domain, run in runs.items()})
    watched = {domain: run.watched for domain, run in runs.items() if run.watched is not None}
    result = {f"{domain}/{name}": run.result[name] for domain, run in runs.items() for name in _plain(run, domain)}
    users = {domain: len(run.table) for domain, run in runs.items()}
    for name in _plain(next(iter(runs.values())), next(iter(runs))):
        result[name] = sum(users[d] * run.result[name] for d, run in runs.items()) / sum(users.values())
    report = {
        **results.head(model, dataset, settings["seed"], table, result),
        "validation": {"metrics": {domain: dict(run.valid) for domain, run in runs.items()}},
        "parameters": {"model": {domain: run.parameters for domain, run in runs.items()}, "adapter": 0},
        "seconds": {f"{what}:{domain}": s for domain, run in runs.items() for what, s in run.seconds.items()},
        "epochs": _epochs(runs),
        "hashes": results.hashes(table),
        "versions": results.versions(),
        "settings": dict(settings),
    }
    report["label"] = next(iter(runs.values())).label
    report["budget_limited"] = any(run.limited for run in runs.values())
    if any(run.facts for run in runs.values()):
        report["runs"] = {domain: dict(run.facts) for domain, run in runs.items()}
    with telling_where(folder, "Free some space, or name another run_dir, and run again"):
        table.write(folder / LISTS)
        if watched:
            union(watched).write(folder / VALID_LISTS)
        write_json(folder / "result.json", report)
    return report


def _epochs(runs: Mapping[str, DomainRun]) -> dict[str, int]:
    """Of each domain, and of the stage before it where there is one."""
    found: dict[str, int] = {}
    for domain, run in runs.items():
        if before := run.facts.get("pretrain_epochs"):
            found[f"pretrain:{domain}"] = before
        found[domain] = run.epochs
    return found


def _plain(run: DomainRun, domain: str) -> list[str]:
    return [name for name in run.result if not name.startswith(f"{domain}/")]
