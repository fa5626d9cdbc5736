"""Collaborative and textual IDs against hand-made graphs and texts, scikit-learn and transformers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from data_help import chain, write_domain
from recbole.config import Config
from recbole_gmc.baselines import id_generator
from recbole_gmc.baselines.clusters import cluster_tree, co_occurrence, spectral_clusters, within_clusters
from recbole_gmc.baselines.idgenrec import IDGenRecSettings, keyword_ids
from recbole_gmc.baselines.keywords import keyword_candidates, keywords, unique_texts
from recbole_gmc.baselines.p5cid import P5CIDSettings, collaborative_ids
from scipy.sparse import csr_matrix
from sklearn.cluster import spectral_clustering
from sklearn.metrics import adjusted_rand_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.text import ItemTexts
from recbole_gmc.errors import SettingError, TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer.assign import number_collisions
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

WORDS = "red blue green pen paper desk lamp chair book toy car doll".split()


def graph_of(*edges: tuple[int, int, float], size: int) -> csr_matrix:
    full = np.zeros((size, size))
    for a, b, weight in edges:
        full[a, b] = full[b, a] = weight
    return csr_matrix(full)


def communities() -> csr_matrix:
    """Items 0-5 occur together, and 6-11; one user took 5 and 6."""
    edges = [(a, b, 3.0) for group in (range(6), range(6, 12)) for a, b in itertools.combinations(group, 2)]
    return graph_of(*edges, (5, 6, 1.0), size=12)


def random_graph(size: int, seed: int) -> csr_matrix:
    draw = np.random.default_rng(seed)
    full = draw.poisson(0.15, (size, size)) + np.eye(size, k=1)  # the diagonal above makes it connected
    group = draw.integers(0, 5, size)
    full += (group[:, None] == group) * draw.poisson(1.0, (size, size))
    full = np.triu(full, 1)
    return csr_matrix((full + full.T).astype(float))


def test_two_communities_get_two_first_codes():
    tree = cluster_tree(communities(), clusters=2, leaf_size=6, depth=4)
    assert len(set(tree.codes[:6, 0])) == len(set(tree.codes[6:, 0])) == 1 and tree.codes[0, 0] != tree.codes[6, 0]
    assert tree.codes.shape == (12, 2) and sorted(tree.codes[:6, 1]) == list(range(6))
    assert within_clusters(communities(), tree) == pytest.approx((180 / 182, 60 / 132))


@pytest.mark.parametrize(("size", "clusters"), [(60, 5), (450, 6)])  # 450 is past the dense eigenvectors
def test_clusters_are_those_of_scikit_learn(size, clusters):
    graph = random_graph(size, seed=3)
    theirs = spectral_clustering(
        graph.toarray(), n_clusters=clusters, eigen_solver="arpack", assign_labels="cluster_qr", random_state=0
    )
    ours = spectral_clusters(graph, clusters)
    assert adjusted_rand_score(theirs, ours) == 1.0 and len(set(ours)) == clusters
    assert (ours == spectral_clusters(graph, clusters)).all()


@pytest.mark.parametrize("leaf_size", [1, 4, 30])
def test_every_item_has_a_path_of_its_own(leaf_size):
    graph = random_graph(50, seed=5)
    graph = csr_matrix(np.pad(graph.toarray(), (0, 3)))  # and three items without neighbours
    tree = cluster_tree(graph, clusters=3, leaf_size=leaf_size, depth=3)
    assert len(np.unique(tree.codes, axis=0)) == 53
    assert tree.codes[:, -1].max() < leaf_size and np.bincount(tree.leaf).max() <= leaf_size
    assert tree.codes.shape[1] <= 4 and (tree.codes[:, 0] > 0).all()
    for level in range(tree.codes.shape[1] - 2):  # a cluster lies inside one cluster of the level above
        pairs = np.unique(tree.codes[tree.codes[:, level + 1] > 0][:, [level, level + 1]], axis=0)
        assert len(np.unique(pairs[:, 1])) == len(pairs)
    assert len(set(tree.codes[50:, 0]) & set(tree.codes[:50, 0])) == 0


def test_what_cannot_be_clustered_is_still_cut():
    complete = csr_matrix(np.ones((20, 20)) - np.eye(20))
    for graph in (complete, csr_matrix((20, 20))):
        tree = cluster_tree(graph, clusters=2, leaf_size=3, depth=3)
        assert len(np.unique(tree.codes, axis=0)) == 20 and np.bincount(tree.leaf).max() <= 3


def dataset(root, rows, **settings):
    write_domain(root, "D", rows)
    config = Config("P5CID", "D", config_dict={"data_path": str(root), "MAX_ITEM_LIST_LENGTH": 5, **settings})
    return GMCDataset(config).build()[0]


HISTORIES = {"u": "abcdeaxy", "v": "bcdxz", "w": "hijkly", "x": "ikjhbz", "y": "xyz"}


def rows_of(histories):
    return [row for user, items in histories.items() for row in chain(user, items)]


def test_the_graph_counts_users_whose_training_history_has_both(tmp_path):
    train = dataset(tmp_path, rows_of(HISTORIES))
    tokens = train.items.tokens["D"]
    graph = co_occurrence(SequenceRows.of(train), len(tokens)).toarray()
    # A user of three interactions has one training row, of the first two items, in every model.
    known = [set(items[:-2]) for items in HISTORIES.values() if len(items) > 3] + [set("xy")]
    for a, b in itertools.product(range(len(tokens)), repeat=2):
        together = sum({tokens[a], tokens[b]} <= items for items in known) if a != b else 0
        assert graph[a, b] == together, (tokens[a], tokens[b])


def test_held_out_items_change_no_id(tmp_path):
    """The last two items of a user become another user's; then they become items that are in training anyway."""
    settings = P5CIDSettings(clusters=2, leaf_size=3)
    long = {user: items for user, items in HISTORIES.items() if len(items) > 3}
    ends = [items[-2:] for items in long.values()]
    moved = {user: items[:-2] + ends[i - 1][::-1] for i, (user, items) in enumerate(long.items())}
    bare = {user: items[:-2] + "bi" for user, items in long.items()}
    ids = {}
    for name, histories in (("as they are", long), ("moved", moved), ("removed", bare)):
        train = dataset(tmp_path / name, rows_of(histories))
        found, _ = collaborative_ids(train, settings)
        ids[name] = dict(zip(found.items.tokens["D"], found.codes.tolist(), strict=True))
    assert ids["as they are"] == ids["moved"]
    trained_on = {item for items in long.values() for item in items[:-2]}
    assert ids["removed"].keys() == trained_on < ids["as they are"].keys()
    assert ids["removed"].items() < ids["as they are"].items(), "those held out only leave no trace"


