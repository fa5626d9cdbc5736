"""What the dense baselines share, and UniSRec: losses by hand, exact lists, gates and augmentation."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_help import built, by_hand
from recbole.config import Config
from recbole.utils import get_model
from recbole_gmc.baselines import dense, unisrec
from run_help import write_both

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.decode.beam import best
from recbole_gmc.errors import GMCError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import DecodeSettings

pytestmark = pytest.mark.usefixtures("own_arguments")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    write_both(root)
    return root


def test_the_contrastive_loss_is_the_one_on_paper():
    draw = torch.Generator().manual_seed(1)
    a, p, e = (torch.randn(5, 3, generator=draw) for _ in range(3))
    target = torch.tensor([4, 7, 4, 4, 9])
    assert dense.contrast(a, p, 0.5).item() == pytest.approx(by_hand(a, p, 0.5), rel=1e-5)
    for negatives in ("exclude", "zero"):
        for extra in (None, e):
            made = dense.contrast(a, p, 0.5, target=target, negatives=negatives, extra=extra)
            told = by_hand(a, p, 0.5, target.tolist(), negatives, extra)
            assert made.item() == pytest.approx(told, rel=1e-5), (negatives, extra is None)
    excluded, zero = (dense.contrast(a, p, 0.5, target=target, negatives=n) for n in ("exclude", "zero"))
    assert zero > excluded, "exp(0) = 1 for each row with the same target"
    same = dense.contrast(a, p, 0.5, target=torch.zeros(5, dtype=torch.int64))
    assert same.item() == pytest.approx(0.0, abs=1e-6), "nothing is left to tell apart"


def test_the_sequence_encoder_is_that_of_recbole(root):
    """The same weights in RecBole's SASRec give the same vectors."""
    config = Config("SASRec", "Big", config_dict={"data_path": str(root), "train_neg_sample_args": None})
    for name, value in {"hidden_size": 12, "n_heads": 3, "inner_size": 7, "MAX_ITEM_LIST_LENGTH": 6}.items():
        config[name] = value
    config["loss_type"] = "CE"
    data = SimpleNamespace(num=lambda field: 30)
    theirs = get_model("SASRec")(config, data).eval()
    mine = dense.SequenceEncoder(dense.EncoderSettings(hidden_size=12, heads=3, inner_size=7), 6).eval()
    mine.position.load_state_dict(theirs.position_embedding.state_dict())
    mine.norm.load_state_dict(theirs.LayerNorm.state_dict())
    mine.blocks.load_state_dict(theirs.trm_encoder.state_dict())
    items = torch.randint(1, 30, (9, 6))
    length = torch.tensor([1, 2, 3, 4, 5, 6, 6, 1, 3])
    padded = items.masked_fill(torch.arange(6) >= length[:, None], 0)
    told = theirs.forward(padded, length)
    made = mine(theirs.item_embedding(items), length)  # what lies past the history is never seen
    assert torch.allclose(made, told, atol=1e-5) and made.shape == (9, 12)
    told.pow(3).sum().backward()
    told = [theirs.item_embedding.weight.grad[1:].clone(), *(p.grad for p in theirs.trm_encoder.parameters())]
    theirs.item_embedding.weight.grad = None
    made.pow(3).sum().backward()
    made = [theirs.item_embedding.weight.grad[1:], *(p.grad for p in mine.blocks.parameters())]
    assert all(torch.allclose(here, there, atol=1e-4) for here, there in zip(made, told, strict=True))


def test_lists_are_exact_and_ties_keep_the_order_of_the_catalogue():
    draw = torch.Generator().manual_seed(3)
    for _ in range(50):
        scores = torch.randint(0, 4, (7, 23), generator=draw).float()
        columns, _ = best(scores, 6)
        told = [sorted(range(23), key=lambda i, row=row: (-row[i], i))[:6] for row in scores.tolist()]
        assert columns.tolist() == told
    columns, _ = best(torch.tensor([[1.0, 3.0, 2.0]]), 20)
    assert columns.tolist() == [[1, 2, 0]]
    first, place = dense.distinct_rows(torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [5.0, 5.0]]))
    assert first.tolist() == [0, 1, 3] and place.tolist() == [0, 1, 0, 2]


