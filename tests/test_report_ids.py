"""What a report says of semantic IDs, against brute force and planted structure."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from test_report import write_data, write_run

from recbole_gmc import cli
from recbole_gmc.embed import TextEmbeddings
from recbole_gmc.errors import CheckpointError
from recbole_gmc.files import write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.report import command, id_figures, projection
from recbole_gmc.report.codes import Codes, codes_of, embeddings_of, residuals_of
from recbole_gmc.report.runs import find_runs
from recbole_gmc.report.similarity import by_chance, nearest, similarities
from recbole_gmc.tokenizer import index_file, residuals
from recbole_gmc.tokenizer.learned import Learned

CODES = {"a": [0, 3], "b": [0, 1], "c": [9, 1]}  # 9 is past codebook_size 4, as where each domain has its own
VECTORS = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)


def write_ids(run, vectors=VECTORS):
    """Gives a run of ``write_run`` IDs, a tokenizer's history, residuals, and ready embeddings beside it."""
    rows = np.array(list(CODES.values()))
    index_file.write(run / "semantic_ids" / "D.index.json", list(CODES), rows)
    draw = np.random.default_rng(0)
    residuals.write(run / residuals.NAME, {"D": draw.standard_normal((2, 12, 4)).astype(np.float32)})
    np.save(run.parent / "D.npy", vectors)
    (run.parent / "D.ids").write_text("".join(f"{token}\n" for token in CODES))
    result = json.loads((run / "result.json").read_text())
    path = {"D": str(run.parent / "D.npy")}
    result["settings"] |= {"text_embedding_path": path, "text_normalize": "none"}
    result["hashes"]["embeddings"] = TextEmbeddings(ItemIndex.of({"D": CODES}), vectors).fingerprint
    looks = [
        {"epoch": e, "loss": 2.0 / e, "collision_rate": 0.1, "codes_used": [2, 2], "perplexity": [1.9, 1.9]}
        for e in (1, 2)
    ]
    result["tokenizer"] = {"method": "rqvae", "codebook_size": 4, "domain_purity": [1.0, 1.0], "history": looks}
    write_json(run / "result.json", result)
    return run


@pytest.fixture
def run(tmp_path):
    return write_ids(write_run(tmp_path / "run", data_path=write_data(tmp_path / "data")))


def one(folder):
    return find_runs([folder])[0]


def test_the_share_of_equal_codes_is_that_of_a_plain_loop():
    draw = np.random.default_rng(4)
    tokens = {"A": [f"{i:02}" for i in range(30)], "B": [f"{i:02}" for i in range(8)], "C": ["x"]}
    items = ItemIndex.of(tokens)
    vectors = draw.standard_normal((len(items), 5)).astype(np.float32) * draw.uniform(0.1, 9, (len(items), 1))
    codes = Codes(items, draw.integers(3, size=(len(items), 4)))
    found = similarities(codes, TextEmbeddings(items, vectors.astype(np.float32)), seed=0)
    assert set(found) == {"A", "B"} and found["A"].ks == (1, 2, 5, 10, 20) and found["B"].ks == (1, 2, 5)
    for domain, part in found.items():
        rows = range(items.rows(domain).start, items.rows(domain).stop)
        for k, share in zip(part.ks, part.shares, strict=True):
            shares = []
            for i in rows:
                cosine = {j: vectors[i] @ vectors[j] / np.linalg.norm(vectors[j]) for j in rows if j != i}
                near = sorted(cosine, key=lambda j: -cosine[j])[:k]
                shares += [np.mean(codes.codes[i] == codes.codes[j]) for j in near]
            assert share == pytest.approx(np.mean(shares))
        pairs = [np.mean(codes.codes[i] == codes.codes[j]) for i in rows for j in rows if i != j]
        assert part.chance == pytest.approx(np.mean(pairs)) == pytest.approx(by_chance(codes.of_domain(domain)))
        assert part.asked == len(rows)


def test_an_item_is_no_neighbour_of_itself_though_others_are_equal():
    vectors = np.ones((6, 3), np.float32)
    found = nearest(vectors, np.arange(6), 2)
    assert found.shape == (6, 2) and all(i not in row and len(set(row)) == 2 for i, row in enumerate(found.tolist()))


def test_residuals_are_what_the_levels_before_leave_over():
    draw = np.random.default_rng(1)
    items = ItemIndex.of({"A": map(str, range(residuals.MOST + 50)), "B": map(str, range(7))})
    latents, codebooks = draw.standard_normal((len(items), 3)), draw.standard_normal((2, 4, 3)).astype(np.float32)
    codes = draw.integers(4, size=(len(items), 2)).astype(np.int32)
    found = residuals.sample(items, Learned(codes, latents, codebooks, None), seed=3)
    assert found["A"].shape == (2, residuals.MOST, 3) and found["B"].shape == (2, 7, 3)
    mine = latents[items.rows("B")]
    np.testing.assert_allclose(found["B"][0], mine, rtol=1e-6)
    np.testing.assert_allclose(found["B"][1], mine - codebooks[0][codes[items.rows("B"), 0]], rtol=1e-5, atol=1e-6)
    known = {tuple(row) for row in latents[items.rows("A")].astype(np.float32)}
    rows = [tuple(row) for row in found["A"][0]]
    assert set(rows) <= known and len(set(rows)) == residuals.MOST