def test_ids_do_not_follow_the_order_of_tokens(tmp_path):
    """Tokens that count through the histories must not come back as neighbouring numbers."""
    items = [f"i{n:02}" for n in range(40)]
    train = dataset(tmp_path, [row for u in range(5) for row in chain(f"u{u}", items)], MAX_ITEM_LIST_LENGTH=50)
    codes = collaborative_ids(train, P5CIDSettings(clusters=2, leaf_size=50))[0].codes
    last = [codes[row, -1] for row in range(38)]
    assert sorted(np.diff(last)) != [1] * 37 and abs(np.corrcoef(range(38), last)[0, 1]) < 0.5


# ---- words -----------------------------------------------------------------------------------------------------


def texts_of(*texts):
    return ItemTexts(ItemIndex.of({"D": [f"i{n}" for n in range(len(texts))]}), tuple(texts))


def test_keywords_are_those_that_tell_items_apart():
    ranked, frequency = keywords(["red pen 7", "blue pen pen", "red lamp x2", "42 -"], 5)
    assert [set(words) for words in ranked] == [{"red", "pen"}, {"blue", "pen"}, {"red", "lamp", "x2"}, set()]
    assert frequency == {"red": 2, "pen": 2, "blue": 1, "lamp": 1, "x2": 1}
    assert ranked[2][-1] == "red", "the word of two texts weighs least"


def test_texts_are_tried_from_the_best_on():
    frequency = {"a": 1, "b": 5, "c": 3, "d": 1}.__getitem__
    tried = list(keyword_candidates(("a", "b", "c", "d"), 2, 3, frequency))
    assert tried == [("b", "a"), ("c", "a"), ("a", "d"), ("b", "c", "a"), ("b", "a", "d")]


def test_textual_ids_are_unique_words_and_general_ones_come_first():
    texts = texts_of("red pen", "red pen", "red pen", "blue lamp", "...", "!", "red toy")
    ids, figures = keyword_ids(texts, IDGenRecSettings(min_words=2, max_words=3))
    told = [ids.text(row) for row in range(7)]
    assert told == ["red pen", "red pen 2", "red pen 3", "blue lamp", "item", "item 2", "red toy"]
    assert figures["second_try"] == pytest.approx(3 / 7) and figures["levels"] == 3 and ids.words[0] == ""
    assert len(np.unique(ids.codes, axis=0)) == 7
    red = ids.words.index("red")
    assert (ids.codes[:3, 0] == red).all() and ids.codes[6, 0] == red, "a word is one code wherever it stands"


def test_long_candidates_are_cut_and_told_apart():
    items = ItemIndex.of({"A": ["a", "b", "c"], "B": ["a"]})
    texts, late = unique_texts(items, lambda row: [("x", "y", "z")], 2)
    assert texts == {0: ("x", "y"), 1: ("x", "2"), 2: ("x", "3"), 3: ("x", "y")} and late == 2