class Fixed(dense.DenseNetwork):
    """Item vectors are the features; a history's vector is that of its last item."""

    temperature = 0.5

    def item_vectors(self, features):
        return features

    def history_vectors(self, features, vectors, history, length):
        return vectors[history.gather(1, length[:, None] - 1).squeeze(1)]


def test_a_short_catalogue_ends_in_nothing():
    items = ItemIndex.of({"A": ["x"], "B": ["p", "q", "r"]})
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    networks = {"A": (Fixed(), torch.ones(1, 2)), "B": (Fixed(), vectors)}
    made = dense.DenseRecommender(items, networks, max_items=5, decode=DecodeSettings(beam_size=5, batch_users=1))
    found = made.rank("B", torch.tensor([[2, 3, -1], [1, -1, -1]]), torch.tensor([2, 1]))
    assert found.ranked.tolist() == [[3, 1, 2, -1, -1], [1, 3, 2, -1, -1]]  # rows of all domains; B begins at 1
    cosine = 2 * 2**-0.5
    assert found.scores[:, :3].tolist() == pytest.approx(np.array([[2, cosine, cosine], [2, cosine, 0]]), abs=1e-6)
    assert np.isneginf(found.scores[:, 3:]).all() and found.certified.all()
    assert made.recommend("B", ["r", "p"], 2) == [("p", pytest.approx(2.0)), ("r", pytest.approx(cosine))]


def test_vectors_that_are_no_numbers_are_refused():
    items = ItemIndex.of({"B": ["p", "q", "r"]})
    vectors = torch.tensor([[1.0, 0.0], [0.0, torch.nan], [1.0, 1.0]])
    made = dense.DenseRecommender(items, {"B": (Fixed(), vectors)}, max_items=5, decode=DecodeSettings(beam_size=3))
    with pytest.raises(GMCError, match="not a number"):
        made.recommend("B", ["p"], 2)


def test_users_are_halved_where_memory_does_not_suffice(monkeypatch):
    items = ItemIndex.of({"B": [f"i{n}" for n in range(9)]})
    vectors = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    made = dense.DenseRecommender(items, {"B": (Fixed(), vectors)}, max_items=5, decode=DecodeSettings(beam_size=3))
    history, length = torch.arange(7)[:, None], torch.ones(7, dtype=torch.int64)
    whole, scores, seen = made.rank("B", history, length), dense.DenseRecommender.scores, []

    def scarce(self, domain, history, length):
        if len(history) > 2:
            raise torch.OutOfMemoryError("too large")
        seen.append(len(history))
        return scores(self, domain, history, length)

    monkeypatch.setattr(dense.DenseRecommender, "scores", scarce)
    found = made.rank("B", history, length)
    assert sorted(seen) == [1, 2, 2, 2] and (found.ranked == whole.ranked).all()


def test_gates_start_uniform():
    torch.manual_seed(0)
    adaptor = unisrec.MoEAdaptor(6, 4, 8, 0.2).eval()
    x = torch.randn(10, 6)
    assert torch.equal(adaptor.gates(x), torch.full((10, 8), 0.125))
    torch.nn.init.normal_(adaptor.bias)
    told = torch.stack([(x - adaptor.bias[e]) @ adaptor.weight[e] for e in range(8)]).mean(0)
    assert torch.allclose(adaptor(x), told, atol=1e-6)
    noisy = adaptor.train().gates(x)
    assert noisy.std() > 0 and torch.allclose(noisy.sum(1), torch.ones(10))


