"""The tokenizer rows of the speed command: their structure, what they compare, and the catalogues. Never times."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from recbole_gmc.errors import SettingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.precision import resolved
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.speed import command
from recbole_gmc.speed.catalogues import DOMAINS, real_domains, write_clusters
from recbole_gmc.speed.memory import peak_bytes
from recbole_gmc.speed.tokenizer import TINY, Training, settings_of, unique_codes
from recbole_gmc.tokenizer.fit import fit_rqvae

LIGHTER = resolved("auto", torch.device("cpu")) != "fp32"  # where bf16 is multiplied natively, it is measured, too


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """Two domains with embeddings in rows of no order, and a third without any."""
    folder = tmp_path_factory.mktemp("domains")
    rng = np.random.default_rng(0)
    for name, count in (("B", 150), ("A", 90)):
        (folder / name).mkdir()
        tokens = [f"{name}{number}" for number in rng.permutation(count)]
        centres = rng.normal(size=(12, 20))
        vectors = centres[rng.integers(12, size=count)] + 0.3 * rng.normal(size=(count, 20))
        vectors[:, 0] = [float(token[1:]) / 100 for token in tokens]
        np.save(folder / name / f"{name}.enc.npy", vectors.astype(np.float32))
        (folder / name / f"{name}.enc.ids").write_text("\n".join(tokens) + "\n")
    (folder / "C").mkdir()
    return folder


@pytest.fixture(scope="module")
def report(domains, tmp_path_factory):
    output = tmp_path_factory.mktemp("speed")
    command.run(["tokenizer", "--tiny", f"--data_path={domains}", f"--output={output}"])
    return json.loads((output / "speed.json").read_text())["tokenizer"]


def test_every_catalogue_has_its_figures_and_no_collision_after_the_repair(report):
    assert set(report) == {"synthetic_24", "synthetic_48", "real", "memory"}
    assert [report[name]["items"] for name in ("synthetic_24", "synthetic_48", "real")] == [600, 600, 240]
    for name in ("synthetic_24", "synthetic_48", "real"):
        figures = report[name]
        assert figures["collision_rate_after"] == 0
        assert figures["moved_items"] == round(figures["items"] * figures["collision_rate"])
        assert len(figures["codes_used"]) == 3 and max(figures["codes_used"]) <= 16
        assert 0 < figures["reconstruction"] < 1 and 0 < figures["rkmeans_reconstruction"] < 1
        assert figures["below_rkmeans"] == (figures["reconstruction"] < figures["rkmeans_reconstruction"])
        assert figures["ratio"] == figures["reference_seconds"] / figures["seconds"]
        assert figures["half_the_time"] == (figures["ratio"] >= 2)
        assert figures["epoch_items"] == figures["items"]
        assert ("quick" in figures) is LIGHTER
        for quick in [figures["quick"]] if LIGHTER else []:
            assert 0 < quick["seconds"] <= quick["all_seconds"]
            # The state that is kept need not be the one with the least reconstruction error: collisions count, too.
            assert quick["reached"] or quick["reconstruction"] > figures["reconstruction"]
    assert report["memory"]["vector_bytes"] == 600 * 48 * 2
    assert report["memory"]["peak_bytes"] > 2**24


def test_files_set_the_tokenizer_and_a_width_is_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("tokenizer_epochs: 4\ncodebook_size: 20\nepochs: 7\n")
    command.run(["tokenizer", "--tiny", "--width=12", "--config_files=mine.yaml"])
    figures = json.loads((tmp_path / "speed.json").read_text())["tokenizer"]
    assert set(figures) == {"synthetic_12", "memory"}
    assert 16 < max(figures["synthetic_12"]["codes_used"]) <= 20
    _, options, _ = command.parse(["tokenizer", "--config_files=mine.yaml"])
    assert ("quick" in figures["synthetic_12"]) is LIGHTER
    assert settings_of(options) == replace(TokenizerSettings(), epochs=4, codebook_size=20)
    assert settings_of(replace(options, tiny=True)) == replace(TINY, epochs=4, codebook_size=20)


def test_in_the_fastest_precision_no_quicker_training_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("tokenizer_precision: auto\n")
    command.run(["tokenizer", "--tiny", "--width=16", "--config_files=mine.yaml"])
    assert "quick" not in json.loads((tmp_path / "speed.json").read_text())["tokenizer"]["synthetic_16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer_epoch: 4", "nearest: 'tokenizer_epochs'"),
        ("tokenizer_beta: x", "not of type"),
        ("tokenizer: rkmeans", "is no network that is trained"),
    ],
)
def test_a_bad_file_is_refused_before_any_work(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingError, match=message):
        command.parse(["tokenizer", f"--config_files={tmp_path / 'mine.yaml'}"])


def test_a_training_is_charged_to_its_first_look_that_is_good_enough():
    training = Training((1.0, 2.0, 3.0, 4.0), (0.5, 0.3, 0.4, 0.3), (0.1, 0.1, 0.1, 0.1), 0.3, None)
    assert [training.seconds_to(share) for share in (0.6, 0.4, 0.3)] == [1.0, 2.0, 2.0]
    assert training.seconds_to(0.1) == 4.0  # never so good: all it took


def test_real_domains_are_read_by_token_whatever_the_order_of_rows(domains):
    catalogue = real_domains(domains)
    assert catalogue.items.domains == ("A", "B") and len(catalogue.items) == 240
    for domain in ("A", "B"):
        vectors = catalogue.vectors[catalogue.items.rows(domain)]
        numbers = [int(token[1:]) / 100 for token in catalogue.items.tokens[domain]]
        np.testing.assert_allclose(vectors[:, 0], numbers, rtol=1e-6)


def test_a_folder_without_embeddings_has_no_real_domains(tmp_path):
    (tmp_path / "A").mkdir()
    np.save(tmp_path / "A" / "A.npy", np.ones((3, 2)))  # no tokens beside it
    assert real_domains(tmp_path) is None


def test_synthetic_clusters_follow_the_seed_and_lie_in_clusters(tmp_path):
    tables = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_clusters(tmp_path / f"{name}.npy", 801, 16, seed)
        tables.append(np.load(tmp_path / f"{name}.npy"))
    assert tables[0].dtype == np.float16 and tables[0].shape == (801, 16)
    assert np.array_equal(tables[0], tables[1]) and not np.array_equal(tables[0], tables[2])
    wide = tables[0].astype(np.float64)
    squares = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    # evenly spread vectors of as many dimensions have no neighbour so near
    assert np.median(squares.min(axis=1)) < 0.15 * np.median(squares)
    assert DOMAINS == 4 and np.isfinite(wide).all()


def test_training_ends_where_the_caller_has_seen_enough():
    rng = np.random.default_rng(0)
    items = ItemIndex.of({"D": [f"{number:03d}" for number in range(200)]})
    vectors = rng.normal(size=(200, 12)).astype(np.float32)
    seen: list[dict] = []

    def enough(look: dict) -> bool:
        seen.append(look)
        return len(seen) == 2

    whole = fit_rqvae(items, vectors, TINY, seed=1, progress=False)
    part = fit_rqvae(items, vectors, TINY, seed=1, progress=False, enough=enough)
    assert part.epochs == 2 * TINY.eval_step < whole.epochs
    assert part.history == seen == whole.history[:2]
    fully = fit_rqvae(items, vectors, TINY, seed=1, progress=False, enough=lambda look: False)
    assert np.array_equal(fully.codes, whole.codes)


def test_codes_of_a_file_are_unique_inside_each_domain(tmp_path):
    write_clusters(tmp_path / "v.npy", 300, 24, 1)
    codes = unique_codes(tmp_path / "v.npy", TINY, 1)
    for part in np.array_split(codes, DOMAINS):
        assert len(np.unique(part, axis=0)) == len(part) == 75


def test_peak_memory_is_that_of_the_work_alone():
    ballast = np.ones(2**30, dtype=np.uint8)  # of this process, which must not count
    assert 200 * 2**20 < peak_bytes(hold, 200 * 2**20) < ballast.nbytes


def hold(count: int) -> int:
    return int(np.ones(count, dtype=np.uint8).sum())