def test_words_are_saved_with_the_ids(tmp_path):
    ids, _ = keyword_ids(texts_of("red pen", "blue pen"), IDGenRecSettings(min_words=2))
    ids.save(tmp_path / "ids")
    again = SemanticIds.load(tmp_path / "ids")
    assert again.words == ids.words and again.fingerprint == ids.fingerprint
    with pytest.raises(TokenizerError, match="2 words for 4 codes"):
        SemanticIds(ids.items, ids.codes, 4, ("", "x"))


# ---- a checkpoint that writes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random T5 with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("writer")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    network = T5ForConditionalGeneration(config)
    torch.nn.init.normal_(network.shared.weight, std=0.5)  # so that texts make a difference
    network.save_pretrained(folder)
    return str(folder)


def writer_of(checkpoint, **changes):
    settings = IDGenRecSettings(checkpoint=checkpoint, **changes)
    return id_generator.Writer.load(id_generator.find(checkpoint, 64), settings, torch.device("cpu"))


def test_the_first_group_is_greedy_search(checkpoint):
    writer = writer_of(checkpoint, beams=4, new_tokens=6)
    texts = ["red pen", "blue paper desk lamp", "toy car doll red red red"]
    made = writer.tokenizer(texts, padding=True, return_tensors="pt")
    for least in (1, 3):
        theirs = writer.network.generate(
            **made, num_beams=1, do_sample=False, max_new_tokens=least + 6, min_new_tokens=least, suppress_tokens=[0]
        )
        theirs = writer.tokenizer.batch_decode(theirs, skip_special_tokens=True)
        for text, groups in zip(theirs, writer.write(texts, 1.0, least), strict=True):
            assert " ".join(groups[0]) == text and len(groups) == 4
    together, alone = writer.write(texts, 2.0, 1), [writer.write([text], 2.0, 1)[0] for text in texts]
    assert together == alone, "a batch changes nothing"


def test_groups_avoid_each_other(checkpoint):
    for groups in writer_of(checkpoint, beams=5).write(["red pen", "doll"], 50.0, 1):
        assert len({words[:1] for words in groups}) == 5
    for groups in writer_of(checkpoint, beams=3).write(["red pen"], 0.0, 1):
        assert len(set(groups)) == 1, "without a penalty all groups write the same"


def test_generated_ids_are_unique(checkpoint):
    texts = texts_of(*["red pen"] * 4, "blue desk", "lamp")
    settings = IDGenRecSettings(checkpoint=checkpoint, beams=3, new_tokens=4, batch_size=3)
    found = id_generator.find(checkpoint, 64)
    made = [
        id_generator.generate(texts, found, settings_, torch.device("cpu"), False)
        for settings_ in (settings, IDGenRecSettings(**{**vars(settings), "batch_size": 8}))
    ]
    assert made[0] == made[1] and len(set(made[0][0].values())) == 6 and made[0][1] >= 3


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    for name in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(SettingError, match="^idgen_checkpoint .* Give a folder that save_pretrained wrote"):
            id_generator.find(name, 64)


# ---- TIGER's counter -----------------------------------------------------------------------------------------------


def test_colliding_items_are_numbered_in_each_domain():
    items = ItemIndex.of({"A": "abcd", "B": "ab"})
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 2], [1, 2], [0, 0]], dtype=np.int32)
    made = number_collisions(items, codes, 3)
    assert made.codes.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 2, 2], [1, 2, 0], [0, 0, 0]]
    assert made.moved.tolist() == [False, False, True, True, False, False]
    with pytest.raises(TokenizerError, match="3 items of domain 'A' share their codes, more than codebook_size 2"):
        number_collisions(items, codes, 2)


def test_counting_takes_one_of_the_levels(tmp_path):
    from recbole_gmc.embed import TextEmbeddings
    from recbole_gmc.tokenizer import tokenize

    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    vectors[1] = vectors[0]
    embeddings = TextEmbeddings(ItemIndex.of({"A": [f"{n:02}" for n in range(30)]}), vectors)
    settings = TokenizerSettings(kind="rkmeans", levels=3, codebook_size=8, dim=4, collisions="count")
    made = [tokenize(embeddings, settings, seed=1, cache_dir=tmp_path / "cache") for _ in range(2)]
    codes = made[0].ids.codes
    assert codes.shape == (30, 3) and (codes[0, :2] == codes[1, :2]).all() and codes[1, 2] > codes[0, 2]
    assert made[0].ids.fingerprint == made[1].ids.fingerprint
    with pytest.raises(TokenizerError, match="code_levels: one level cannot hold"):
        tokenize(embeddings, TokenizerSettings(kind="rkmeans", levels=1, collisions="count"), seed=1, cache_dir=None)
