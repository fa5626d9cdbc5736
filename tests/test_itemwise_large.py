"""GMCPlus over more items than are searched exactly by default: lists against the score of every item."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from itemwise_help import SMALL, TEXT
from torch import Tensor

from recbole_gmc.embed import TextEmbeddings
from recbole_gmc.items import ItemIndex
from recbole_gmc.mixed_recommender import EXACT_ITEMS, MixedRecommender
from recbole_gmc.model.itemwise import ItemwiseNetwork
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import DecodeSettings
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

LEVELS, CODES, MOST, USERS, WEIGHT = 3, 64, 6, 8, 0.5


@pytest.fixture(scope="module")
def made() -> SimpleNamespace:
    """Random weights that tell codes apart, one item more than are searched exactly, their IDs and text at random."""
    draw, items = np.random.default_rng(0), EXACT_ITEMS + 1
    index = ItemIndex.of({"A": [f"a{number}" for number in range(items)]})
    paths = draw.permutation(CODES**LEVELS)[:items]
    codes = np.stack([paths // CODES**2, paths // CODES % CODES, paths % CODES], 1).astype(np.int32)
    text = TextEmbeddings(index, draw.standard_normal((items, TEXT)).astype(np.float32))
    torch.manual_seed(0)
    settings = replace(SMALL, rank_softmax="table", repeats=False)
    network = ItemwiseNetwork(settings, Vocabulary(LEVELS, CODES), items, TEXT, max_items=MOST, domains=1).eval()
    with torch.no_grad():
        network.tables.mul_(25.0)
        for parameter in network.readouts.parameters():
            parameter.mul_(10.0)
    network.text.fit(torch.from_numpy(np.asarray(text.vectors)))
    history, length = torch.from_numpy(draw.integers(items, size=(USERS, MOST))), torch.full((USERS,), MOST)

    def recommender(search: str) -> MixedRecommender:
        ids, states = SemanticIds(index, codes, CODES), {"A": network.state_dict()}
        decode = DecodeSettings(search=search)
        return MixedRecommender(ids, text, network, states, {"A": WEIGHT}, max_items=MOST, decode=decode)

    scores = every_score(network, torch.from_numpy(codes).long(), torch.from_numpy(text.vectors), history, length)
    return SimpleNamespace(recommender=recommender, history=history, length=length, scores=scores)


@torch.no_grad()
def every_score(network: ItemwiseNetwork, codes: Tensor, text: Tensor, history: Tensor, length: Tensor) -> Tensor:
    """[B, n]: (1 - w) log p(codes) + w log p(item), every item by itself and nothing shared among them."""
    items = network.tables[torch.arange(LEVELS), codes].sum(1) + network.text(text) + network.vectors
    states, rows = network.last_states(items, history, length), []
    for state in states:
        seen, total = state.expand_as(items), (items @ state).log_softmax(0) * WEIGHT
        for table, readout, chosen in zip(network.tables, network.readouts, codes.T, strict=True):
            told = ((state + readout(seen)) @ table.T).log_softmax(1)
            total = total + (1 - WEIGHT) * told.gather(1, chosen[:, None])[:, 0]
            seen = seen + table[chosen]
        rows.append(total)
    return torch.stack(rows)


def test_exact_lists_are_the_best_of_all_items(made):
    exact = made.recommender("exact")
    found = exact.rank("A", made.history, made.length)
    best = made.scores.topk(exact.decode.beam_size)
    assert exact.is_exact("A") and found.certified.all()
    assert np.allclose(found.scores, best.values, atol=1e-3)
    told = made.scores.gather(1, torch.from_numpy(found.ranked))
    assert torch.allclose(told, torch.from_numpy(found.scores), atol=1e-3), "each score is its own item's"
    assert all(len(set(row)) == len(row) for row in found.ranked.tolist())


def test_left_open_it_is_the_beam_whose_certificate_holds(made):
    auto, beam = (made.recommender(search) for search in ("auto", "beam"))
    assert not auto.is_exact("A")
    found, other = (way.rank("A", made.history, made.length) for way in (auto, beam))
    assert np.array_equal(found.ranked, other.ranked) and np.array_equal(found.certified, other.certified)
    told = made.scores.gather(1, torch.from_numpy(found.ranked))
    assert torch.allclose(told, torch.from_numpy(found.scores), atol=1e-3)
    best = made.scores.topk(auto.decode.beam_size).values.numpy()
    true = np.isclose(found.scores, best, atol=1e-3).all(1)
    assert true[found.certified].all()
