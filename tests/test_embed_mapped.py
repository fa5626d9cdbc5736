"""Embeddings that stay on disk: the same numbers as in memory, and never more of them at once than a block."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_gmc import vectors as blockwise
from recbole_gmc.data.text import ItemTexts
from recbole_gmc.embed import TextEmbeddings, embed, mapped, normalized
from recbole_gmc.embed.mapped import LazyVectors, MappedFile, stacked
from recbole_gmc.errors import EmbeddingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TextSettings


def on_disk(folder, table, name="v", places=None):
    np.save(folder / f"{name}.npy", table, allow_pickle=False)
    return MappedFile(folder / f"{name}.npy"), places


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two files of float16, one of them in another order, and the same rows as an array."""
    folder, random = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    one, two = (random.normal(size=(n, 6)).astype(np.float16) for n in (37, 23))
    places = random.permutation(23)[:20]
    lazy = stacked([on_disk(folder, one, "one"), on_disk(folder, two, "two", places)])
    return lazy, np.concatenate([one, two[places]]).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.integers(0, 56), max_size=30))
def test_rows_of_several_files_are_those_of_one_array(pair, start, stop, rows):
    lazy, array = pair
    assert lazy.shape == array.shape and len(lazy) == 57
    assert np.array_equal(lazy[start:stop], array[start:stop]) and lazy[start:stop].dtype == np.float32
    found = np.array(rows, dtype=np.int64)
    assert np.array_equal(lazy[found], array[found])
    assert np.array_equal(lazy[start:stop:3], array[start:stop:3]) and np.array_equal(lazy[-1], array[-1])
    assert np.array_equal(lazy[array[:, 0] > 0], array[array[:, 0] > 0])
    assert np.array_equal(np.asarray(lazy), array)


@pytest.mark.parametrize("how", ["none", "l2", "standardize"])
def test_fingerprints_and_normalisation_do_not_depend_on_where_vectors_lie(pair, how, monkeypatch):
    lazy, array = pair
    items = ItemIndex.of({"A": [f"{i:02}" for i in range(57)]})
    here = TextEmbeddings(items, np.asarray(normalized(array, how)))
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 7 * 4 * 6)
    there = TextEmbeddings(items, normalized(lazy, how))
    np.testing.assert_allclose(there.vectors, here.vectors, atol=1e-6)
    if how != "standardize":  # sums over blocks may round otherwise
        assert there.fingerprint == here.fingerprint
    assert np.array_equal(there.for_domain("A"), np.asarray(there.vectors))


def test_bad_rows_are_found_in_whatever_block_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 4 * 4 * 3)
    table = np.ones((30, 3), np.float16)
    table[17, 2] = np.inf
    lazy = stacked([on_disk(tmp_path, table)])
    with pytest.raises(EmbeddingError, match="1 text embeddings with NaN or infinite values: 17"):
        TextEmbeddings(ItemIndex.of({"A": [f"{i:02}" for i in range(30)]}), lazy)


def test_ready_files_are_never_read_whole(tmp_path, monkeypatch):
    """Fault 9's checks, the fingerprint and the normalisation of 200 rows in blocks of 16."""
    most, read = [], MappedFile.__getitem__
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 16 * 4 * 8)
    monkeypatch.setattr(MappedFile, "__getitem__", lambda *a: most.append(len(found := read(*a))) or found)
    tokens = [f"{i:03}" for i in range(200)]
    table = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float16)
    np.save(tmp_path / "A.npy", table)
    (tmp_path / "A.ids").write_text("\n".join(tokens))
    texts = ItemTexts(ItemIndex.of({"A": tokens}), ("text",) * 200)
    made = embed(texts, TextSettings(path={"A": str(tmp_path / "A.npy")}, normalize="standardize"), "unused")
    assert len(made.fingerprint) == 64
    assert max(most) == 16 and sum(most) >= 200
    assert os.path.getsize(tmp_path / "A.npy") < 200 * 8 * 4  # still float16


def test_pages_are_given_back(tmp_path, monkeypatch):
    file, _ = on_disk(tmp_path, np.zeros((1000, 64), np.float32))
    given = []
    monkeypatch.setattr(
        MappedFile, "_give_back", lambda self: given.append(self._touched) or setattr(self, "_touched", 0)
    )
    file[0:1000]
    assert given == [], "a small file may stay"
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 100 * 64 * 4)
    for start in range(0, 1000, 30):
        file[start : start + 30]
    assert len(given) == 8 and max(given) <= 130 * 64 * 4
    given.clear()
    file[0:1000]  # one read of everything keeps no more than many
    assert len(given) == 10 and max(given) <= 200 * 64 * 4


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", ">f4", "f2", "f8"])
def test_rows_of_a_large_file_are_those_of_a_small_one(tmp_path, monkeypatch, order, dtype):
    table = np.arange(5000).reshape(500, 10).astype(dtype, order=order)
    file, _ = on_disk(tmp_path, table)
    wanted = slice(0, 500), slice(3, 70), slice(490, 600), np.array([499, 0, 250, 0]), np.array([], np.int64)
    small = [file[rows] for rows in wanted]
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 1)
    for rows, truth in zip(wanted, small, strict=True):
        assert np.array_equal(file[rows], truth) and np.array_equal(truth, table[rows].astype(np.float32))
        assert file[rows].dtype == np.float32


def test_single_rows_of_a_large_file_leave_no_pages(tmp_path, monkeypatch):
    """``RssFile``: the pages of files that are mapped into this process."""
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 1 << 20)
    file, _ = on_disk(tmp_path, np.ones((4000, 4096), np.float16))  # 32 MiB
    before = mapped_bytes()
    rows = np.random.default_rng(0).permutation(4000)[:1000]
    assert (file[rows] == 1).all()
    assert mapped_bytes() - before < 1 << 23


def mapped_bytes():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc here")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("RssFile"))


def test_a_file_that_became_shorter_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 1)
    file, _ = on_disk(tmp_path, np.ones((500, 10)))
    os.truncate(tmp_path / "v.npy", 1000)
    with pytest.raises(EmbeddingError, match="v.npy.*changed"):
        file[np.array([3, 499])]


def test_a_file_that_changes_under_a_run_is_refused(tmp_path):
    lazy = stacked([on_disk(tmp_path, np.ones((3, 2), np.float32))])
    made = TextEmbeddings(ItemIndex.of({"A": "xyz"}), lazy.map(lambda rows: rows * 2))
    made.refuse_change()
    np.save(tmp_path / "v.npy", np.ones((3, 3), np.float32))
    with pytest.raises(EmbeddingError, match="v.npy.*changed"):
        made.refuse_change()


def test_lazy_vectors_of_an_array_read_only_what_is_asked_for():
    asked = []

    class Counting:
        shape = (10, 2)

        def __len__(self):
            return 10

        def __getitem__(self, rows):
            asked.append(rows)
            return np.zeros((rows.stop - rows.start, 2), np.float32)

    lazy = mapped.lazily(Counting(), lambda rows: rows + 1)
    assert isinstance(lazy, LazyVectors) and not asked
    assert lazy[2:5].tolist() == [[1, 1]] * 3 and asked == [slice(2, 5)]
