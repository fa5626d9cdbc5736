"""The tokenizer stage as a whole: learning, quality figures, cache, import, faults 11 and 12, one seed one result."""

from __future__ import annotations

import builtins
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from recbole_gmc import precision
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import DependencyError, TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer import quality, tokenize
from recbole_gmc.tokenizer.kmeans import fit_codebook
from recbole_gmc.tokenizer.rkmeans import fit_rkmeans

SMALL = TokenizerSettings(
    levels=3, codebook_size=16, dim=8, rank=4, hidden_sizes=(32, 16), batch_size=64, warmup_epochs=5, epochs=20,
    eval_step=5,
)  # fmt: skip


def embeddings(counts=(150, 100), width=24, seed=0) -> TextEmbeddings:
    """Clustered vectors; the domains share clusters but lie apart along one axis."""
    rng = np.random.default_rng(seed)
    items = ItemIndex.of({f"D{d}": [f"{i:04d}" for i in range(n)] for d, n in enumerate(counts)})
    centres = rng.normal(size=(12, width))
    vectors = centres[rng.integers(12, size=len(items))] + 0.3 * rng.normal(size=(len(items), width))
    vectors[:, 0] += 2.0 * items.domain_of_row
    return TextEmbeddings(items, vectors.astype(np.float32))


def learn(data, settings=SMALL, seed=1, cache_dir=None):
    return tokenize(data, settings, seed=seed, cache_dir=cache_dir, progress=False)


@pytest.fixture(scope="module")
def learned():
    return learn(embeddings())


def test_rqvae_ids_are_unique_and_figures_are_plain(learned):
    figures = json.loads(json.dumps(learned.quality, allow_nan=False))
    assert learned.ids.codes.shape == (250, 3)
    assert figures["unique_after"] and figures["method"] == "rqvae" and figures["epochs"] > 0
    assert len(figures["codes_used"]) == len(figures["perplexity"]) == len(figures["domain_purity"]) == 3
    assert min(figures["codes_used"]) >= 15
    assert {"epoch", "loss", "reconstruction", "collision_rate"} <= figures["history"][0].keys()
    by_domain = figures["collision_rate_by_domain"]
    assert figures["collision_rate"] == pytest.approx((150 * by_domain["D0"] + 100 * by_domain["D1"]) / 250)
    assert figures["moved_items"] == round(250 * figures["collision_rate"])


def test_trained_network_reconstructs_better_than_residual_kmeans():
    rng = np.random.default_rng(3)
    angles = rng.uniform(0, 2 * np.pi, size=(200, 2))  # a curved surface: no few axes hold it
    curved = np.concatenate([np.cos(k * angles) for k in range(1, 7)] + [np.sin(k * angles) for k in range(1, 7)], 1)
    data = TextEmbeddings(ItemIndex.of({"D": [f"{i:04d}" for i in range(200)]}), curved.astype(np.float32))
    settings = replace(SMALL, epochs=100, learning_rate=3e-3, hidden_sizes=(64, 32))
    network = learn(data, settings).quality["reconstruction_over_variance"]
    bar = learn(data, replace(settings, kind="rkmeans")).quality["reconstruction_over_variance"]
    assert network < bar


def test_rkmeans_reconstruction_is_the_error_of_decoding_its_codes():
    data = embeddings()
    settings = replace(SMALL, kind="rkmeans")
    learned = fit_rkmeans(data.vectors, settings, 5)
    centred = data.vectors - data.vectors.mean(axis=0)
    axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)[2][: settings.dim].T
    decoded = sum(learned.codebooks[level][learned.codes[:, level]] for level in range(3))
    signs = np.sign((learned.latents[:] * (centred @ axes)).sum(axis=0))
    error = ((centred - decoded @ (axes * signs).T) ** 2).sum() / (centred**2).sum()
    assert learned.reconstruction == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_same_seed_same_ids_and_the_callers_random_state_stays(kind):
    data, settings = embeddings(), replace(SMALL, kind=kind, epochs=10)
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = learn(data, settings)
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    torch.manual_seed(8)
    again = learn(data, settings)
    assert again.ids.fingerprint == first.ids.fingerprint
    assert again.quality["history"] == first.quality["history"]
    assert learn(data, settings, seed=2).ids.fingerprint != first.ids.fingerprint


