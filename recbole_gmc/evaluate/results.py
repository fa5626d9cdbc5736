"""The result of a run as a file and as a table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from texttable import Texttable

from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.files import hash_of

PACKAGES = ("recbole-gmc", "recbole", "torch", "transformers", "peft", "faiss-cpu", "faiss-gpu", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Versions of what a result depends on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def head(model: str, dataset: str, seed: int, table: TopKTable, result: Mapping[str, float]) -> dict[str, Any]:
    """What every result.json begins with, whatever the model."""
    return {
        "model": model,
        "dataset": dataset,
        "seed": seed,
        "domains": by_domain(result, table),
        "average": average(result, table.items.domains),
    }


def by_domain(result: Mapping[str, float], table: TopKTable) -> dict[str, dict[str, Any]]:
    """``<domain>/<metric>`` keys as one dict a domain, with its users and items."""
    parts: dict[str, dict[str, Any]] = {}
    for position, name in enumerate(table.items.domains):
        users = int((table.domain == position).sum())
        metrics = {k.removeprefix(f"{name}/"): v for k, v in result.items() if k.startswith(f"{name}/")}
        parts[name] = {"users": users, "items": len(table.items.tokens[name]), **metrics}
    return parts


def average(result: Mapping[str, float], domains: tuple[str, ...]) -> dict[str, float]:
    """The plain keys: means over all users, so domains weigh by their users."""
    return {k: v for k, v in result.items() if not any(k.startswith(f"{name}/") for name in domains)}


def certified(table: TopKTable) -> dict[str, float]:
    """Share of lists that are provably the true top-K: over all users, and a domain."""
    rates = {"all": float(table.certified.mean())}
    for position, name in enumerate(table.items.domains):
        if (mine := table.domain == position).any():
            rates[name] = float(table.certified[mine].mean())
    return rates


def hashes(table: TopKTable) -> dict[str, str]:
    """What two runs must share to be comparable (targets, candidates), and the lists themselves."""
    names = table.items.domains
    target = [
        [names[d], user, table.items.tokens[names[d]][row - table.items.rows(names[d]).start] if row >= 0 else None]
        for d, user, row in zip(table.domain.tolist(), table.user, table.target.tolist(), strict=True)
    ]
    return {
        "targets": hash_of(sorted(target, key=str)),
        "candidates": table.items.fingerprint,
        "lists": hash_of(table.ranked, np.round(table.scores.astype(np.float64), 4)),
    }


def told(report: Mapping[str, Any], folder: Path) -> str:
    """What the terminal shows of a finished run: its table, and where the rest is."""
    return f"{report['model']} on {report['dataset']}, test:\n{draw(report)}\nResults are in {folder}"


def draw(result: Mapping[str, Any], metrics: list[str] | None = None) -> str:
    """One row a domain, the user-weighted average last."""
    names = metrics or [name for name in result["average"] if name.split("@")[0] in ("recall", "ndcg")]
    table = Texttable(max_width=0)
    table.set_deco(Texttable.HEADER)
    table.set_cols_align(["l", "r", "r"] + ["r"] * len(names))
    table.set_cols_dtype(["t"] * (3 + len(names)))
    table.header(["domain", "users", "items", *names])
    total = [sum(part[what] for part in result["domains"].values()) for what in ("users", "items")]
    rows = [(name, part["users"], part["items"], part) for name, part in result["domains"].items()]
    for name, users, items, part in [*rows, ("average", *total, result["average"])]:
        values = [f"{part[metric]:.4f}" if metric in part else "-" for metric in names]
        table.add_row([name, f"{users:,}", f"{items:,}", *values])
    return table.draw()
