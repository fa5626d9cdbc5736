"""Runs that are done against each other, by their users' lists: `benchmark --compare=A,B`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import numpy as np

from recbole_gmc.benchmark import plan
from recbole_gmc.benchmark.fairness import measure
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.evaluate.raw import RawData
from recbole_gmc.evaluate.significance import LEVEL, RESAMPLES, Difference, paired_bootstrap
from recbole_gmc.evaluate.token_lists import TokenLists
from recbole_gmc.files import read_json
from recbole_gmc.values import at_home

FILES = {"valid": "valid_topk.tsv", "test": "topk.tsv"}
OWN = ("compare", "on", "output", "dataset", "unseen")
METRICS = ("ndcg@10", "recall@10")
AVERAGE = "average"
logger = getLogger("recbole_gmc.benchmark")
Targets = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Side:
    """A model with some seeds: the places of its users' held-out items, int64 [seeds, n], -1 a miss."""

    name: str
    seeds: tuple[str, ...]
    targets: Targets
    ranks: np.ndarray

    def of_user(self, metric: str) -> np.ndarray:
        """float [seeds, n]."""
        kind, _, k = metric.partition("@")
        return measure(self.ranks, kind, int(k))


def run(arguments: Sequence[str]) -> str:
    """Prints and returns the comparison that the words after ``benchmark`` ask for.

    Raises:
        SettingError: bad flags, or a name under which there is no run.
        DataError: runs that were not asked for the same users and items, or lists too short for the metrics.
    """
    flags = _flags(arguments)
    names = [name for name in flags["compare"].split(",") if name]
    if len(set(names)) < max(2, len(names)):
        raise SettingError(f"{flags['compare']!r} names no two", "--compare", "Write --compare=GMC,SASRec")
    output = flags.get("output") or (f"runs/benchmark-{flags['dataset']}" if "dataset" in flags else "")
    on, raw = flags.get("on", "valid"), Path(flags["unseen"]) if "unseen" in flags else None
    sides = [read_side(Path(output, name), on, raw) for name in names]
    for side in sides[1:]:
        if side.targets != sides[0].targets:
            what = f"{side.name} was asked for other users or items than {sides[0].name}"
            raise DataError(what, "--compare", "Compare runs on the same data")
    split = ("validation" if on == "valid" else "test") + (", items of the histories left out" if raw else "")
    text = "\n".join(lines(sides, split))
    print(text)
    return text


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in arguments:
        key, _, value = word.removeprefix("--").partition("=")
        if key not in OWN or not word.startswith("--") or not value or key in found:
            mend = "It takes --compare=A,B, --on=valid|test, --unseen=<data_path> and --output or --dataset, each once"
            raise SettingError(f"{word!r} does not go with --compare", "benchmark", mend)
        found[key] = ",".join(map(at_home, value.split(",")))
    if found.get("on", "valid") not in FILES:
        raise SettingError(f"{found['on']!r} is unknown", "--on", "Choose valid or test")
    return found


def read_side(path: Path, on: str, raw: Path | None = None) -> Side:
    """A run folder, or all ``<path>-<seed>`` that hold finished runs.

    Args:
        raw: the folder of the domains; then the items of each user's history are left out of the lists.

    Raises:
        SettingError: there is none.
        DataError: one has no such lists, or lists for other users than the rest.
    """
    many = sorted(folder for folder in path.parent.glob(f"{path.name}-*") if _seed_of(folder, path).isdecimal())
    folders = [folder for folder in [path, *many] if (folder / "result.json").is_file()]
    if not folders:
        raise SettingError(f"no finished run in {str(path)!r} or {str(path)!r}-<seed>", "--compare", "Name its folder")
    reports = [read_json(folder / "result.json") for folder in folders]
    read = [_read(folder / FILES[on], on, raw) for folder in folders]
    targets = read[0][0]
    for folder, (other, _) in zip(folders, read, strict=True):
        if other != targets:
            raise DataError(
                f"other users or items than in {folders[0].name}", str(folder), "Compare runs on one data set"
            )
    ranks = np.array([[ranks[key] for key in sorted(targets)] for _, ranks in read], np.int64)
    name = path.name + (" (budget-limited)" if any(report["budget_limited"] for report in reports) else "")
    return Side(name, tuple(str(report["seed"]) for report in reports), targets, ranks)