def test_domain_loss_separates_the_domains_at_the_first_level():
    data = embeddings()
    settings = replace(SMALL, epochs=40, learning_rate=3e-3)
    without, with_loss = (
        learn(data, replace(settings, domain_weight=weight)).quality["domain_purity"] for weight in (0.0, 1.0)
    )
    assert with_loss[0] > 0.85 > without[0] + 0.1 and with_loss[0] > with_loss[2]


@pytest.mark.parametrize("warmup, separate", [(40, True), (0, False)])
def test_warm_up_knows_the_domain_loss_already(warmup, separate):
    # four steps with codes separate nothing yet
    made = learn(embeddings(), replace(SMALL, warmup_epochs=warmup, epochs=1, learning_rate=3e-3))
    assert (made.quality["domain_purity"][0] > 0.85) is separate


@pytest.mark.parametrize(
    "change",
    [
        {"kmeans_init": False}, {"restart_dead": False}, {"warmup_epochs": 0}, {"sinkhorn": True}, {"rank": None},
        {"reduction": "sum"}, {"scale_input": False}, {"schedule": "constant"}, {"clip_grad_norm": None},
        {"stopping_step": 0}, {"levels": 1, "codebook_size": 256},
    ],
    ids=str,
)  # fmt: skip
def test_every_switch_runs(change):
    made = learn(embeddings(), replace(SMALL, epochs=4, eval_step=2, **change))
    assert len(made.ids.codes) == 250


def test_stops_early_and_stopping_step_0_does_not():
    settings = replace(SMALL, epochs=12, warmup_epochs=0, eval_step=1, learning_rate=1e-12, stopping_step=2)
    assert learn(embeddings(), settings).quality["epochs"] < 12
    assert learn(embeddings(), replace(settings, stopping_step=0)).quality["epochs"] == 12


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
@pytest.mark.parametrize("count", [1, 30])
def test_catalogue_smaller_than_the_codebooks(kind, count):
    data = embeddings(counts=(count,))
    settings = TokenizerSettings(kind=kind, hidden_sizes=(32,), epochs=20, warmup_epochs=5)
    made = learn(data, settings)
    assert len(np.unique(made.ids.codes, axis=0)) == count and made.ids.levels == 4
    assert max(made.quality["codes_used"]) <= count


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_equal_embeddings_still_get_unique_ids(kind):
    data = embeddings(counts=(60, 40))
    vectors = data.vectors.copy()
    vectors[:6] = vectors[0]
    vectors[60] = vectors[0]  # another domain: no collision
    made = learn(TextEmbeddings(data.items, vectors), replace(SMALL, kind=kind, epochs=10))
    assert made.quality["equal_embeddings"] == {"D0": 5, "D1": 0}
    assert made.quality["moved_items"] >= 5
    everything = learn(TextEmbeddings(data.items, np.ones_like(vectors)), replace(SMALL, kind=kind, epochs=10))
    assert everything.quality["moved_items"] == 98 and everything.quality["reconstruction_over_variance"] == 0


def test_items_that_no_code_can_tell_apart_are_refused():
    data = embeddings(counts=(80,))
    same = TextEmbeddings(data.items, np.ones_like(data.vectors))
    with pytest.raises(TokenizerError, match="codebook_size to 9 or more"):
        learn(same, replace(SMALL, kind="rkmeans", codebook_size=8))