def test_codes_are_found_again_whatever_the_codebook_of_the_settings(run, tmp_path):
    found = codes_of(one(run))
    assert found.codes.tolist() == list(CODES.values())
    assert found.most_frequent(0, 5) == ([0, 9], {"D": [2, 1]}) and found.most_frequent(1, 1) == ([1], {"D": [2]})
    assert codes_of(one(write_run(tmp_path / "plain"))) is None


def test_purity_is_the_largest_share_of_a_code():
    items = ItemIndex.of({"A": "abc", "B": "xy"})
    found = Codes(items, np.array([[0, 1], [0, 1], [1, 1], [0, 1], [2, 1]]))
    assert found.purity == pytest.approx([(2 / 3 + 1 + 1) / 3, 3 / 5])


def test_embeddings_are_taken_only_if_they_are_those_of_the_run(run, caplog):
    items = codes_of(one(run)).items
    np.testing.assert_array_equal(embeddings_of(one(run), items).vectors[:], VECTORS)
    np.save(run.parent / "D.npy", VECTORS + 1)
    assert embeddings_of(one(run), items) is None and "not those that the run read" in caplog.text
    (run.parent / "D.npy").unlink()
    assert embeddings_of(one(run), items) is None and "no such file" in caplog.text


def test_embeddings_are_found_in_the_cache_of_the_run(run, tmp_path, caplog):
    result = json.loads((run / "result.json").read_text())
    result["settings"] |= {"text_embedding_path": None, "cache_dir": str(tmp_path / "cache")}
    write_json(run / "result.json", result)
    items = codes_of(one(run)).items
    assert embeddings_of(one(run), items) is None and f"not in {tmp_path / 'cache'} any more" in caplog.text
    for name, vectors in (("aaaa", VECTORS + 1), ("bbbb", VECTORS), ("cccc", VECTORS[:2])):
        folder = tmp_path / "cache" / "embeddings" / name
        folder.mkdir(parents=True)
        np.save(folder / "vectors.npy", vectors)
        write_json(folder / "about.json", {"items": len(vectors)})
    np.testing.assert_array_equal(embeddings_of(one(run), items).vectors[:], VECTORS)


def test_a_plane_keeps_near_items_near():
    draw = np.random.default_rng(2)
    near = draw.standard_normal((1, 40, 6)).astype(np.float32)
    parts = projection.sampled({"A": near, "B": near[:, :25] + 30}, 60, seed=1)
    assert {domain: part.shape[1] for domain, part in parts.items()} == {"A": 30, "B": 25}
    plane = projection.project(parts, 0, seed=1)
    points = np.concatenate(list(plane.values()))
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(55) * 1e9
    assert all((i < 30) == (j < 30) for i, j in enumerate(apart.argmin(axis=1)))
    again = projection.project(parts, 0, seed=1)
    assert all(np.array_equal(plane[domain], again[domain]) for domain in plane)
    assert projection.project({"A": near[:, :4]}, 0, seed=1) is None
    assert projection.project({"A": np.zeros((1, 30, 6), np.float32)}, 0, seed=1) is None


def test_the_page_has_the_figures_and_their_numbers(run, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert cli.main(["report", str(run), "--tsne_items=12"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    names = ("codes-1", "codes-2", "residuals-1", "residuals-2", "similarity-1", "tokenizer-1", "code-use-1")
    assert all(f'id="figure-{name}"' in page for name in names)
    assert "t-SNE of 12 of D, drawn with seed 1" in page and "domain purity" in page
    shares = similarities(codes_of(one(run)), embeddings_of(one(run), codes_of(one(run)).items), 1)["D"].shares
    assert all(f'data-value="{share!r}"' in page for share in shares)
    assert cli.main(["report", str(run), "--tsne_items=0"]) == 0
    assert 'id="figure-residuals-1"' not in (run / "report.html").read_text(encoding="utf-8")
    (run / residuals.NAME).unlink()
    assert cli.main(["report", str(run)]) == 0 and "no t-SNE" in caplog.text and "run it again" in caplog.text


def test_a_tokenizer_a_domain_has_a_curve_a_domain(run):
    result = json.loads((run / "result.json").read_text())
    looks = result["tokenizer"].pop("history")
    old = [{key: value for key, value in look.items() if key != "perplexity"} for look in looks]
    result["tokenizer"]["of_domain"] = {"A": {"history": looks}, "B": {"history": old}}
    write_json(run / "result.json", result)
    assert set(id_figures.learning([one(run)])) == {"tokenizer-1", "code-use-1", "tokenizer-2"}


def test_damaged_residuals_are_refused_with_their_place(run):
    (run / residuals.NAME).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="residuals.safetensors"):
        residuals_of(one(run))
    with pytest.raises(CheckpointError):
        command.write([one(run)], run, pictures=False)
    (run / residuals.NAME).unlink()
    assert residuals_of(one(run)) == {}
