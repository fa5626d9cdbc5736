"""The numbers behind the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_gmc.evaluate.per_user import standard_error
from recbole_gmc.evaluate.token_lists import TokenLists
from recbole_gmc.report.runs import DomainData

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
        errors.append(standard_error(mine) if len(mine) > 1 else 0.0)
    return Groups(tuple(labels), tuple(users), tuple(means), tuple(errors))


def by_popularity(lists: TokenLists, data: Mapping[str, DomainData]) -> Groups | None:
    """NDCG@10 by how often the target stands in training rows."""
    kept = [place for place, domain in enumerate(lists.domain) if domain in data]
    counts = [data[lists.domain[place]].trained.get(lists.target[place], 0) for place in kept]
    return group(lists.ndcg(K)[kept], np.array(counts), POPULARITY) if kept else None


def by_length(lists: TokenLists, data: Mapping[str, DomainData]) -> Groups | None:
    """NDCG@10 by the number of items in the user's history."""
    kept, lengths = [], []
    for place, (domain, user) in enumerate(zip(lists.domain, lists.user, strict=True)):
        if domain in data and user in data[domain].sequences:
            kept.append(place)
            lengths.append(len(data[domain].sequences[user]) - 1)
    return group(lists.ndcg(K)[kept], np.array(lengths), LENGTHS) if kept else None


def rank_counts(lists: TokenLists) -> np.ndarray:
    """int64 [K]: how many targets stand at each place of the lists."""
    width = max((len(items) for items in lists.items), default=0)
    return np.bincount(lists.rank[lists.rank >= 0], minlength=width)


def chosen(lists: TokenLists, data: Mapping[str, DomainData], hits: int = 2, misses: int = 1) -> list[tuple[str, str]]:
    """A few users a domain, as (domain, user): the first hits within ten and the first misses of the table.

    None is chosen for how well it looks: within each kind they are the first ones in the file.
    """
    found: list[tuple[str, str]] = []
    for domain, raw in data.items():
        wanted = {True: hits, False: misses}
        for place, (name, user) in enumerate(zip(lists.domain, lists.user, strict=True)):
            hit = 0 <= int(lists.rank[place]) < K
            if name == domain and wanted[hit] and user in raw.sequences:
                wanted[hit] -= 1
                found.append((domain, user))
    return found


def examples(lists: TokenLists, data: Mapping[str, DomainData], users: Sequence[tuple[str, str]]) -> list[Example]:
    """Those of the (domain, user) pairs that the lists have, with titles."""
    places = {pair: place for place, pair in enumerate(zip(lists.domain, lists.user, strict=True))}
    found = []
    for domain, user in users:
        if (domain, user) not in places or domain not in data or user not in data[domain].sequences:
            continue
        place, raw = places[domain, user], data[domain]
        found.append(
            Example(
                domain,
                user,
                tuple(raw.title(item) for item in raw.sequences[user][:-1][-K:]),
                raw.title(lists.target[place]),
                tuple(raw.title(item) for item in lists.items[place][:K]),
                int(lists.rank[place]),
            )
        )
    return found
