"""Several IDs an item: earlier states of the RQ-VAE, kept with the final IDs, used in training and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer import quality, tokenize
from recbole_gmc.tokenizer.apart import tokenize_apart
from recbole_gmc.tokenizer.fit import fit_rqvae
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

SETTINGS = TokenizerSettings(
    levels=3,
    codebook_size=8,
    dim=4,
    hidden_sizes=(16,),
    epochs=8,
    warmup_epochs=2,
    eval_step=1,
    rank=None,
    gemm="torch",
)
ITEMS = ItemIndex.of({"A": [f"a{i:02}" for i in range(60)], "B": [f"b{i:02}" for i in range(40)]})
VECTORS = np.random.default_rng(1).standard_normal((100, 12)).astype(np.float32)


def made(versions: int, how=tokenize, cache=None):
    settings = dataclasses.replace(SETTINGS, versions=versions)
    return how(TextEmbeddings(ITEMS, VECTORS), settings, seed=3, cache_dir=cache, progress=False)


def test_the_final_ids_are_the_same_and_the_earlier_ones_are_of_earlier_looks():
    one, four = made(1).ids, made(4).ids
    assert np.array_equal(one.codes, four.codes) and one.earlier is None and one.fingerprint != four.fingerprint
    learned = fit_rqvae(ITEMS, VECTORS, dataclasses.replace(SETTINGS, versions=4), seed=3, progress=False)
    scores = [entry["reconstruction"] + entry["collision_rate"] for entry in learned.history]
    best = 0
    for number, score in enumerate(scores):
        best = number if score < scores[best] - 1e-4 else best
    assert np.array_equal(four.earlier, learned.earlier) and len(learned.earlier) == min(best, 3) > 1
    first = best - len(learned.earlier)
    for number, codes in enumerate(learned.earlier, first):
        assert scores[number] == min(scores[: number + 1])  # so a training that ends there gives them
        end = number + 1
        seen = fit_rqvae(ITEMS, VECTORS, SETTINGS, seed=3, progress=False, enough=lambda e, n=end: e["epoch"] == n)
        assert np.array_equal(codes, seen.codes)
    assert not np.array_equal(learned.earlier[0], learned.codes)


def test_they_are_kept_by_the_cache_and_by_files(tmp_path):
    first, again = (made(3, cache=tmp_path / "cache").ids for _ in range(2))
    assert np.array_equal(first.earlier, again.earlier) and first.fingerprint == again.fingerprint
    first.save(tmp_path / "ids")
    loaded = SemanticIds.load(tmp_path / "ids")
    assert np.array_equal(loaded.earlier, first.earlier) and loaded.fingerprint == first.fingerprint
    np.save(tmp_path / "ids/earlier.npy", first.earlier[::-1])
    with pytest.raises(ValueError, match="changed after they were saved"):
        SemanticIds.load(tmp_path / "ids")


def test_a_tokenizer_a_domain_has_them_too():
    ids = made(3, tokenize_apart).ids
    assert ids.earlier.shape == (2, 100, 3) and ids.codebook_size == 16
    assert ids.earlier[:, :60].max() < 8 <= ids.earlier[:, 60:].min()


def test_the_last_versions_by_hand():
    items = ItemIndex.of({"A": "xy"})
    codes, earlier = np.array([[0, 1], [1, 0]]), np.array([[[0, 0], [0, 0]], [[0, 1], [1, 1]]])
    ids = SemanticIds(items, codes, 2, earlier=earlier)
    assert [version.tolist() for version in ids.last(2)] == [earlier[1].tolist(), codes.tolist()]
    assert [version.tolist() for version in ids.last(4)][:2] == [earlier[0].tolist()] * 2
    assert quality.versions(codes, earlier) == {"count": 3, "first_code_changed": 0.25, "any_code_changed": 0.75}
    with pytest.raises(TokenizerError, match="do not fit"):
        SemanticIds(items, codes, 2, earlier=earlier[:, :, :1])
    with pytest.raises(TokenizerError, match="outside 0..1"):
        SemanticIds(items, codes, 2, earlier=earlier + 1)
