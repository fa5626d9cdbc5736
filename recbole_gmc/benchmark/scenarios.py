"""Growing sets of domains (paper section 5.4.3): a benchmark each, compared on the domains that they share."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recbole_gmc import keys, lookup, values
from recbole_gmc.benchmark import plan
from recbole_gmc.benchmark.board import Board, Row
from recbole_gmc.benchmark.plan import Benchmark
from recbole_gmc.benchmark.tables import Field, Table, short
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.files import hash_of

FLAG = "domain_sets"
WHERE = f"--{FLAG}"
MEND = f'Write {WHERE}="A;A,B;A,B,C"'
LONGEST = 100  # letters of a folder's name

Domains = tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One model on one set: its place on the axis of interactions, and its scores by domain."""

    domains: Domains
    millions: float
    row: Row


@dataclass(frozen=True)
class Scenarios:
    """Attributes:
    reference: the model whose gain is shown elsewhere; here the first line of a plot.
    metrics: as of the boards.
    users: domain -> test users, the same in every set.
    points: model -> its points, the fewest interactions first; sets without a finished cell are left out.
    """

    reference: str
    metrics: tuple[str, ...]
    users: Mapping[str, int]
    points: Mapping[str, tuple[Point, ...]]

    def of_domain(self, model: str, domain: str) -> list[Point]:
        """The model's points whose set has the domain."""
        return [point for point in self.points[model] if domain in point.domains]

    def change(self, model: str, domain: str, point: Point, metric: str) -> float | None:
        """Relative change against the model's smallest set with the domain; ``None`` for that set itself."""
        first = self.of_domain(model, domain)[0]
        base = first.row.mean(domain, metric)
        if point is first:
            return None
        return point.row.mean(domain, metric) / base - 1.0 if base > 0 else math.nan


def parse(arguments: Sequence[str]) -> tuple[tuple[Benchmark, ...], bool]:
    """The words after ``benchmark``: a benchmark a set, in folders of its own, and whether they are only to be listed.

    Raises:
        SettingError, DataError: bad sets, or what ``plan.parse`` refuses.
    """
    own, flags = plan.flags_apart(arguments)
    text = own.pop(FLAG)
    named = sets_of(text) if text else ()
    if named:
        _refuse_others(named, flags)
        every = dict.fromkeys(domain for domains in named for domain in domains)
        flags = {**flags, "domains": ",".join(every)}
    try:
        whole = plan.benchmark(own, flags)
    except DataError as error:
        raise DataError(error.what, WHERE if error.where == "domains" else error.where, error.mend) from None
    sets = named or growing(whole.domains)
    found = []
    for domains in sets:
        output = str(whole.output / folder_of(domains))
        found.append(plan.benchmark({**own, "output": output}, {**flags, "domains": ",".join(domains)}))
    return tuple(found), plan.DRY in arguments


def sets_of(text: str) -> tuple[Domains, ...]:
    """``A;A,B`` -> ``(("A",), ("A", "B"))``.

    Raises:
        SettingError: a set without a domain, a set or a domain named twice.
    """
    sets = tuple(tuple(name.strip() for name in part.split(",")) for part in text.split(";"))
    for domains in sets:
        if not all(domains):
            raise SettingError(f"{text!r} has a set without a domain", WHERE, MEND)
        if len(set(domains)) != len(domains):
            raise SettingError(f"{','.join(domains)!r} names a domain twice", WHERE, MEND)
    if len(set(map(frozenset, sets))) != len(sets):
        raise SettingError(f"{text!r} names a set twice", WHERE, "Name each set once")
    return sets


def growing(domains: Domains) -> tuple[Domains, ...]:
    """``("A", "B")`` -> ``(("A",), ("A", "B"))``.

    Raises:
        SettingError: there is only one domain.
    """
    if len(domains) < 2:
        raise SettingError(f"{domains[0]!r} is the only domain", WHERE, f"Give --domains=A,B too, or sets: {MEND}")
    return tuple(domains[:count] for count in range(1, len(domains) + 1))