def test_a_codebook_that_stays_collapsed_stops_with_figures_and_remedies(monkeypatch):
    """Fault 12: far-off codebooks, no k-means start, no restart."""
    data = embeddings()
    from recbole_gmc.tokenizer import rqvae

    start = rqvae.ResidualQuantizer.__init__

    def far_off(self, *args, **kwargs):
        start(self, *args, **kwargs)
        with torch.no_grad():
            self.codebooks[:, 1:] += 100.0

    monkeypatch.setattr(rqvae.ResidualQuantizer, "__init__", far_off)
    off = replace(SMALL, kmeans_init=False, restart_dead=False, epochs=5)
    with pytest.raises(TokenizerError, match=r"collapsed: codes used per level \[1, 1, 1\].*tokenizer_restart_dead"):
        learn(data, off)
    assert min(learn(data, replace(off, restart_dead=True, epochs=20)).quality["codes_used"]) >= 6


def test_without_faiss_one_error_names_both_extras(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"recbole_gmc\[cpu\].*recbole_gmc\[gpu\]"):
        learn(embeddings())


def test_cache_is_reused_and_keyed_by_what_was_read(tmp_path, caplog):
    data, settings = embeddings(), replace(SMALL, kind="rkmeans")
    first = learn(data, settings, cache_dir=tmp_path)
    with caplog.at_level("INFO", logger="recbole_gmc.tokenizer"):
        again = learn(data, settings, cache_dir=tmp_path)
    assert "reused" in caplog.text
    assert again.ids.fingerprint == first.ids.fingerprint and again.quality == first.quality
    assert again.ids.items == data.items
    learn(data, settings, seed=2, cache_dir=tmp_path)
    learn(data, replace(settings, codebook_size=9), cache_dir=tmp_path)
    assert len([path for path in (tmp_path / "semantic_ids").iterdir() if path.is_dir()]) == 3


def test_auto_is_the_precision_that_the_hardware_has(tmp_path, monkeypatch):
    """Other hardware finds no codes of this one's in a shared cache."""
    data, settings, found = embeddings(), replace(SMALL, precision="auto"), {}
    for native, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "native_bf16", lambda device, native=native: native)
        found[name] = learn(data, settings, cache_dir=tmp_path).ids.fingerprint
        assert found[name] == learn(data, replace(SMALL, precision=name)).ids.fingerprint
    assert len([path for path in (tmp_path / "semantic_ids").iterdir() if path.is_dir()]) == 2


def test_import_takes_exported_ids_as_they_are(tmp_path, learned):
    learned.ids.export(tmp_path)
    made = learn(embeddings(), replace(SMALL, ids_path=str(tmp_path)))
    assert made.ids.fingerprint == learned.ids.fingerprint
    assert made.quality["method"] == "import" and made.quality["collision_rate"] == 0
    json.dumps(made.quality, allow_nan=False)


def test_memory_mapped_embeddings_do(tmp_path):
    data = embeddings()
    np.save(tmp_path / "v.npy", data.vectors)
    mapped = TextEmbeddings(data.items, np.load(tmp_path / "v.npy", mmap_mode="r"))
    settings = replace(SMALL, epochs=3)
    assert learn(mapped, settings).ids.fingerprint == learn(data, settings).ids.fingerprint


def test_quality_figures_by_hand():
    items = ItemIndex.of({"A": ["1", "2", "3"], "B": ["1"]})
    codes = np.array([[0, 1], [0, 1], [2, 1], [2, 1]])
    rates = quality.collision_rates(items, codes)
    assert rates == {"A": pytest.approx(1 / 3), "B": 0.0}
    assert quality.weighted(items, rates) == pytest.approx(1 / 4)
    assert quality.codes_used(codes) == [2, 1]
    assert quality.perplexity(codes) == pytest.approx([2.0, 1.0])
    assert quality.domain_purity(items, codes) == pytest.approx([(1.0 + 0.5) / 2, 3 / 4])


def test_codebook_of_few_points_holds_each_of_them():
    points = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    book = fit_codebook(points, 8, seed=0, scale=1.0)
    assert book.shape == (8, 2)
    assert {tuple(row) for row in book.tolist()} >= {(0.0, 1.0), (2.0, 0.0)}