def _seed_of(folder: Path, path: Path) -> str:
    return folder.name.removeprefix(f"{path.name}-")


def _read(path: Path, on: str, raw: Path | None) -> tuple[Targets, dict[tuple[str, str], int]]:
    """(domain, user) -> held-out item, and -> its place."""
    if not path.is_file():
        mend = "Runs by an earlier version, or without validation users, have none: run it again, or take --on=test"
        raise DataError("the run has no such lists", str(path), mend)
    most = max(int(metric.partition("@")[2]) for metric in METRICS)
    lists = TokenLists.read(path)
    if lists.width < most:
        what = f"lists of {lists.width} are too short for {', '.join(METRICS)}"
        raise DataError(what, str(path), "Set topk: [5, 10]")
    users = list(zip(lists.domain, lists.user, strict=True))
    targets, ranks = dict(zip(users, lists.target, strict=True)), dict(zip(users, lists.rank.tolist(), strict=True))
    histories, short = _histories(path.parent, on, raw) if raw else {}, 0
    for (domain, user), items in zip(users, lists.items, strict=True) if raw else ():
        (seen, held_out), target = histories.get((domain, user), (frozenset(), None)), targets[domain, user]
        if held_out != target:
            what = f"the held-out item of user {user!r} of {domain} is {target!r}, but in {raw} {held_out!r}"
            raise DataError(what, "--unseen", "Name the data of the run")
        new = [item for item in items if item not in seen]
        ranks[domain, user] = new.index(target) if target in new else -1
        short += target not in new and len(new) < most
    if short:
        logger.warning("%s: %d lists have fewer than %d new items; a target may stand below", path, short, most)
    return targets, ranks


def _histories(folder: Path, on: str, root: Path) -> dict[tuple[str, str], tuple[frozenset[str], str]]:
    """(domain, user) -> the items that the user had taken when asked, and the held-out one."""
    report = read_json(folder / "result.json")
    plan.refuse_missing(root, list(report["domains"]), "--unseen")
    raw, last = RawData.of(report["settings"]), {"valid": -2, "test": -1}[on]
    return {
        (domain, user): (frozenset(sequence[:last]), sequence[last])
        for domain in report["domains"]
        for user, sequence in raw.sequences(root, domain).items()
        if len(sequence) >= -last
    }


def lines(sides: Sequence[Side], split: str) -> Iterator[str]:
    """The first side against each other one: a line a metric and part."""
    owner = np.array([domain for domain, _ in sorted(sides[0].targets)])
    parts = {AVERAGE: np.ones(len(owner), bool)} | {domain: owner == domain for domain in sorted(set(owner))}
    if len(parts) == 2:
        del parts[AVERAGE]
    yield f"Paired bootstrap on {split}: {RESAMPLES:,} resamples of users, then of seeds; interval of {LEVEL:.0%}."
    yield from (f"{side.name}: seeds {', '.join(side.seeds)}" for side in sides)
    if min(len(side.seeds) for side in sides) == 1:
        yield "A side with one seed tells nothing of the spread over seeds: its part of the intervals is left out."
    for other in sides[1:]:
        for metric in METRICS:
            ours, theirs = sides[0].of_user(metric), other.of_user(metric)
            for part, mine in parts.items():
                found = paired_bootstrap(ours[:, mine], theirs[:, mine])
                yield f"{part}, {mine.sum():,} users, {metric}: {sentence(sides[0].name, other.name, found)}"


def sentence(ours: str, theirs: str, found: Difference) -> str:
    """A gain is called one only where the interval leaves out zero."""
    figures = f"{found.mean:+.4f}, interval {found.low:+.4f} to {found.high:+.4f}, p = {found.p:.4f}"
    means = f"{ours} {found.ours:.4f}, {theirs} {found.theirs:.4f}: {figures}"
    if not found.shown:
        return f"{means}: no difference shown"
    best, other = (ours, theirs) if found.mean > 0 else (theirs, ours)
    return f"{means}: {best} is above {other}"
