"""The cells' lists as one comparison: means over seeds, marks, gains and paired significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from recbole_gmc import registry
from recbole_gmc.benchmark import fairness, run
from recbole_gmc.benchmark.fairness import Lists
from recbole_gmc.benchmark.plan import OURS, Benchmark, Cell
from recbole_gmc.errors import DataError
from recbole_gmc.files import read_json
from recbole_gmc.values import read_yaml

AVERAGE = "average"
KINDS = ("recall", "ndcg")
ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """One model, or a variant of it.

    Attributes:
        scores: part ("<domain>" or "average") -> metric -> value of each seed that is done.
        limited: its budget ended a cell: shown, but without marks and significance.
        facts: parameters, epochs, train and test seconds, history, text and notes.
        base: the model that it is a variant of, with which alone it is compared.
        whole: all of its cells are done; without some it has no marks and no significance, either.
    """

    model: str
    seeds: tuple[int, ...]
    scores: Mapping[str, Mapping[str, tuple[float, ...]]]
    limited: bool
    facts: Mapping[str, Any]
    base: str = ""
    whole: bool = True

    @property
    def counts(self) -> bool:
        return bool(self.seeds) and self.whole and not self.limited

    def mean(self, part: str, metric: str) -> float:
        return float(np.mean(self.scores[part][metric]))

    def std(self, part: str, metric: str) -> float:
        """Sample standard deviation over seeds; nan for one seed."""
        values = self.scores[part][metric]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Board:
    """Attributes:
    users: part -> test users.
    interactions: domain -> how many, the held-out ones included.
    asked: domain -> hashes of its test targets and of its candidates.
    adjusted: (part, metric, row) -> Holm-adjusted p of the paired t-test over users between it and the reference or,
        for a variant, its model.
    """

    reference: str
    parts: tuple[str, ...]
    metrics: tuple[str, ...]
    users: Mapping[str, int]
    rows: tuple[Row, ...]
    adjusted: Mapping[tuple[str, str, str], float]
    hashes: Mapping[str, str]
    interactions: Mapping[str, int]
    asked: Mapping[str, tuple[str, str]]

    def order(self, part: str, metric: str) -> list[str]:
        """The models that count, best first; variants are none."""
        rows = [row for row in self.rows if row.counts and not row.base]
        return [row.model for row in sorted(rows, key=lambda row: -row.mean(part, metric))]

    def row(self, model: str) -> Row:
        return next(row for row in self.rows if row.model == model)

    def change(self, row: Row, part: str, metric: str) -> float | None:
        """A variant's relative change against its model; ``None`` for others and where one of the two lacks."""
        if not row.base or not row.counts or not (ours := self.row(row.base)).counts:
            return None
        base = ours.mean(part, metric)
        return row.mean(part, metric) / base - 1.0 if base > 0 else float("nan")

    def gain(self, part: str, metric: str) -> tuple[str, float] | None:
        """The strongest baseline that counts, and the reference's relative gain on it."""
        order = self.order(part, metric)
        ours = OURS if self.reference in OURS else (self.reference,)
        others = [model for model in order if model not in ours]
        if self.reference not in order or not others:
            return None
        best = self.row(others[0]).mean(part, metric)
        ours = self.row(self.reference).mean(part, metric)
        return others[0], (ours / best - 1.0 if best > 0 else float("nan"))


def build(benchmark: Benchmark) -> Board:
    """Checks every done cell against the raw data, then compares.

    Raises:
        DataError: a cell that was asked something else than the others; then there is no table.
    """
    truth = fairness.read_truth(benchmark.data_path, benchmark.domains, benchmark.raw)
    if not truth.targets:
        raise DataError("no user has a test item", str(benchmark.data_path), "Check domains and data_path")
    metrics = tuple(f"{kind}@{k}" for kind in KINDS for k in benchmark.topk)
    owner = np.array([domain for domain, _ in sorted(truth.targets)])
    masks = {domain: owner == domain for domain in benchmark.domains}
    masks = {domain: mask for domain, mask in masks.items() if mask.any()}
    if len(masks) > 1:
        masks[AVERAGE] = np.ones(len(owner), bool)
    rows, of_user = [], {}
    for model in benchmark.rows:
        lists, cells = {}, [cell for cell in benchmark.cells if cell.row == model]
        for cell in cells:
            if run.status(cell) == run.DONE:
                facts = {"model": cell.model, "seed": cell.seed, "dataset": benchmark.dataset}
                run.refuse_changed(cell)
                lists[cell.seed] = fairness.read_lists(cell.folder, truth, facts, metrics)
        of_user[model] = {metric: [_of_user(found, metric) for found in lists.values()] for metric in metrics}
        scores = {
            part: {metric: tuple(float(one[mask].mean()) for one in of_user[model][metric]) for metric in metrics}
            for part, mask in masks.items()
        }
        facts = _facts(cells)
        limited = bool(facts.pop("limited"))
        base = "" if cells[0].model == model else cells[0].model
        rows.append(Row(model, tuple(lists), scores, limited, facts, base, len(lists) == len(cells)))
    _refuse_unlike(rows, benchmark)
    adjusted = {}
    for base in dict.fromkeys(row.base for row in rows):  # the models are one family, the variants of each another
        reference = base or benchmark.reference
        family = [row.model for row in rows if row.counts and (row.base == base or row.model == reference)]
        means = {model: {metric: np.mean(of_user[model][metric], 0) for metric in metrics} for model in family}
        adjusted |= significance(means, masks, reference)
    users = {part: int(mask.sum()) for part, mask in masks.items()}
    hashes = {"targets": truth.target_hash, "candidates": truth.candidate_hash}
    each = {domain: truth.of(domain) for domain in benchmark.domains}
    return Board(
        reference=benchmark.reference,
        parts=tuple(masks),
        metrics=metrics,
        users=users,
        rows=tuple(rows),
        adjusted=adjusted,
        hashes=hashes,
        interactions=truth.interactions,
        asked={domain: (one.target_hash, one.candidate_hash) for domain, one in each.items()},
    )