def _refuse_others(sets: Sequence[Domains], flags: Mapping[str, str]) -> None:
    """Domains that are named besides the sets must hold those of the sets."""
    given = {**lookup.read_files(flags.get("config_files", "").split()), **values.parse_all(flags)}.get("domains")
    for name in dict.fromkeys(name for domains in sets for name in domains):
        if given and name not in given:
            what = f"{name!r} is not among the domains{keys.nearest(name, given)}"
            raise SettingError(what, WHERE, f"They are {', '.join(given)}")


def folder_of(domains: Domains) -> str:
    name = "+".join(domains)
    return name if len(name) <= LONGEST else f"{len(domains)}-domains-{hash_of(list(domains))[:8]}"


def compare(boards: Mapping[Domains, Board]) -> Scenarios:
    """Puts the boards of some sets side by side.

    Raises:
        DataError: two sets do not ask the same in a domain.
    """
    users: dict[str, int] = {}
    asked: dict[str, tuple[str, str]] = {}
    points: dict[str, list[Point]] = {}
    for domains, board in boards.items():
        for domain in domains:
            if asked.setdefault(domain, board.asked[domain]) != board.asked[domain]:
                what = f"{domain}: its test users, targets or candidates are not the same in every set"
                raise DataError(what, WHERE, "Run the sets again on the same files")
            users[domain] = board.users.get(domain, 0)
        millions = sum(board.interactions[domain] for domain in domains) / 1e6
        for row in board.rows:
            if row.seeds:
                points.setdefault(row.model, []).append(Point(domains, millions, row))
    first = next(iter(boards.values()))
    ordered = {model: tuple(sorted(found, key=lambda point: point.millions)) for model, found in points.items()}
    return Scenarios(first.reference, first.metrics, users, ordered)


def tables(scenarios: Scenarios) -> list[Table]:
    """A table a domain: a row a model and set, with the change against the model's smallest set."""
    found = []
    for domain, users in scenarios.users.items():
        rows = []
        for model in scenarios.points:
            for point in scenarios.of_domain(model, domain):
                limited = " (budget-limited)" if point.row.limited else ""
                fields = [Field(model + limited), Field(", ".join(point.domains)), Field(f"{point.millions:.3f}")]
                fields += [_score(scenarios, model, domain, point, metric) for metric in scenarios.metrics]
                rows.append(tuple(fields))
        header = ("model", "trained on", "million interactions", *map(short, scenarios.metrics))
        found.append(Table(f"{domain}, {users:,} users", header, tuple(rows)))
    return found


def _score(scenarios: Scenarios, model: str, domain: str, point: Point, metric: str) -> Field:
    spread = point.row.std(domain, metric)
    text = f"{point.row.mean(domain, metric):.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}")
    change = scenarios.change(model, domain, point, metric)
    return Field(text if change is None else f"{text} ({100 * change:+.1f}%)")


LEGEND = (
    "Means over seeds, ± the standard deviation over seeds. In brackets: the relative change against the same model on "
    "its smallest set with the domain. Test users, targets and candidates of a domain are the same in every set, "
    "checked against the raw files. Interactions are those of all domains of the set, the held-out ones included."
)


def as_csv(scenarios: Scenarios) -> str:
    """One line a model, set, domain and metric, unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ["model", "domains", "million_interactions", "domain", "metric", "mean", "std", "values", "change"]
    writer.writerow([*names, "budget_limited"])
    for domain in scenarios.users:
        for model in scenarios.points:
            for point in scenarios.of_domain(model, domain):
                for metric in scenarios.metrics:
                    spread = point.row.std(domain, metric)
                    change = scenarios.change(model, domain, point, metric)
                    line = [model, " ".join(point.domains), point.millions, domain, metric]
                    line += [point.row.mean(domain, metric), "" if math.isnan(spread) else spread]
                    line += [" ".join(map(str, point.row.scores[domain][metric])), "" if change is None else change]
                    writer.writerow([*line, point.row.limited])
    return file.getvalue()