@pytest.mark.parametrize("shared", [True, False])
def test_pre_training_adds_both_contrasts(root, shared):
    changes = {"lambda": 0.3, "item_drop_ratio": 0.0, "adaptor_once_an_item": shared}  # nothing dropped: the same again
    made = built("UniSRec", root, **changes)
    rows, network = made.rows.select(torch.arange(0, 120, 3)), made.model.pretrained
    assert len(rows.target.unique()) < len(rows)
    vectors = network.item_vectors(made.model.inputs.items)
    sequence = network.encoder(vectors[rows.history.clamp(min=0)], rows.length)
    target = rows.target.tolist()
    told = by_hand(sequence, vectors[rows.target], 0.07, target) + 0.3 * by_hand(sequence, sequence, 0.07, target)
    assert made.model.pretrain_loss(rows).item() == pytest.approx(told, rel=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_fine_tuning_is_cross_entropy_over_the_domain(root, mode, shared):
    made = built("UniSRec", root, finetune_mode=mode, adaptor_once_an_item=shared)
    network = made.model.add_domain("Small")
    assert (network.ids is None) == (mode == "inductive")
    rows = made.model.local(made.rows.of_domain(1), "Small")
    vectors = made.model.pretrained.item_vectors(made.model.features("Small"))
    if network.ids is not None:
        vectors = vectors + network.ids.weight
    sequence = network.encoder(vectors[rows.history], rows.length)
    total = 0.0
    for s, t in zip(sequence, rows.target.tolist(), strict=True):
        scores = [F.cosine_similarity(s, v, dim=0).item() / 0.07 for v in vectors]
        total += log(sum(exp(score) for score in scores)) - scores[t]
    loss = made.model.tune_loss(rows, "Small", "finetune:Small")
    assert loss.item() == pytest.approx(total / len(rows), rel=1e-4)


def test_dropped_items_leave_the_others_in_order():
    torch.manual_seed(0)
    history = torch.arange(1, 8).expand(400, 7)
    length = torch.randint(1, 8, (400,))
    place, left = unisrec.drop_items(history, length, 0.4)
    for row, n, kept in zip(place.tolist(), length.tolist(), left.tolist(), strict=True):
        assert row[0] == 0 and row[:kept] == sorted(set(row[:kept])) and max(row[:kept]) < n
    dropped = (length - left).sum() / (length - 1).sum()
    assert 0.35 < dropped < 0.45
    same, _ = unisrec.drop_items(history, length, 0.0)
    assert torch.equal(same, torch.arange(7).expand(400, 7))


def test_words_are_dropped_from_a_second_embedding_or_it_is_said(root, tmp_path):
    made = built("UniSRec", root)
    assert "items dropped only" in made.model.inputs.about["augmentation"] and not made.model.inputs.more
    texts = GMCDataset(made.config).texts()
    fewer = unisrec.drop_words(texts, 0.5, 1)
    words = [text.split() for text in texts.texts]
    assert all(set(new.split()) <= set(old) and new for new, old in zip(fewer.texts, words, strict=True))
    assert 0.3 < sum(len(t.split()) for t in fewer.texts) / sum(map(len, words)) < 0.7
    paths = {}
    for domain, tokens in made.model.items.tokens.items():
        paths[domain] = str(tmp_path / f"{domain}.npy")
        np.save(paths[domain], np.random.default_rng(0).normal(size=(len(tokens), 8)).astype(np.float32))
        (tmp_path / f"{domain}.ids").write_text("\n".join(tokens) + "\n")
    told = built("UniSRec", root, word_drop_embedding_path=paths, item_drop_coefficient=0.0, **{"lambda": 1.0})
    assert told.model.inputs.more[unisrec.DROPPED].shape == told.model.inputs.items.shape
    plain = built("UniSRec", root, **{"lambda": 0.0}).model.pretrain_loss(made.rows).item()
    assert told.model.pretrain_loss(made.rows).item() > plain + 0.1
