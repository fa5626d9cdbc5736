"""LSA, ready files, normalisation and the cache around them."""

import logging
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from recbole_gmc.data.text import ItemTexts
from recbole_gmc.embed import TextEmbeddings, embed, lsa, normalized
from recbole_gmc.errors import EmbeddingError, GMCError, SettingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TextSettings

COLOURS = "red blue green white black".split()
THINGS = "pen paper desk lamp chair".split()


@pytest.fixture
def texts():
    items = ItemIndex.of({"A": [f"a{i:02}" for i in range(25)], "B": [f"b{i:02}" for i in range(25)]})
    names = [f"{colour} {thing} no {i}" for i, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS)]
    return ItemTexts(items, tuple(names + names))


def cosine(vectors, a, b):
    return vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])


# The value object


@pytest.mark.parametrize(
    "vectors",
    [np.zeros((3, 2)), np.zeros((2, 2), np.float32), np.zeros(3, np.float32), np.zeros((3, 0), np.float32), [[1.0]]],
)
def test_embeddings_of_wrong_shape_or_type_are_refused(vectors):
    with pytest.raises(EmbeddingError):
        TextEmbeddings(ItemIndex.of({"A": "xyz"}), vectors)


def test_embeddings_know_their_domains_and_content():
    items = ItemIndex.of({"A": ["x", "y"], "B": ["x"]})
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    one = TextEmbeddings(items, vectors)
    assert one.dim == 2 and one.for_domain("B").tolist() == [[4.0, 5.0]]
    assert one.fingerprint == TextEmbeddings(items, vectors.copy()).fingerprint
    assert one.fingerprint != TextEmbeddings(items, vectors + 1).fingerprint
    vectors[1, 1] = np.nan
    with pytest.raises(EmbeddingError, match="A/y"):
        TextEmbeddings(items, vectors)


# LSA


def test_lsa_equals_the_singular_value_decomposition_by_hand(texts):
    """Scores of LSA are U S of the TF-IDF matrix: inner products at full rank are those of TF-IDF itself."""
    vectors = lsa.encode(texts.texts, TextSettings(lsa_dim=49))
    words = [text.split() for text in texts.texts]
    grams = [row + [" ".join(pair) for pair in zip(row, row[1:], strict=False)] for row in words]
    names = sorted({gram for row in grams for gram in row})
    counts = np.array([[row.count(name) for name in names] for row in grams], float)
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * (
        np.log((1 + len(grams)) / (1 + (counts > 0).sum(0))) + 1
    )
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, weights @ weights.T, atol=1e-4)


def test_lsa_of_equal_texts_is_equal_and_of_like_texts_is_near(texts, tmp_path):
    vectors = embed(texts, TextSettings(lsa_dim=16), tmp_path).vectors
    assert vectors.shape == (50, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:25], vectors[25:], atol=1e-6)
    red_pen, red_paper, white_paper = 0, 1, 16
    assert cosine(vectors, red_pen, red_paper) > cosine(vectors, red_pen, white_paper) + 0.1


@pytest.mark.parametrize(
    "names",
    [("x",), ("x", "x"), ("...", "---"), ("", "?"), ("lamp", "lamp"), ("lamp", "red pen", "!!"), ("a b", "c d", "e f")],
)
def test_lsa_of_tiny_and_wordless_catalogues_has_no_zero_row(names):
    vectors = lsa.encode(names, TextSettings())
    assert np.isfinite(vectors).all() and np.linalg.norm(vectors, axis=1).min() > 1e-3
    assert vectors.shape[0] == len(names)


def test_wordless_text_depends_on_itself_alone(texts):
    names = list(texts.texts) + ["★★★", "☆", "★★★"]
    settings = TextSettings(lsa_dim=8)
    one = lsa.encode(names, settings)
    assert (one[50] == one[52]).all() and not np.allclose(one[50], one[51])
    turned = lsa.encode(["★★★", "☆", "★★★"] + list(texts.texts), settings)
    np.testing.assert_allclose(turned[0], one[50], rtol=1e-3)


def test_lsa_does_not_depend_on_the_number_of_threads():
    random = np.random.default_rng(0)
    names = [" ".join(map(str, random.integers(0, 300, 8))) for _ in range(400)]
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(lsa.encode(names, TextSettings(lsa_dim=32)))
    assert (found[0] == found[1]).all()


# Normalisation


def test_normalisation():
    vectors = np.array([[3, 4, 7], [0, 2, 7]], np.float32)
    assert normalized(vectors, "none") is vectors
    np.testing.assert_allclose(normalized(vectors[:, :2], "l2"), [[0.6, 0.8], [0, 1]], atol=1e-7)
    np.testing.assert_allclose(normalized(vectors, "standardize"), [[1, 1, 0], [-1, -1, 0]], atol=1e-7)


# The cache


