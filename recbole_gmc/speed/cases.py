"""What decoding is measured on: random weights over a synthetic catalogue, or the checkpoint and data of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_gmc import logs
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.seq2seq import build_t5
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.recommender import Recommender
from recbole_gmc.settings import DecodeSettings, T5Settings
from recbole_gmc.speed.measure import SpeedOptions
from recbole_gmc.speed.reference import Generate
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

DOMAIN = "synthetic"
LEVELS, CODES, MOST = 4, 256, 20
# Test users of Scientific (8,317) by the items in their history: 4, 5, ... 20; the shortest, 6.0 on average.
LENGTHS = (3261, 1868, 1070, 642, 377, 295, 198, 130, 110, 69, 57, 51, 40, 25, 22, 22, 80)
SHORTEST = 4


@dataclass(frozen=True)
class Case:
    """One network, one catalogue, and n users.

    Attributes:
        state, config: weights of a plain T5, adapters merged, and its shape.
        ids: semantic IDs of the one domain that is decoded.
        history: int64 [n, S], item rows, oldest first, -1 past ``length`` [n].
        target: int64 [n], the item that came next, or ``None`` where nothing did.
    """

    state: Mapping[str, Tensor]
    config: Any
    ids: SemanticIds
    history: Tensor
    length: Tensor
    target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.length)

    @property
    def codes(self) -> Tensor:
        return torch.from_numpy(np.asarray(self.ids.codes, np.int64))

    @property
    def domain(self) -> str:
        return self.ids.items.domains[0]

    def of(self, users: Tensor) -> Case:
        """Some of its users, by position."""
        target = None if self.target is None else self.target[users]
        return replace(self, history=self.history[users], length=self.length[users], target=target)

    def users(self, most: int) -> Case:
        """The first ones."""
        return self.of(torch.arange(min(most, len(self))))

    def sample(self, count: int) -> Case:
        """Users whose histories are as long as those of all, in the same order."""
        place = (torch.arange(min(count, len(self))) + 0.5) * (len(self) / min(count, len(self)))
        return self.of(self.length.argsort(stable=True)[place.long()].sort().values)

    def recommender(self, device: str, **settings: Any) -> Recommender:
        """This project's way, with settings of ``DecodeSettings``."""
        states = {self.domain: {name: tensor.to(device) for name, tensor in self.state.items()}}
        decode = DecodeSettings(**settings)
        return Recommender(self.ids, self.config, states, max_items=MOST, decode=decode, device=device)

    def reference(self, device: str) -> Generate:
        return Generate(self.state, self.config, self.codes, Vocabulary.of(self.ids), device)


def random_case(options: SpeedOptions, users: int, realistic: bool) -> Case:
    """Random weights of the default network over 25,000 items with random IDs.

    Args:
        realistic: histories as long as those of Scientific's test users, in random order; else all of 20 items.
    """
    items, codes, shape = (300, 16, T5Settings(1, 1, 16, 16, 2, 8)) if options.tiny else (25_000, CODES, T5Settings())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        t5 = build_t5(shape, Vocabulary(LEVELS, codes)).eval()
        keys = torch.randperm(codes**LEVELS)[:items] if options.tiny else _distinct(items, codes**LEVELS)
        paths = torch.stack([keys // codes**level % codes for level in reversed(range(LEVELS))], dim=1)
        length = torch.full((users,), MOST)
        if realistic:
            length = SHORTEST + torch.multinomial(torch.tensor(LENGTHS).float(), users, replacement=True)
        history = torch.randint(items, (users, MOST))
    history = history.masked_fill(torch.arange(MOST) >= length[:, None], -1)
    index = ItemIndex.of({DOMAIN: [f"{row:08d}" for row in range(items)]})
    return Case(t5.state_dict(), t5.config, SemanticIds(index, paths.numpy(), codes), history, length)


def _distinct(count: int, below: int) -> Tensor:
    """``count`` distinct numbers in random order."""
    drawn = torch.randint(below, (count + count // 2 + 16,)).unique()
    return drawn[torch.randperm(len(drawn))[:count]]


def trained_case(folder: Path, seed: int) -> Case:
    """The checkpoint of a run whose T5 decodes semantic IDs, and the test users of its largest domain in random order.

    Raises:
        CheckpointError: the folder holds no checkpoint, or a damaged one.
    """
    from recbole_gmc.data.rows import SequenceRows
    from recbole_gmc.loading import load_data_and_model

    with logs.silent():  # else the run's own log would go on
        _, model, _, _, _, test = load_data_and_model(folder)
    rows = SequenceRows.of(test._dataset)
    domain = int(rows.domain.bincount().argmax())
    rows = rows.of_domain(domain)
    rows = rows.select(torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)))
    name = model.items.domains[domain]
    start = model.items.rows(name).start
    ids = SemanticIds(
        ItemIndex.of({name: model.items.tokens[name]}),
        model.semantic_ids.for_domain(name),
        model.semantic_ids.codebook_size,
        model.semantic_ids.words,
    )
    history = torch.where(rows.history < 0, -1, rows.history - start)
    return Case(model.plain_state(name), model.t5.config, ids, history, rows.length, rows.target - start)
