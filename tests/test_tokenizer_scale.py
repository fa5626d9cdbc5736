"""Large catalogues: vectors are read in bounded pieces, the repair looks only at items whose ID is taken."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from recbole_gmc import vectors as blockwise
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.embed.mapped import LazyVectors, MappedFile, stacked
from recbole_gmc.errors import EmbeddingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer import encoding, kmeans, quality, repair, rkmeans, tokenize
from recbole_gmc.tokenizer.assign import make_unique, number_collisions, repair_codes
from recbole_gmc.tokenizer.prefixes import Groups, distinct, duplicate_rows, prefix_keys
from recbole_gmc.tokenizer.repair import nearest_first

SMALL = TokenizerSettings(
    levels=3, codebook_size=16, dim=8, rank=4, hidden_sizes=(32, 16), batch_size=64, warmup_epochs=2, epochs=6,
    eval_step=3,
)  # fmt: skip


def catalogue(count: int) -> ItemIndex:
    return ItemIndex.of({"D": [f"{number:06d}" for number in range(count)]})


def clusters(count: int, width: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, width))
    return (centres[rng.integers(40, size=count)] + 0.3 * rng.normal(size=(count, width))).astype(np.float32)


class Counting:
    """Vectors that remember how many rows each reading took."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.shape, self.readings = table, table.shape, []

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows):
        found = self.table[rows]
        self.readings.append(len(found))
        return found


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_no_reading_takes_more_than_a_block_or_a_batch(kind, monkeypatch):
    """1,500 vectors, blocks of 50 rows, batches of 64, samples of 200: never more at once, whatever is done."""
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 50 * 4 * 24)
    monkeypatch.setattr(kmeans, "SAMPLE_ROWS", 200)
    monkeypatch.setattr(kmeans, "ROWS_PER_CODE", 4)
    source = Counting(clusters(1500))
    lazy = LazyVectors(source.shape, source.__getitem__)
    settings = replace(SMALL, kind=kind, epoch_items=300, levels=5)
    made = tokenize(TextEmbeddings(catalogue(1500), lazy), settings, seed=1, cache_dir=None, progress=False)
    assert len(np.unique(made.ids.codes, axis=0)) == 1500
    assert max(source.readings) <= 64
    rows = sum(source.readings)
    # checks, moments, axes or epochs and looks, all codes, equal embeddings, the repair: a few times all of them
    assert rows < 12 * 1500 if kind == "rqvae" else rows < 10 * 1500


