"""Semantic IDs as files and values, and the repair that makes them unique (faults 8, 11, 13, 27)."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_gmc.errors import CheckpointError, SettingError, TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.tokenizer.assign import make_unique
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

ITEMS = ItemIndex.of({"Books": ["b1", "b2", "NA"], "Toys & Games": ["b1", 'a "quoted" one']})
CODES = np.array([[0, 1], [255, 3], [0, 2], [0, 1], [7, 7]])


def ids() -> SemanticIds:
    return SemanticIds(ITEMS, CODES, 256)


def catalogue(count: int) -> ItemIndex:
    return ItemIndex.of({"D": [f"{number:05d}" for number in range(count)]})


# -- value and files ---------------------------------------------------------------------------------------------------


def test_value_object_holds_codes_by_domain_and_cannot_be_changed():
    assert ids().for_domain("Toys & Games").tolist() == [[0, 1], [7, 7]] and ids().levels == 2
    with pytest.raises(ValueError):
        ids().codes[0, 0] = 1
    assert ids().fingerprint != SemanticIds(ITEMS, CODES, 300).fingerprint


@pytest.mark.parametrize("codes", [CODES[:4], CODES.astype(float), CODES - 1, CODES + 1, CODES[:, 0]])
def test_codes_that_do_not_fit_are_refused(codes):
    with pytest.raises(TokenizerError):
        SemanticIds(ITEMS, codes, 256)


def test_equal_ids_are_refused_inside_a_domain_only():
    codes = CODES.copy()
    codes[2] = codes[0]
    with pytest.raises(TokenizerError, match="'b2'.*semantic_ids_repair"):
        SemanticIds(ITEMS, codes, 256)


def test_save_and_load_round_trip(tmp_path):
    ids().save(tmp_path / "ids")
    ids().save(tmp_path / "ids")  # replaces
    again = SemanticIds.load(tmp_path / "ids")
    assert again.fingerprint == ids().fingerprint and again.items == ITEMS
    assert sorted(path.name for path in (tmp_path / "ids").iterdir()) == [
        "Books.index.json",
        "Toys & Games.index.json",
        "manifest.json",
    ]
    table = json.loads((tmp_path / "ids" / "Books.index.json").read_text())
    assert table == {"NA": ["<a_0>", "<b_1>"], "b1": ["<a_255>", "<b_3>"], "b2": ["<a_0>", "<b_2>"]}


@pytest.mark.parametrize("damage", ["change", "cut", "manifest", "missing", "path"])
def test_damaged_ids_are_refused(tmp_path, damage):
    ids().save(tmp_path)
    file, manifest = tmp_path / "Books.index.json", tmp_path / "manifest.json"
    if damage == "change":
        file.write_text(file.read_text().replace("<b_3>", "<b_4>"))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "manifest":
        manifest.write_text("[1, 2]")
    elif damage == "missing":
        file.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"Books"', '"../Books"'))
    with pytest.raises(CheckpointError):
        SemanticIds.load(tmp_path)


def test_domain_names_that_leave_the_folder_are_refused(tmp_path):
    bad = SemanticIds(ItemIndex.of({"../x": ["a"]}), np.zeros((1, 2), dtype=int), 4)
    for write in (bad.save, bad.export):
        with pytest.raises(SettingError):
            write(tmp_path / "out")
    assert not list(tmp_path.rglob("*.json"))


# -- import (fault 13) -------------------------------------------------------------------------------------------------


def test_export_and_import_round_trip(tmp_path):
    ids().export(tmp_path)
    assert SemanticIds.read_index(tmp_path, ITEMS, 256, 2).fingerprint == ids().fingerprint


GOOD = {"x": ["<a_0>", "<b_1>"], "y": ["<a_0>", "<b_2>"]}
BAD = {
    "has 1 codes": {**GOOD, "y": ["<a_0>"]},
    "has 3 codes": {**GOOD, "y": ["<a_0>", "<b_0>", "<c_0>"]},
    "instead of a list": {**GOOD, "y": "<a_0>"},
    "unknown items: 'z'": {**GOOD, "z": ["<a_3>", "<b_2>"]},
    "no semantic ID for 'y'": {"x": GOOD["x"]},
    "unknown items: '../../etc/passwd'": {**GOOD, "../../etc/passwd": ["<a_3>", "<b_2>"]},
    "share their semantic ID": {**GOOD, "y": GOOD["x"]},
    "one object": [GOOD],
    **{
        f"bad code {word!r}": {**GOOD, "y": ["<a_0>", word]}
        for word in ("<a_1>", "<b_4>", "<b_-1>", "<b_01>", "b_1", "<b_1> ", "<b_1>\n", "<b_\u0661>", "<c_1>", 3, None)
    },
}


@pytest.mark.parametrize("fault", BAD, ids=ascii)
def test_bad_index_files_are_refused(tmp_path, fault):
    path = tmp_path / "D.index.json"
    path.write_text(json.dumps(BAD[fault]), encoding="utf-8")
    with pytest.raises(TokenizerError) as caught:
        SemanticIds.read_index(path, ItemIndex.of({"D": ["x", "y"]}), 4, 2)
    assert fault in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("text", [b"{", b'{"x": ["<a_0>", "<b_1>"], "x": ["<a_0>", "<b_2>"]}', b"\xff\xfe", None])
def test_unreadable_index_files_are_refused(tmp_path, text):
    path = tmp_path / "D.index.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(TokenizerError, match="D.index.json"):
        SemanticIds.read_index(path, ItemIndex.of({"D": ["x"]}), 4, 2)


def test_one_file_does_not_do_for_two_domains(tmp_path):
    with pytest.raises(TokenizerError, match="folder"):
        SemanticIds.read_index(tmp_path / "none.json", ITEMS, 4, 2)


def test_import_repairs_duplicates_when_asked(tmp_path):
    path = tmp_path / "D.index.json"
    path.write_text(json.dumps({"x": ["<a_0>", "<b_1>"], "y": ["<a_0>", "<b_1>"], "z": ["<a_0>", "<b_3>"]}))
    items = ItemIndex.of({"D": ["x", "y", "z"]})
    plain = SemanticIds.read_index(path, items, 4, 2, repair=True)
    assert plain.codes[2].tolist() == [0, 3] and [0, 1] in plain.codes[:2].tolist()
    vectors = np.array([[5.0, 0.0], [0.0, 0.0], [0.2, 0.0]])
    near = SemanticIds.read_index(path, items, 4, 2, repair=True, vectors=vectors)
    assert near.codes[2].tolist() == [0, 3] and len(np.unique(near.codes, axis=0)) == 3


# -- repair (fault 11) -------------------------------------------------------------------------------------------------


def by_brute_force(codes, latents, books):
    """Fewest moved items, then the least squared error, over every way to choose last codes in one prefix group."""
    size, best = books.shape[1], None
    residual = latents - books[0][codes[:, 0]]
    cost = ((residual[:, None] - books[1][None]) ** 2).sum(axis=2)
    for choice in itertools.permutations(range(size), len(codes)):
        moved = sum(a != b for a, b in zip(choice, codes[:, 1], strict=True))
        error = sum(cost[row, code] for row, code in enumerate(choice))
        if best is None or (moved, error) < (best[0], best[1] - 1e-12):
            best = moved, error
    return best, cost


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_last_codes_of_a_group_equal_brute_force(seed, count):
    rng = np.random.default_rng(seed)
    latents, books = rng.normal(size=(count, 3)), rng.normal(size=(2, 5, 3))
    codes = np.stack([np.zeros(count, dtype=int), rng.integers(0, 3, count)], axis=1)
    (moved, error), cost = by_brute_force(codes, latents, books)
    found = make_unique(catalogue(count), codes, latents, books)
    chosen = found.codes[:, 1]
    assert len(set(chosen.tolist())) == count and (found.codes[:, 0] == 0).all()
    assert found.moved.sum() == moved == count - len(set(codes[:, 1].tolist()))
    assert cost[np.arange(count), chosen].sum() == pytest.approx(error)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 64), st.integers(1, 4), st.sampled_from([1.0, 0.0]))
def test_repair_is_unique_moves_the_fewest_and_is_repeatable(seed, count, spread, noise):
    """16 last-two-level IDs a first code; up to 64 items on few codes, equal vectors among them."""
    rng = np.random.default_rng(seed)
    items = catalogue(count)
    codes = np.stack([np.arange(count) % 4, rng.integers(0, spread, count), rng.integers(0, spread, count)], axis=1)
    latents, books = noise * rng.normal(size=(count, 2)), rng.normal(size=(3, 4, 2))
    found = make_unique(items, codes, latents, books)
    assert len(np.unique(found.codes, axis=0)) == count
    assert found.moved.sum() == count - len(np.unique(codes, axis=0))
    assert (found.codes[:, 0] == codes[:, 0]).all()
    assert np.array_equal(make_unique(items, codes, latents, books).codes, found.codes)
    alone = (codes[:, None] == codes[None]).all(axis=2).sum(axis=1) == 1
    assert not found.moved[alone].any()


def test_equal_items_keep_token_order_and_domains_are_repaired_apart():
    items = ItemIndex.of({"A": ["1", "2", "3"], "B": ["1"]})
    books = np.array([[[0.0], [9.0]], [[0.0], [1.0]]])
    books = np.concatenate([books, np.array([[[2.0]], [[2.0]]])], axis=1)
    found = make_unique(items, np.zeros((4, 2), dtype=int), np.zeros((4, 1)), books)
    assert found.codes.tolist() == [[0, 0], [0, 1], [0, 2], [0, 0]]
    assert found.moved.tolist() == [False, True, True, False]


def test_surplus_of_a_group_moves_to_the_nearest_prefix_with_room():
    books = np.array([[[0.0], [10.0], [3.0]], [[0.0], [1.0], [2.0]]])
    latents = np.array([[0.0], [0.1], [0.2], [1.9], [10.0], [10.0], [10.0]])
    codes = np.array([[0, 0]] * 4 + [[1, 0]] * 3)
    found = make_unique(catalogue(7), codes, latents, books)
    assert found.codes[3].tolist()[0] == 2  # the item nearest to 3 goes there
    assert (found.codes[:3, 0] == 0).all() and (found.codes[4:, 0] == 1).all()
    assert len(np.unique(found.codes, axis=0)) == 7


@pytest.mark.parametrize(("levels", "count", "need"), [(1, 5, 5), (2, 17, 5), (3, 30, 6)])
def test_what_cannot_be_separated_is_refused_with_the_size_needed(levels, count, need):
    codes, latents = np.zeros((count, levels), dtype=int), np.zeros((count, 2))
    with pytest.raises(TokenizerError, match=f"codebook_size to {need} or more"):
        make_unique(catalogue(count), codes, latents, np.zeros((levels, 4, 2)))
    made = make_unique(catalogue(count), codes, latents, np.zeros((levels, need, 2)))
    assert len(np.unique(made.codes, axis=0)) == count
