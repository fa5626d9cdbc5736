"""Whether all models were asked the same: raw interactions against every run's lists, by code that no model uses.

Nothing of the package's data reading, splitting, ranking or metrics is imported here, on purpose.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_gmc.errors import DataError
from recbole_gmc.evaluate.raw import TESTED, RawData

TOLERANCE = 1e-6
HEAD = ("domain", "user_id", "target_item", "rank")
# What of result.json a table shows.
SHOWN = {"label": str, "budget_limited": bool, "parameters": dict, "epochs": dict, "seconds": dict, "settings": dict}
MEND = "Remove this cell's folder and run the benchmark again"


@dataclass(frozen=True)
class Truth:
    """What every model must have been asked.

    Attributes:
        targets: (domain, user) -> held-out item.
        candidates: of each domain.
        interactions: how many each domain has, the held-out ones included.
    """

    targets: Mapping[tuple[str, str], str]
    candidates: Mapping[str, frozenset[str]]
    interactions: Mapping[str, int]

    def of(self, domain: str) -> Truth:
        """What is asked in one domain."""
        targets = {key: item for key, item in self.targets.items() if key[0] == domain}
        return Truth(targets, {domain: self.candidates[domain]}, {domain: self.interactions[domain]})

    @property
    def target_hash(self) -> str:
        return hash_of_targets(self.targets)

    @property
    def candidate_hash(self) -> str:
        """As result.json has it: SHA-256 of the JSON of domains and their sorted item tokens, then a byte 0x1e."""
        items = [[domain, sorted(tokens)] for domain, tokens in self.candidates.items()]
        text = json.dumps(items, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode() + b"\x1e").hexdigest()


def hash_of_targets(targets: Mapping[tuple[str, str], str]) -> str:
    """SHA-256 over the sorted lines domain, user, item."""
    lines = sorted("\t".join((*key, item)) for key, item in targets.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_truth(root: Path, domains: Sequence[str], raw: RawData) -> Truth:
    """Leave-one-out from the raw ``.inter`` files: a user's last interaction in time; of equal times the later line."""
    targets: dict[tuple[str, str], str] = {}
    candidates, interactions = {}, {}
    for domain in domains:
        sequences = raw.sequences(root, domain)
        candidates[domain] = frozenset(item for sequence in sequences.values() for item in sequence)
        interactions[domain] = sum(map(len, sequences.values()))
        targets |= {(domain, user): sequence[-1] for user, sequence in sequences.items() if len(sequence) >= TESTED}
    return Truth(targets, candidates, interactions)


@dataclass(frozen=True)
class Lists:
    """One cell's places of the held-out items, int64 [n] by sorted (domain, user), -1 a miss."""

    rank: np.ndarray
    target_hash: str


def read_lists(folder: Path, truth: Truth, facts: Mapping[str, Any], metrics: Sequence[str]) -> Lists:
    """Reads a cell's topk.tsv and holds every line against the truth, and result.json against both.

    Args:
        facts: what result.json must say of the cell, such as its model and seed.
        metrics: that it must hold.

    Raises:
        DataError: a user, target, candidate, score, rank, metric or fact that is not what it must be, with file:line.
    """
    path = folder / "topk.tsv"
    if not path.is_file():
        raise DataError("the lists are missing", str(path), MEND)
    found: dict[tuple[str, str], str] = {}
    rank: dict[tuple[str, str], int] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DataError(f"cannot be read ({error})", str(path), MEND) from error
    head, *lines = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    width = (len(head) - 4) // 2
    if head != [*HEAD, *(f"{what}_{place}" for place in range(1, width + 1) for what in ("item", "score"))]:
        raise DataError("not the header of a top-k table", f"{path}:1", MEND)
    for number, line in enumerate(lines, 2):
        if problem := _problem(line, width, truth, tuple(line[:2]) in found):
            raise DataError(problem, f"{path}:{number}", MEND)
        key = line[0], line[1]
        found[key], rank[key] = line[2], int(line[3])
    if missing := truth.targets.keys() - found.keys():
        raise DataError(f"{len(missing)} test users are not in it, such as {min(missing)}", str(path), MEND)
    lists = Lists(np.array([rank[key] for key in sorted(rank)], np.int64), hash_of_targets(found))
    _hold_result(folder / "result.json", lists, truth, facts, metrics)
    return lists


def _problem(line: list[str], width: int, truth: Truth, again: bool) -> str | None:
    if len(line) != 4 + 2 * width:
        return f"{len(line)} fields, not {4 + 2 * width}"
    domain, user, target, rank = line[:4]
    if truth.targets.get((domain, user)) is None or again:
        return f"user {user!r} of {domain} is no test user" if not again else f"user {user!r} is there twice"
    if truth.targets[domain, user] != target:
        return f"the target is {target!r}, but the last interaction of {user!r} is {truth.targets[domain, user]!r}"
    pairs = [pair for pair in zip(line[4::2], line[5::2], strict=True) if pair != ("-1", "")]
    items = [item for item, _ in pairs]
    if not _descending([score for _, score in pairs]):
        return "the scores are not numbers, or they rise"
    if len(set(items)) != len(items) or not truth.candidates[domain].issuperset(items):
        return "the list holds an item twice, or one that is no candidate of the domain"
    place = items.index(target) if target in items else -1
    return None if rank == str(place) else f"rank {rank}, but the target's place is {place}"


def _descending(scores: list[str]) -> bool:
    try:
        values = np.array(scores, np.float64)
    except ValueError:
        return False
    return bool(np.isfinite(values).all() and (np.diff(values) <= 0).all())


def _hold_result(path: Path, lists: Lists, truth: Truth, facts: Mapping[str, Any], metrics: Sequence[str]) -> None:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        _hold(path, report, lists, truth, metrics)
        for name, value in facts.items():
            if report[name] != value:
                raise DataError(f"{name} is {report[name]!r}, not {value!r}", str(path), MEND)
        for name, kind in SHOWN.items():
            if not isinstance(report[name], kind):
                raise DataError(f"{name} is {report[name]!r}", str(path), MEND)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"no readable result ({error!r})", str(path), MEND) from error


def _hold(path: Path, report: Any, lists: Lists, truth: Truth, metrics: Sequence[str]) -> None:
    if report["hashes"]["candidates"] != truth.candidate_hash:
        raise DataError("other candidates than the items with an interaction were ranked", str(path), MEND)
    parts = {"average": (report["average"], np.ones(len(lists.rank), bool))}
    owner = np.array([domain for domain, _ in sorted(truth.targets)])
    parts |= {domain: (report["domains"][domain], owner == domain) for domain in truth.candidates}
    for name, (values, mine) in parts.items():
        for metric in metrics if mine.any() else ():
            kind, _, k = metric.partition("@")
            own = measure(lists.rank, kind, int(k))[mine].mean()
            if not math.isclose(own, values[metric], abs_tol=TOLERANCE):
                raise DataError(f"{name}: {metric} {values[metric]:.6f}, but its lists give {own:.6f}", str(path), MEND)


def measure(rank: np.ndarray, kind: str, k: int) -> np.ndarray:
    """Recall@k or NDCG@k of each user [..., n] from the places of the held-out items [..., n].

    Example: places 0, 2 and -1 give NDCG@10 of 1, 1/2 and 0.
    """
    hit = (rank >= 0) & (rank < k)
    return np.where(hit, 1.0 if kind == "recall" else 1.0 / np.log2(np.where(hit, rank, 0) + 2.0), 0.0)