def test_memory_of_the_tokenizer_does_not_grow_with_the_vectors(tmp_path, monkeypatch):
    """Eight times the vectors cost eight times the codes, and nothing else: numpy's allocations are traced."""
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(kmeans, "SAMPLE_ROWS", 500)
    monkeypatch.setattr(kmeans, "ROWS_PER_CODE", 4)
    monkeypatch.setattr(encoding, "MOST_ROWS", 256)
    settings = replace(SMALL, levels=6, epochs=2, warmup_epochs=1, epoch_items=500)
    peaks = []
    for count in (2_000, 16_000):
        np.save(tmp_path / f"{count}.npy", clusters(count, 128).astype(np.float16))
        data = TextEmbeddings(catalogue(count), stacked([(MappedFile(tmp_path / f"{count}.npy"), None)]))
        tracemalloc.start()
        tokenize(data, settings, seed=1, cache_dir=None, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = peaks[1] - peaks[0]
    assert grown < 14_000 * 200  # bytes an item: codes, keys and orders; a float32 copy alone would take 512


def test_vectors_made_when_asked_for_need_no_file():
    def read(rows):
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return np.stack([np.sin(numbers * (1 + axis)) for axis in range(12)], axis=1).astype(np.float32)

    lazy = LazyVectors((700, 12), read)
    made = tokenize(TextEmbeddings(catalogue(700), lazy), SMALL, seed=1, cache_dir=None, progress=False)
    again = tokenize(TextEmbeddings(catalogue(700), read(slice(0, 700))), SMALL, seed=1, cache_dir=None, progress=False)
    assert made.ids.fingerprint == again.ids.fingerprint and made.quality["history"] == again.quality["history"]


def test_an_epoch_of_a_large_catalogue_takes_new_items_each_time(monkeypatch):
    from recbole_gmc.tokenizer.fit import _Training

    drawn = []
    batches = _Training._batches
    monkeypatch.setattr(_Training, "_batches", lambda self: drawn.append(list(batches(self))) or iter(drawn[-1]))
    settings = replace(SMALL, epoch_items=100, epochs=2, warmup_epochs=1)
    tokenize(TextEmbeddings(catalogue(400), clusters(400)), settings, seed=1, cache_dir=None, progress=False)
    epochs = [np.concatenate([rows.numpy() for rows in epoch]) for epoch in drawn]
    assert [len(set(rows.tolist())) for rows in epochs] == [100] * 3
    assert len(set(np.concatenate(epochs).tolist())) > 200


def test_embeddings_changed_while_they_are_tokenized_are_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", clusters(200))
    data = TextEmbeddings(catalogue(200), stacked([(MappedFile(tmp_path / "v.npy"), None)]))
    equal = quality.equal_embeddings

    def meanwhile(*arguments):
        np.save(tmp_path / "new.npy", clusters(200, seed=1))
        (tmp_path / "new.npy").replace(tmp_path / "v.npy")
        return equal(*arguments)

    monkeypatch.setattr(quality, "equal_embeddings", meanwhile)
    with pytest.raises(EmbeddingError, match="v.npy.*changed"):
        tokenize(data, SMALL, seed=1, cache_dir=None, progress=False)


# -- axes and moments --------------------------------------------------------------------------------------------------


def test_moments_in_one_reading_are_those_of_all(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 4 * 24 * 33)
    table = clusters(500) + 1000  # far from 0, where sums of squares lose their digits
    mean, squares = rkmeans.moments(table)
    wide = table.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=0), rtol=1e-10)
    assert squares == pytest.approx(((wide - wide.mean(axis=0)) ** 2).sum(), rel=1e-9)


def test_axes_hold_as_much_as_the_singular_vectors():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(900, 120)) * np.arange(1, 121) ** -0.7).astype(np.float32)
    centred = table - table.mean(axis=0)
    axes = rkmeans.principal_axes(table, np.arange(900), table.mean(axis=0).astype(np.float64), 20, 0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(20), atol=1e-10)
    best = (np.linalg.svd(centred, compute_uv=False)[:20] ** 2).sum()
    assert ((centred @ axes) ** 2).sum() == pytest.approx(best, rel=1e-4)


# -- keys and groups ---------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=40))
def test_keys_order_and_tell_rows_apart_as_their_codes_do(rows):
    codes = np.array(rows, dtype=np.int32)
    for keys in (
        prefix_keys(codes),
        prefix_keys(codes.astype(np.int64) * 2**29),
    ):  # three codes of 2**32 do not fit into 63 bits
        tuples = [tuple(row) for row in rows]
        assert [tuples[i] for i in np.argsort(keys, kind="stable")] == sorted(tuples)
        assert len(np.unique(keys)) == len(set(tuples))
    assert distinct(codes) == len(set(tuples))
    assert duplicate_rows(codes).tolist() == [i for i, row in enumerate(tuples) if row in tuples[:i]]
    groups = Groups.of(prefix_keys(codes))
    assert [tuples[groups.rows(g)[0]] for g in range(len(groups))] == sorted(set(tuples))
    assert groups.places().tolist() == [tuples[:i].count(row) for i, row in enumerate(tuples)]


def test_tigers_counter_numbers_equal_codes_domain_by_domain():
    items = ItemIndex.of({"A": "abcd", "B": "ab"})
    codes = np.array([[1, 1], [0, 2], [1, 1], [1, 1], [1, 1], [0, 2]])
    assert number_collisions(items, codes, 4).codes[:, 2].tolist() == [0, 0, 1, 2, 0, 0]


def test_equal_embeddings_are_counted_by_blocks_of_any_size(monkeypatch):
    table = clusters(300)
    table[250:260] = table[3]
    table[100] = -table[7]
    for block in (7, 1000):
        monkeypatch.setattr(blockwise, "BLOCK_BYTES", block * 4 * 24)
        assert quality.equal_embeddings(catalogue(300), table) == {"D": 10}


# -- repair ------------------------------------------------------------------------------------------------------------


