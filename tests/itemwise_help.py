"""Small item-wise decoders with strong opinions, and what they compute written out one number at a time."""

from __future__ import annotations

from math import exp, log

import torch
from torch import Tensor

from recbole_gmc.decode.itemwise import ItemwiseSearch
from recbole_gmc.decode.readout import Query
from recbole_gmc.model.itemwise import ItemwiseNetwork, ItemwiseSettings
from recbole_gmc.model.repeats import SCALE
from recbole_gmc.model.vocabulary import Vocabulary

LEVELS, CODES, ITEMS, TEXT = 3, 6, 40, 5
SMALL = ItemwiseSettings(width=8, inner=12, layers=2, heads=2, readout=10)


def network(seed: int = 0, settings: ItemwiseSettings = SMALL, sharp: float = 25.0) -> ItemwiseNetwork:
    """Random weights, ``sharp`` times larger than at the start of training where codes are told apart."""
    torch.manual_seed(seed)
    made = ItemwiseNetwork(settings, Vocabulary(LEVELS, CODES), ITEMS, TEXT, max_items=6, domains=2).eval()
    with torch.no_grad():
        if made.repeats is not None:
            made.repeats.bias.copy_(torch.tensor([[0.1, 0.1], [-0.02, -0.03]]))
        made.tables.mul_(sharp)
        for parameter in made.readouts.parameters():
            parameter.mul_(sharp)
        if made.vectors is not None:
            made.vectors.normal_(std=0.3)
    return made


def catalogue(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Distinct codes [n, L] in no order, and text [n, D]."""
    draw = torch.Generator().manual_seed(seed)
    paths = torch.randperm(CODES**LEVELS, generator=draw)[:ITEMS]
    codes = torch.stack([paths // CODES**2, paths // CODES % CODES, paths % CODES], 1)
    return codes, torch.randn(ITEMS, TEXT, generator=draw)


def histories(users: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 7, (users,), generator=draw)
    return torch.randint(ITEMS, (users, 6), generator=draw), length


def search(made: ItemwiseNetwork, seed: int = 0) -> ItemwiseSearch:
    codes, text = catalogue(seed)
    return ItemwiseSearch(made, codes, text if made.text is not None else None, slice(0, ITEMS), CODES, domain=1)


def log_softmax(values: list[float]) -> list[float]:
    whole = log(sum(exp(value) for value in values))
    return [value - whole for value in values]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def below(paths: list[list[int]]) -> dict[tuple[int, ...], set[int]]:
    """The items below every prefix."""
    found: dict[tuple[int, ...], set[int]] = {}
    for item, path in enumerate(paths):
        for size in range(1, len(path) + 1):
            found.setdefault(tuple(path[:size]), set()).add(item)
    return found


def code_log_prob(
    made: ItemwiseNetwork, state: list[float], path: list[int], tree: dict[tuple[int, ...], set[int]], had: set[int]
) -> float:
    """One item's log-probability: its codes one after another, each among all of its level or those in the tree.

    A code counts as seen where all items with this prefix are among those that the user has ``had``.
    """
    total, seen = 0.0, list(state)
    for level, code in enumerate(path):
        table, readout = made.tables[level].tolist(), made.readouts[level]
        inner = [
            max(0.0, dot(row, seen) + bias)
            for row, bias in zip(readout.wi.weight.tolist(), readout.wi.bias.tolist(), strict=True)
        ]
        outer = [
            dot(row, inner) + bias
            for row, bias in zip(readout.wo.weight.tolist(), readout.wo.bias.tolist(), strict=True)
        ]
        asked = [a + b for a, b in zip(state, outer, strict=True)]
        among = list(range(len(table)))
        if made.settings.rank_softmax == "tree":
            among = [code for code in among if (*path[:level], code) in tree]
        logits = [dot(asked, table[one]) for one in among]
        for place, one in enumerate(among):
            items = tree.get((*path[:level], one), set())
            if made.repeats is not None and items and items <= had:
                logits[place] += SCALE * float(made.repeats.bias[1, 1])
        total += log_softmax(logits)[among.index(code)]
        seen = [a + b for a, b in zip(seen, table[code], strict=True)]
    return total


def all_scores(made: ItemwiseNetwork, query: Query, weight: float, seed: int = 0) -> Tensor:
    """[B, n]: the mix of both log-probabilities of every item, item by item."""
    codes, text = catalogue(seed)
    vectors = made.items(codes, text if made.text is not None else None, slice(0, ITEMS)).tolist()
    rows, tree = [], below(codes.tolist())
    for user, state in enumerate(query.states.tolist()):
        had = set() if query.seen is None else set(query.seen.items[user][query.seen.counted[user]].tolist())
        logits = [dot(state, vector) for vector in vectors]
        for item in had:
            logits[item] += SCALE * float(made.repeats.bias[1, 0])
        dense = log_softmax(logits)
        paths = [code_log_prob(made, state, path, tree, had) for path in codes.tolist()]
        rows.append([(1 - weight) * a + weight * b for a, b in zip(paths, dense, strict=True)])
    return torch.tensor(rows)