def test_second_run_says_that_it_reused(texts, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    first = embed(texts, TextSettings(), tmp_path)
    assert "reused" not in caplog.text
    monkeypatch.setattr(lsa, "encode", None)
    again = embed(texts, TextSettings(normalize="l2"), tmp_path)  # normalisation comes after the cache
    assert "reused 50 x 49 of lsa" in caplog.text
    np.testing.assert_allclose(again.vectors, normalized(first.vectors, "l2"))


def test_runs_side_by_side_embed_the_same_texts_once(texts, tmp_path, monkeypatch):
    calls, encode = [], lsa.encode

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.5)
        return encode(*arguments)

    monkeypatch.setattr(lsa, "encode", slow)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: embed(texts, TextSettings(lsa_dim=8), tmp_path), range(3)))
    assert calls == [1]
    assert len({one.fingerprint for one in found}) == 1


def test_cached_vectors_cannot_be_written_to(texts, tmp_path):
    first = embed(texts, TextSettings(), tmp_path)
    fingerprint = first.fingerprint
    with pytest.raises(TypeError):
        first.vectors[:] = 0
    first.vectors[:5][:] = 0  # a copy
    assert embed(texts, TextSettings(), tmp_path).fingerprint == fingerprint == first.fingerprint


def test_other_inputs_make_another_key(texts, tmp_path, monkeypatch):
    """Faults 10: nothing stale is ever taken."""

    def made():
        return len(list(tmp_path.glob("embeddings/[0-9a-f]*")))

    embed(texts, TextSettings(), tmp_path)
    embed(texts, TextSettings(batch_tokens=64, encoder="lsa"), tmp_path)
    assert made() == 1
    embed(texts, TextSettings(lsa_dim=8), tmp_path)
    assert made() == 2
    embed(ItemTexts(texts.items, ("changed",) + texts.texts[1:]), TextSettings(), tmp_path)
    assert made() == 3
    renamed = ItemIndex.of({"C": texts.items.tokens["A"], "B": texts.items.tokens["B"]})
    embed(ItemTexts(renamed, texts.texts), TextSettings(), tmp_path)
    assert made() == 4
    monkeypatch.setattr("sklearn.__version__", "0.0")
    embed(texts, TextSettings(), tmp_path)
    assert made() == 5


