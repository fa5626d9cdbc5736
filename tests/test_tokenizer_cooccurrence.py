"""The co-occurrence block: counts by brute force, PPMI by hand, planted groups, domains in one space, and no leak."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_help import config_of
from run_help import tiny, write_planted
from scipy.sparse import csr_array

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import CooccurrenceSettings
from recbole_gmc.tokenizer.cooccurrence import cooccurrences, factors, ppmi, with_cooccurrence
from recbole_gmc.train.prepare import semantic_ids

SEQUENCES = [[0, 1, 2, 0, 3], [2, 2, 1], [4], [3, 4]]


def rows_of(sequences: list[list[int]], most: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories, their lengths and targets, as the training rows have them."""
    pairs = [(s[max(0, k - most) : k], s[k]) for s in sequences for k in range(1, len(s))]
    history = np.array([h + [-1] * (most - len(h)) for h, _ in pairs])
    return history, np.array([len(h) for h, _ in pairs]), np.array([t for _, t in pairs])


@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_counts_are_those_of_a_loop_over_sequences(window):
    wanted = np.zeros((5, 5))
    for sequence in SEQUENCES:
        for i, one in enumerate(sequence):
            for two in sequence[i + 1 : i + 1 + window]:
                if one != two:
                    wanted[one, two] += 1
                    wanted[two, one] += 1
    assert np.array_equal(cooccurrences(*rows_of(SEQUENCES), 5, window).toarray(), wanted)


def test_information_by_hand():
    """Sums 3, 1, 2 of 6: pairs (0, 1) once, (0, 2) twice. log(1 * 6 / (3 * 1)) and log(2 * 6 / (3 * 2))."""
    counts = csr_array(np.array([[0, 1, 2], [1, 0, 0], [2, 0, 0]], float))
    wanted = np.zeros((3, 3))
    wanted[0, 1] = wanted[1, 0] = wanted[0, 2] = wanted[2, 0] = math.log(2)
    assert np.allclose(ppmi(counts).toarray(), wanted)
    rare = csr_array(np.array([[0, 8, 1], [8, 0, 8], [1, 8, 0]], float))
    assert ppmi(rare).toarray()[0, 2] == 0, "less often than by chance is no information"


def test_factors_are_the_singular_vectors_of_numpy():
    draw = np.random.default_rng(0)
    dense = np.triu(draw.random((12, 12)) * (draw.random((12, 12)) < 0.5), 1)
    dense += dense.T
    left, values, _ = np.linalg.svd(dense)
    wanted = left[:, :4] * np.sqrt(values[:4])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = factors(csr_array(dense), 4)
    assert np.allclose(found @ found.T, wanted @ wanted.T, atol=1e-6)
    assert factors(csr_array(dense), 20).shape == (12, 20) and not factors(csr_array((12, 12)), 3).any()


def planted(weight: float, seed: int = 0) -> tuple[ItemIndex, np.ndarray, np.ndarray]:
    """Two domains of two groups each that never meet; the text tells the groups of both alike, but faintly."""
    draw = np.random.default_rng(seed)
    items = ItemIndex.of({domain: [f"{domain}{i:02}" for i in range(30)] for domain in "AB"})
    group = np.tile(np.arange(30) % 2, 2)
    text = draw.standard_normal((60, 10)).astype(np.float32)
    text[:, 0] += 2 * group
    sequences = []
    for domain in range(2):
        for user in range(80):
            own = np.flatnonzero(group[30 * domain : 30 * domain + 30] == user % 2) + 30 * domain
            sequences.append(draw.choice(own[own % 30 < 29], 6).tolist())  # one item of each domain is never taken
    counts = cooccurrences(*rows_of(sequences, 6), 60, 3)
    settings = CooccurrenceSettings(weight=weight, dim=4)
    return items, group, with_cooccurrence(items, text, counts, settings, 1) if weight else text


def test_what_is_taken_together_comes_together_and_domains_agree():
    items, group, joined = planted(1.0)
    text, block = joined[:, :10], joined[:, 10:]
    assert np.array_equal(text, planted(0.0)[2]) and joined.dtype == np.float32 and block.shape == (60, 4)
    for domain in items.domains:
        rows = items.rows(domain)
        variance = (block[rows] ** 2).sum() / 30
        assert variance == pytest.approx(text.var(0).sum(), rel=1e-4), "weight 1: as much as the text"
    known = np.arange(60) % 30 < 29
    assert not block[~known].any(), "an item that nobody takes with another stays at the centre"
    centres = [[block[known & (group == g)][s].mean(0) for g in (0, 1)] for s in (slice(0, 14), slice(-14, None))]
    (a0, a1), (b0, b1) = centres
    assert np.linalg.norm(a0 - b0) < 0.5 * np.linalg.norm(a0 - b1), "one group of both domains lies in one place"
    assert np.linalg.norm(a1 - b1) < 0.5 * np.linalg.norm(a1 - b0)
    double = planted(4.0)[2][:, 10:]
    assert np.allclose(double, 2 * block, atol=1e-5)


def training_part(root: Path, **changes) -> tuple:
    keys = {key: value for key, value in tiny(root, domains=["Big", "Small"], seed=5, **changes).items()}
    config = config_of(root, "tiny", **{key: value for key, value in keys.items() if key != "data_path"})
    return config, GMCDataset(config).build()[0]


def ids_of(root: Path, **changes):
    config, part = training_part(root, **changes)
    return semantic_ids(config, part, torch.device("cpu"), False)


def rewrite(file: Path, place: int, catalogue: list[str]) -> None:
    """Gives each user another item at this place from the end of the history; every item stays in the catalogue."""
    head, *lines = file.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    last = {}
    for number, row in enumerate(rows):
        last.setdefault(row[0], []).append(number)
    for numbers in last.values():
        row = rows[numbers[place]]
        row[1] = catalogue[(catalogue.index(row[1]) + 7) % len(catalogue)]
    assert {row[1] for row in rows} == set(catalogue)
    file.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")


def test_held_out_items_change_nothing_and_training_items_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    for domain, seed in (("Big", 1), ("Small", 2)):
        write_planted(tmp_path, domain, seed=seed, items=12, users=40)
    with_block = {"tokenizer_cooccurrence_weight": 0.5, "tokenizer_cooccurrence_window": 3}
    plain, before = ids_of(tmp_path), ids_of(tmp_path, **with_block)
    assert plain.inputs["embeddings"] != before.inputs["embeddings"], "the caches tell them apart"
    assert plain.ids.fingerprint != before.ids.fingerprint
    for place in (-1, -2, -3):  # the item of the test, that of validation, the last of training
        for domain in ("Big", "Small"):
            catalogue = [f"{domain.lower()}-{i}" for i in range(12)]
            rewrite(tmp_path / domain / f"{domain}.inter", place, catalogue)
        after = ids_of(tmp_path, **with_block)
        same = after.inputs["embeddings"] == before.inputs["embeddings"]
        assert same == (place != -3) and (not same or np.array_equal(after.ids.codes, before.ids.codes))
    assert ids_of(tmp_path).ids.fingerprint == plain.ids.fingerprint, "without the block nothing is read of behaviour"