def problem(seed, count, size, spread):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, spread, size=(count, 3)).astype(np.int32)
    codes[:, 0] = rng.integers(0, 2, size=count)
    return codes, rng.normal(size=(count, 2)), rng.normal(size=(3, size, 2))


def last_level(codes, latents, books):
    residual = latents - books[0][codes[:, 0]] - books[1][codes[:, 1]]
    return ((residual[:, None] - books[2][None]) ** 2).sum(axis=2)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 4))
def test_looking_at_colliding_items_alone_is_as_good_as_at_the_whole_group(seed, count, spread):
    """Against one assignment over all items of each group and all codes, moved items weighing most."""
    codes, latents, books = problem(seed, count, 64, spread)
    cost = last_level(codes, latents, books)
    found = make_unique(catalogue(count), codes, latents, books)
    assert np.array_equal(found.codes[:, :2], codes[:, :2])
    for rows in (np.flatnonzero((codes[:, :2] == pair).all(axis=1)) for pair in np.unique(codes[:, :2], axis=0)):
        whole = cost[rows] + 1e6 * (codes[rows, 2][:, None] != np.arange(64))
        best = linear_sum_assignment(whole)
        mine = whole[np.arange(len(rows)), found.codes[rows, 2]].sum()
        assert mine == pytest.approx(whole[best].sum(), rel=1e-9)


def test_the_repair_reads_only_items_whose_id_is_taken():
    rng = np.random.default_rng(0)
    codes = np.stack([np.arange(4000) // 256, np.arange(4000) % 256, np.zeros(4000)], axis=1).astype(np.int32)
    twins = rng.choice(4000, size=60, replace=False)
    codes[twins[:30]] = codes[twins[30:]]
    latents = Counting(rng.normal(size=(4000, 2)))
    found = make_unique(catalogue(4000), codes, latents, rng.normal(size=(3, 256, 2)))
    assert len(np.unique(found.codes, axis=0)) == 4000 and found.moved.sum() == 30
    assert sum(latents.readings) == 60


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 6), st.booleans())
def test_nearest_first_takes_the_least_of_all_costs_each_time(seed, count, places, ties):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, size=(count, places)).astype(float) if ties else rng.normal(size=(count, places))
    room = rng.integers(0, 8, size=places)
    wanted = min(int(room.sum()), int(rng.integers(0, count + 1)))
    left, open_cost, expected = room.copy(), cost.copy(), np.full(count, -1)
    open_cost[:, left == 0] = np.inf
    for _ in range(wanted):
        item, place = np.unravel_index(np.argmin(open_cost), cost.shape)
        expected[item] = place
        open_cost[item] = np.inf
        left[place] -= 1
        if not left[place]:
            open_cost[:, place] = np.inf
    found = nearest_first(lambda items: cost[items].copy(), count, room, wanted)
    assert np.array_equal(found, expected) and np.array_equal(room, left)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 4))
def test_where_the_assignment_would_cost_too_much_ids_are_still_unique_and_moves_fewest(seed, count, spread):
    codes, latents, books = problem(seed, count, 64, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair, "EXACT_CELLS", 0)
        patch.setattr(repair, "BATCH_CELLS", 1)
        found = make_unique(catalogue(count), codes, latents, books)
    assert len(np.unique(found.codes, axis=0)) == count
    assert found.moved.sum() == count - len(np.unique(codes, axis=0))
    cost, stays = last_level(codes, latents, books), ~found.moved
    for row in np.flatnonzero(found.moved):  # whoever stayed on its code is at least as near
        holder = np.flatnonzero(stays & (codes == codes[row]).all(axis=1))
        assert cost[holder, codes[row, 2]] <= cost[row, codes[row, 2]]


def test_imported_codes_are_repaired_from_vectors_in_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 4 * 24 * 20)
    source, rng = Counting(clusters(300)), np.random.default_rng(0)
    codes = rng.integers(0, 6, size=(300, 3)).astype(np.int32)
    found = repair_codes(catalogue(300), codes, 8, source)
    assert len(np.unique(found.codes, axis=0)) == 300 and max(source.readings[:-20]) <= 20
    assert np.array_equal(found.codes, repair_codes(catalogue(300), codes, 8, source.table).codes)
