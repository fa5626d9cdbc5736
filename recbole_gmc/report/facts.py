"""The numbers behind the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_gmc.report.runs import DomainData, Lists, Run
from recbole_gmc.tokenizer import index_file

K = 10
POPULARITY = (0, 1, 5, 10, 20, 50)  # first value of each group: times an item stands in training rows
LENGTHS = (1, 3, 5, 8, 13, 20)  # items in the history of the test row


@dataclass(frozen=True)
class Groups:
    """A metric by group of users: labels, users, means and their standard errors."""

    labels: tuple[str, ...]
    users: tuple[int, ...]
    means: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A test user: what he took, what came next, what the run recommends; ``rank`` is the target's, -1 for a miss."""

    domain: str
    user: str
    history: tuple[str, ...]
    target: str
    recommended: tuple[str, ...]
    rank: int


def group(values: np.ndarray, measures: np.ndarray, starts: Sequence[int]) -> Groups:
    """Means of ``values`` [n] by the interval that each measure [n] falls into; empty groups are left out."""
    labels, users, means, errors = [], [], [], []
    for place, start in enumerate(starts):
        end = starts[place + 1] if place + 1 < len(starts) else None
        mine = values[(measures >= start) & ((measures < end) if end is not None else True)]
        if not len(mine):
            continue
        labels.append(f"{start}+" if end is None else str(start) if end == start + 1 else f"{start}-{end - 1}")
        users.append(len(mine))
        means.append(float(mine.mean()))
        errors.append(float(mine.std(ddof=1) / len(mine) ** 0.5) if len(mine) > 1 else 0.0)
    return Groups(tuple(labels), tuple(users), tuple(means), tuple(errors))


def by_popularity(lists: Lists, data: Mapping[str, DomainData]) -> Groups | None:
    """NDCG@10 by how often the target stands in training rows."""
    kept = [place for place, domain in enumerate(lists.domain) if domain in data]
    counts = [data[lists.domain[place]].trained.get(lists.target[place], 0) for place in kept]
    return group(lists.ndcg(K)[kept], np.array(counts), POPULARITY) if kept else None


def by_length(lists: Lists, data: Mapping[str, DomainData]) -> Groups | None:
    """NDCG@10 by the number of items in the user's history."""
    kept, lengths = [], []
    for place, (domain, user) in enumerate(zip(lists.domain, lists.user, strict=True)):
        if domain in data and user in data[domain].sequences:
            kept.append(place)
            lengths.append(len(data[domain].sequences[user]) - 1)
    return group(lists.ndcg(K)[kept], np.array(lengths), LENGTHS) if kept else None


def rank_counts(lists: Lists) -> np.ndarray:
    """int64 [K]: how many targets stand at each place of the lists."""
    width = max((len(items) for items in lists.items), default=0)
    return np.bincount(lists.rank[lists.rank >= 0], minlength=width)


def examples(lists: Lists, data: Mapping[str, DomainData], hits: int = 2, misses: int = 1) -> list[Example]:
    """A few users a domain, with titles: the first hits within ten and the first misses of the table.

    None is chosen for how well it looks: within each kind they are the first ones in the file.
    """
    found: list[Example] = []
    for domain, raw in data.items():
        wanted = {True: hits, False: misses}
        for place, (name, user) in enumerate(zip(lists.domain, lists.user, strict=True)):
            hit = 0 <= int(lists.rank[place]) < K
            if name != domain or not wanted[hit] or user not in raw.sequences:
                continue
            wanted[hit] -= 1

            def title(item: str, raw: DomainData = raw) -> str:
                return raw.titles.get(item) or item

            found.append(
                Example(
                    domain,
                    user,
                    tuple(title(item) for item in raw.sequences[user][:-1][-K:]),
                    title(lists.target[place]),
                    tuple(title(item) for item in lists.items[place][:K]),
                    int(lists.rank[place]),
                )
            )
    return found


def codes_of(run: Run) -> dict[str, np.ndarray]:
    """Domain -> codes int64 [items, L] of a run with semantic IDs shared by its domains; empty without them."""
    levels, size = run.settings.get("code_levels"), run.settings.get("codebook_size")
    files = {domain: run.folder / "semantic_ids" / index_file.name_of(domain) for domain in run.domains}
    if not levels or not size or not all(file.is_file() for file in files.values()):
        return {}
    tables = {domain: index_file.read(file, int(size), int(levels)) for domain, file in files.items()}
    return {domain: np.array(list(table.values()), np.int64) for domain, table in tables.items()}


def code_shares(codes: Mapping[str, np.ndarray], level: int, most: int = 40) -> tuple[list[int], dict[str, list[int]]]:
    """The most frequent codes of a level, and how many items of each domain have them."""
    size = max(int(part[:, level].max()) for part in codes.values()) + 1
    counts = {domain: np.bincount(part[:, level], minlength=size) for domain, part in codes.items()}
    total = np.sum(list(counts.values()), axis=0)
    first = np.argsort(-total, kind="stable")[:most]
    first = first[total[first] > 0]
    return first.tolist(), {domain: part[first].tolist() for domain, part in counts.items()}