def _refuse_unlike(rows: list[Row], benchmark: Benchmark) -> None:
    """Raises DataError where two models saw histories of other lengths."""
    seen = {row.model: row.facts["history"] for row in rows if row.facts.get("history") is not None}
    if len(set(seen.values())) > 1:
        what = f"histories of different lengths: {', '.join(f'{model} {length}' for model, length in seen.items())}"
        raise DataError(what, str(benchmark.output), "Run them with one MAX_ITEM_LIST_LENGTH")


def _of_user(lists: Lists, metric: str) -> np.ndarray:
    kind, _, k = metric.partition("@")
    return fairness.measure(lists.rank, kind, int(k))


def significance(
    of_user: Mapping[str, Mapping[str, np.ndarray]], masks: Mapping[str, np.ndarray], reference: str
) -> dict[tuple[str, str, str], float]:
    """Paired two-sided t-tests over users, between the reference and every other model.

    Args:
        of_user: model -> metric -> each user's value [n], averaged over seeds.
        masks: part -> which users belong to it [n].

    Returns:
        (part, metric, model) -> p, adjusted by Holm over all metrics and models of the part.
    """
    found: dict[tuple[str, str, str], float] = {}
    if reference not in of_user:
        return found
    for part, mask in masks.items():
        raw = {}
        for model in of_user:
            for metric, values in of_user[model].items():
                if model != reference:
                    raw[part, metric, model] = _paired(of_user[reference][metric][mask], values[mask])
        found |= dict(zip(raw, holm(list(raw.values())), strict=True))
    return found


def _paired(ours: np.ndarray, theirs: np.ndarray) -> float:
    if len(ours) < 2 or np.ptp(ours - theirs) == 0:
        return 1.0 if len(ours) < 2 or ours[0] == theirs[0] else 0.0
    return float(stats.ttest_rel(ours, theirs).pvalue)


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 1979).

    Example:
        >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(p), 0.0
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - step) * p[index]))
        adjusted[index] = worst
    return adjusted


def _facts(cells: Sequence[Cell]) -> dict[str, Any]:
    """Of one row."""
    reports = [read_json(cell.folder / "result.json") for cell in cells if run.status(cell) == run.DONE]
    failed = [(cell, run.note_of(cell).get("error")) for cell in cells if run.status(cell) == run.FAILED]
    waiting = sum(run.status(cell) == run.WAITING for cell in cells)
    labels = sorted({report["label"] for report in reports if report["label"]})
    notes = list(labels)
    notes += ["budget-limited"] if (limited := any(report["budget_limited"] for report in reports)) else []
    notes += ["a stage was reused from the cache"] if any(report.get("reused") for report in reports) else []
    notes += [f"seed {cell.seed} FAILED: {error}" for cell, error in failed]
    notes += [f"{waiting} cells not run"] if waiting else []
    seeds = f"{len(reports)} of {len(cells)}"
    facts: dict[str, Any] = {"label": "; ".join(labels), "limited": limited, "seeds": seeds, "notes": "; ".join(notes)}
    if reports:
        settings = reports[0]["settings"]
        facts |= {
            "parameters": parameters(reports[0]),
            "epochs": "; ".join("+".join(str(n) for n in report["epochs"].values()) for report in reports),
            "train": float(np.mean([_seconds(report, False) for report in reports])),
            "test": float(np.mean([_seconds(report, True) for report in reports])),
            "patience": patience(settings),
            "history": settings.get("MAX_ITEM_LIST_LENGTH"),
            "text": text_of(cells[0].model, settings),
        }
    return facts


def parameters(report: Mapping[str, Any]) -> int:
    """All that serve all domains: one network with its adapters, or a network for each domain."""
    found = report["parameters"]
    per_domain = found["model"] if isinstance(found["model"], Mapping) else found.get("domains")
    if per_domain:
        return sum(per_domain.values())
    return found["model"] + found["adapter"] * len(report["domains"])


def patience(settings: Mapping[str, Any]) -> str:
    """Epochs without a better validation score after which training ends; ``8``, or ``10 x 2`` for every second one."""
    steps, every = settings.get("stopping_step"), settings.get("eval_step") or 1
    return "-" if steps is None else f"{steps}" if every == 1 else f"{steps} x {every}"


def _seconds(report: Mapping[str, Any], test: bool) -> float:
    return sum(seconds for what, seconds in report["seconds"].items() if what.startswith("test") == test)


def text_of(model: str, settings: Mapping[str, Any]) -> str:
    """What of the items' text a model reads."""
    entry = registry.entry(model)
    if entry is None:
        several = (settings.get("of_domain") or {}).values()
        columns: list[str] = []
        for own in [settings, *several]:
            for name in (own.get("load_col") or {}).get("item") or ():
                if name not in (*columns, settings.get("ITEM_ID_FIELD") or "item_id"):
                    columns.append(name)
        return f"attributes: {', '.join(columns)}" if columns else "none"
    known = read_yaml(entry.properties) if entry.properties else {}
    if "text_encoder" in known:
        ready = settings.get("text_embedding_path")
        return "ready embeddings" if ready else f"{settings['text_encoder']} embeddings"
    return "raw text" if "text_fields" in known else "none"