@pytest.mark.parametrize("file", ["vectors.npy", "about.json", "manifest.json"])
def test_bit_flipped_cache_is_set_aside_and_recomputed(texts, tmp_path, caplog, file):
    """Faults 10."""
    fingerprint = embed(texts, TextSettings(), tmp_path).fingerprint
    path = next(tmp_path.glob(f"embeddings/*/{file}"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = embed(texts, TextSettings(), tmp_path)
    assert again.fingerprint == fingerprint and "damaged" in caplog.text
    assert len(list(tmp_path.glob("embeddings/.damaged-*"))) == 1
    assert len(list(tmp_path.glob("embeddings/[0-9a-f]*"))) == 1


@pytest.mark.parametrize("fault", ["rows", "nan", "zero"])
def test_what_an_encoder_gives_is_checked_before_it_is_kept(texts, tmp_path, monkeypatch, fault):
    """Faults 9."""
    vectors = np.ones((50, 4), np.float32)
    if fault == "rows":
        vectors = vectors[:-1]
    else:
        vectors[:12] = np.nan if fault == "nan" else 0
    monkeypatch.setattr(lsa, "encode", lambda *_: vectors)
    with pytest.raises(EmbeddingError) as caught:
        embed(texts, TextSettings(), tmp_path)
    if fault != "rows":
        assert "12 text embeddings" in str(caught.value) and "A/a09 and 2 more" in str(caught.value)
    assert not list(tmp_path.glob("embeddings/*"))


# Ready files


@pytest.fixture
def ready(tmp_path):
    """Two domains with files in another order than the catalogue's, one item more than it has."""
    tokens = {"A": [f"a{i:02}" for i in range(15)], "B": ["x", "y"]}
    items = ItemIndex.of(tokens, {domain: frozenset([*names, "extra"]) for domain, names in tokens.items()})
    random = np.random.default_rng(0)
    paths = {}
    for domain in items.domains:
        tokens = [*reversed(items.tokens[domain]), "extra"]
        write(tmp_path / f"{domain}.some.npy", random.normal(size=(len(tokens), 3)).astype(np.float32), tokens)
        paths[domain] = str(tmp_path / f"{domain}.some.npy")
    return ItemTexts(items, ("text",) * 17), paths


def write(path, table, tokens=None, pickled=False):
    np.save(path, table, allow_pickle=pickled)
    if tokens is not None:
        path.with_suffix(".ids").write_text("".join(f"{token}\n" for token in tokens))


def read(ready, **paths):
    texts, good = ready
    return embed(texts, TextSettings(path={**good, **{k: str(v) for k, v in paths.items()}}), "unused-cache")


def test_ready_files_are_aligned_by_token(ready, caplog):
    caplog.set_level(logging.INFO)
    found = read(ready)
    table = np.load(ready[1]["A"])
    assert (found.for_domain("A") == table[:15][::-1]).all()
    assert (found.for_domain("B")[0] == np.load(ready[1]["B"])[1]).all()
    assert "1 of 16 rows are not in the catalogue" in caplog.text
    assert not os.path.exists("unused-cache")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_ready_files_of_other_floats_become_float32(ready, tmp_path, dtype):
    table = np.load(ready[1]["B"])
    write(tmp_path / "h.npy", table.astype(dtype), ["y", "x", "extra"])
    found = read(ready, B=tmp_path / "h.npy")
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.for_domain("B"), table[[1, 0]], rtol=1e-3)


def test_ready_ids_may_have_a_mark_and_windows_line_ends(ready, tmp_path):
    write(tmp_path / "w.npy", np.load(ready[1]["B"]))
    (tmp_path / "w.ids").write_bytes(b"\xef\xbb\xbfy\r\nx\r\nextra")
    assert (read(ready, B=tmp_path / "w.npy").for_domain("B") == read(ready).for_domain("B")).all()


FAULTS = {
    "object": (np.array([[{}, 1], [2, 3]], object), "xy", "not a readable"),
    "integers": (np.ones((2, 3), int), "xy", "int64"),
    "one axis": (np.ones(2), "xy", "float64 [2]"),
    "fewer rows": (np.ones((1, 3)), "xy", "1 rows, but f.ids names 2"),
    "more rows": (np.ones((3, 3)), "xy", "3 rows, but f.ids names 2"),
    "nan": (np.array([[1, 2, 3], [1, np.nan, 3]]), "xy", "NaN or infinite values: B/y"),
    "too large": (np.array([[1, 2, 3], [1, 1e99, 3]]), "xy", "NaN or infinite values: B/y"),
    "zero": (np.array([[0, 0, 0], [1, 2, 3.0]]), "xy", "all zero: B/x"),
    "item missing": (np.ones((2, 3)), "xz", "1 items of B have no embedding: y"),
    "item unknown": (np.ones((4, 3)), "xyzw", "2 items that no file of B names: z, w"),
    "item twice": (np.ones((3, 3)), "xyx", "f.ids:3: item 'x' is already on line 1"),
    "empty line": (np.ones((2, 3)), ["x", ""], "f.ids:2: an empty line"),
    "other width": (np.ones((2, 4)), "xy", "A 3, B 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_ready_files_are_refused(ready, tmp_path, fault):
    """Faults 9."""
    table, tokens, message = FAULTS[fault]
    write(tmp_path / "f.npy", table, tokens, pickled=table.dtype == object)
    with pytest.raises(EmbeddingError) as caught:
        read(ready, B=tmp_path / "f.npy")
    assert message in str(caught.value)


def test_first_ten_missing_tokens_are_named(ready, tmp_path):
    write(tmp_path / "f.npy", np.ones((1, 3)), ["other"])
    with pytest.raises(EmbeddingError, match="15 items of A .* a00, .*a09 and 5 more"):
        read(ready, A=tmp_path / "f.npy")


def test_malicious_pickles_are_never_opened(ready, tmp_path):
    """Faults 22: a raw pickle, a pickled object array and a pickle in an archive, each named .npy."""
    marker = tmp_path / "marker"

    class Exploit:
        def __reduce__(self):
            return open, (str(marker), "w")

    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Exploit()))
    np.save(tmp_path / "array.npy", np.array([[Exploit()], [Exploit()]], object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", table=np.array([[Exploit()], [Exploit()]], object))
    os.rename(tmp_path / "archive.npz", tmp_path / "archive.npy")
    for name in ("raw", "array", "archive"):
        (tmp_path / f"{name}.ids").write_text("x\ny\n")
        with pytest.raises(EmbeddingError):
            read(ready, B=tmp_path / f"{name}.npy")
    assert not marker.exists()


def test_missing_files_and_domains_name_what_was_tried(ready, tmp_path):
    with pytest.raises(EmbeddingError, match="none.npy"):
        read(ready, B=tmp_path / "none.npy")
    write(tmp_path / "lonely.npy", np.ones((2, 3)))
    with pytest.raises(EmbeddingError, match="lonely.ids"):
        read(ready, B=tmp_path / "lonely.npy")
    with pytest.raises(SettingError, match="is no .npy file"):
        read(ready, B=tmp_path / "f.pt")
    with pytest.raises(SettingError, match="no embedding file for B"):
        embed(ready[0], TextSettings(path={"A": ready[1]["A"]}), tmp_path)
    (tmp_path / "lonely.ids").write_bytes(b"x\n\xff\n")
    with pytest.raises(GMCError, match="not UTF-8"):
        read(ready, B=tmp_path / "lonely.npy")
