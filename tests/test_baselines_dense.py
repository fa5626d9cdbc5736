"""UniSRec, VQRec and RecFormer: losses by hand, what is frozen stays, and what a run leaves can be used again."""

from __future__ import annotations

import json
import shutil
import sys
from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model
from recbole.utils.case_study import full_sort_topk
from recbole_gmc.baselines import dense, opq, unisrec, vqrec
from recbole_gmc.baselines.transfer_trainer import TransferTrainer
from run_help import python, write_planted
from safetensors.torch import load_file

import recbole_gmc
from recbole_gmc import keys
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.errors import CheckpointError, SettingError
from recbole_gmc.files import hash_file, read_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.lookup import packaged
from recbole_gmc.settings import DecodeSettings, keys_of
from recbole_gmc.train import resume
from recbole_gmc.values import read_yaml

SIZES = {
    "UniSRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_exps": 3},
    "VQRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "vq_digits": 4, "vq_bits": 3, "reassign_steps": 2},
    "RecFormer": {
        "longformer_hidden_size": 16,
        "longformer_layers": 1,
        "longformer_inner_size": 16,
        "attention_window": 8,
        "max_attribute_tokens": 4,
        "max_tokens": 24,
    },
}
MODELS = tuple(SIZES)


def settings(model: str, root: Path, name: str, **changes) -> dict:
    return {
        "data_path": str(root),
        "cache_dir": str(root / "cache"),
        "run_dir": str(root / name),
        "domains": ["Big", "Small"],
        "show_progress": False,
        "text_lsa_dim": 8,
        "MAX_ITEM_LIST_LENGTH": 6,
        "precision": "fp32",
        "pretrain_epochs": 2,
        "pretrain_train_batch_size": 64,
        "pretrain_eval_step": 1,
        "pretrain_learning_rate": 1e-4,  # so that tuning has something to do
        "epochs": 2,
        "eval_step": 1,
        "train_batch_size": 32,
        "learning_rate": 0.02,
        **SIZES[model],
        **changes,
    }


def run(model: str, root: Path, name: str, **changes) -> dict:
    return recbole_gmc.run_recbole(model, "tiny", None, settings(model, root, name, **changes))


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    write_planted(root, "Big", seed=1, users=30)
    write_planted(root, "Small", seed=2, users=20, items=12)
    return root


@pytest.fixture(scope="module", params=MODELS)
def finished(request, root) -> SimpleNamespace:
    """A whole run of each model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        returned = run(request.param, root, request.param)
    folder = root / request.param
    weights = load_file(folder / "checkpoint/model.safetensors")
    result = read_json(folder / "result.json")
    return SimpleNamespace(model=request.param, folder=folder, weights=weights, result=result, returned=returned)


def built(model: str, root: Path, **changes) -> SimpleNamespace:
    """A model with its real inputs, before any training."""
    config = Config(model, "tiny", config_dict=settings(model, root, "none", **changes))
    train, valid, _ = GMCDataset(config).build()
    torch.manual_seed(0)
    made = get_model(model)(config, train)
    rows = SequenceRows.of(train)
    made.set_inputs(made.make_inputs(config, train, rows, False))
    return SimpleNamespace(model=made.eval(), rows=rows, config=config, valid=SequenceRows.of(valid))


# ---- what the models share -------------------------------------------------------------------------------------------


def by_hand(anchor, positive, temperature, target=None, negatives="exclude", extra=None) -> float:
    """The contrastive loss, written out."""
    anchor, positive = F.normalize(anchor, dim=1).tolist(), F.normalize(positive, dim=1).tolist()
    extra = F.normalize(extra, dim=1).tolist() if extra is not None else None

    def score(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / temperature

    total = 0.0
    for i, a in enumerate(anchor):
        denominator = exp(score(a, extra[i])) if extra is not None else 0.0
        for j, p in enumerate(positive):
            if i != j and target is not None and target[i] == target[j]:
                denominator += 0.0 if negatives == "exclude" else 1.0
            else:
                denominator += exp(score(a, p))
        total -= log(exp(score(a, positive[i])) / denominator)
    return total / len(anchor)


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


def test_lists_are_exact_and_ties_keep_the_order_of_the_catalogue():
    draw = torch.Generator().manual_seed(3)
    for _ in range(50):
        scores = torch.randint(0, 4, (7, 23), generator=draw).float()
        columns, values = dense.best(scores, 6)
        told = [sorted(range(23), key=lambda i, row=row: (-row[i], i))[:6] for row in scores.tolist()]
        assert columns.tolist() == told and torch.equal(values, scores.gather(1, columns))
    columns, _ = dense.best(torch.tensor([[1.0, 3.0, 2.0]]), 20)
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


# ---- UniSRec ---------------------------------------------------------------------------------------------------------


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


# ---- VQRec -----------------------------------------------------------------------------------------------------------


def test_codes_are_those_of_faiss(tmp_path):
    faiss = pytest.importorskip("faiss")
    draw = np.random.default_rng(0)
    vectors, seen = draw.normal(size=(160, 8)).astype(np.float32), np.arange(160) < 130
    made = opq.encode(vectors, seen, 4, 4, tmp_path, "all")
    index = faiss.index_factory(8, "OPQ4,IVF1,PQ4x4", faiss.METRIC_INNER_PRODUCT)
    rotation = faiss.downcast_VectorTransform(index.chain.at(0))
    rotation.pq = inner = faiss.ProductQuantizer(8, 4, 4)  # by itself it takes 8 bits
    inner.cp.min_points_per_centroid = 1
    index.train(vectors[seen])
    index.add(vectors)
    lists = faiss.extract_index_ivf(index).invlists
    rotation.pq = None
    packed = faiss.rev_swig_ptr(lists.get_codes(0), 160 * lists.code_size).reshape(160, -1)
    assert (made.codes == np.stack([packed & 15, packed >> 4], -1).reshape(160, 4)).all()
    assert made.codes.min() >= 0 and made.codes.max() < 16 and made.facts["trained_on"] == 130
    again = opq.encode(vectors, seen, 4, 4, tmp_path, "all")  # from the cache
    assert (again.codes == made.codes).all() and len(list((tmp_path / "opq").glob("[0-9a-f]*"))) == 1
    other = vectors.copy()
    other[~seen] *= -1
    assert (opq.encode(other, seen, 4, 4, tmp_path, "all").codes[seen] == made.codes[seen]).all(), "never seen"


def test_few_items_have_fewer_codes_and_any_dimension_will_do(tmp_path, caplog):
    vectors = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    made = opq.encode(vectors, np.ones(12, bool), 3, 8, tmp_path, "Small")
    assert made.bits == 3 and made.codes.max() < 8 and "Small: 12 items of training allow 8 codes" in caplog.text
    cut = opq.encode(vectors, np.ones(12, bool), 4, 2, tmp_path, "Small")
    filled = np.concatenate([vectors, np.zeros((12, 2), np.float32)], 1)
    assert cut.codes.shape == (12, 4) and len(np.unique(cut.codes, axis=0)) > 4
    assert (opq.encode(filled, np.ones(12, bool), 4, 2, tmp_path, "Small").codes == cut.codes).all()


def test_an_item_is_the_mean_of_its_codes():
    network = vqrec.VQRecNetwork(vqrec.VQRecSettings(digits=3, bits=2), dense.EncoderSettings(hidden_size=4), 5)
    codes = torch.tensor([[0, 3, 1], [2, 2, 2]])
    told = [sum(network.table[d, c] for d, c in enumerate(row)) / 3 for row in codes.tolist()]
    assert torch.allclose(network.item_vectors(codes), torch.stack(told))


def test_made_up_items_keep_a_quarter_of_the_digits():
    torch.manual_seed(0)
    codes = torch.randint(256, (500, 32))
    differ = (vqrec.made_up(codes, 256, 0.75) != codes).float().sum(1).mean()
    assert 23.5 < differ < 24.3


def test_the_published_choice_of_codes_learns_nothing():
    """torch.ceil has no gradient; straight through there is one. Either way each row holds a single one."""
    torch.manual_seed(0)
    table, weights = torch.randn(2, 9, 5), torch.randn(2, 9, 5)
    for faithful in (True, False):
        choice = torch.nn.Parameter(torch.randn(2, 9, 9))
        made = vqrec.assign(choice, 3, 0.7, faithful)
        assert torch.allclose(made.sort(-1).values, torch.eye(9)[-1].expand(2, 9, 9), atol=1e-6)
        ((made @ table) * weights).sum().backward()
        assert (choice.grad == 0).all() == faithful
    likely = vqrec.assign(choice, 3, 0.7, noise=False)
    assert torch.equal(likely.argmax(-1), vqrec.assign(choice, 3, 0.7, noise=False).argmax(-1))
    assert not torch.equal(vqrec.assign(choice, 3, 0.7).argmax(-1), vqrec.assign(choice, 3, 0.7).argmax(-1))


def test_what_is_trained_while_codes_are_assigned(root):
    made = built("VQRec", root)
    network = made.model.add_domain("Small")
    reassign, tune = made.model.stages("Small")
    assert (reassign.name, reassign.epochs, reassign.eval_step) == ("reassign:Small", 2, 0)
    assert [id(p) for p in made.model.trained(reassign)] == [id(network.choice)]
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    rows = made.model.local(made.rows.of_domain(1), "Small")
    made.model.tune_loss(rows, "Small", reassign.name).backward()
    assert network.choice.grad.abs().max() > 0
    about = made.model.finish_stage(reassign)
    assert network.choice is None and 0 < about["changed_rows"] <= about["rows"] == 4 * 8
    after = network.state_dict()
    assert not torch.equal(after["table"], before["table"])
    kept = {tuple(row) for row in before["table"].flatten(0, 1).tolist()}
    assert {tuple(row) for row in after["table"].flatten(0, 1).tolist()} <= kept, "no new vectors"
    assert all(torch.equal(after[name], before[name]) for name in after if name != "table")
    for changes in ({"perm_mode": "none"}, {"finetune_codes": "union"}, {"pretrain_epochs": 0}):
        plain = built("VQRec", root, **changes)
        copy = plain.model.add_domain("Small")
        assert [stage.name for stage in plain.model.stages("Small")] == ["finetune:Small"] and copy.choice is None
        assert torch.equal(copy.table, plain.model.pretrained.table)
        union = plain.model.inputs.items[plain.model.items.rows("Small")]
        assert torch.equal(plain.model.features("Small"), union) == (changes.get("finetune_codes") == "union")


def test_only_items_of_training_teach_the_quantiser(root):
    about = built("VQRec", root).model.inputs.about
    for domain in ("Big", "Small"):
        users: dict[str, list[str]] = {}
        for line in (root / domain / f"{domain}.inter").read_text().splitlines()[1:]:
            users.setdefault(line.split("\t")[0], []).append(line.split("\t")[1])
        assert about[domain]["trained_on"] == len({item for items in users.values() for item in items[:-2]})


# ---- whole runs ------------------------------------------------------------------------------------------------------

FROZEN = {"UniSRec": ("encoder.position", "encoder.blocks"), "VQRec": ("encoder.position", "encoder.blocks")}


def test_what_is_frozen_does_not_change(finished):
    before = {n.removeprefix("pretrained."): w for n, w in finished.weights.items() if n.startswith("pretrained.")}
    moved = set()
    for prefix in ("tuned.0.", "tuned.1."):
        tuned = {n.removeprefix(prefix): w for n, w in finished.weights.items() if n.startswith(prefix)}
        assert before.keys() <= tuned.keys()
        moved |= {name for name, weight in before.items() if not torch.equal(weight, tuned[name])}
    frozen = FROZEN.get(finished.model, ("head.",))
    assert moved and not any(name.startswith(frozen) for name in moved)


def test_the_result_tells_what_was_run(finished):
    result = finished.result
    stages = {
        "UniSRec": ["finetune:{}"],
        "VQRec": ["reassign:{}", "finetune:{}"],
        "RecFormer": ["finetune:{}", "fixed:{}"],
    }
    told = ["pretrain", *(s.format(d) for d in ("Big", "Small") for s in stages[finished.model])]
    assert list(result["epochs"]) == told and set(told) <= result["seconds"].keys()
    assert result["certified"] == {"all": 1.0, "Big": 1.0, "Small": 1.0}
    labels = {
        "UniSRec": "",
        "VQRec": "setting with perm_mode straight_through",
        "RecFormer": "small from-scratch setting",
    }
    assert result["label"] == labels[finished.model]
    log_file = (finished.folder / "run.log").read_text()
    assert not result["label"] or f"{finished.model} in a {result['label']}" in log_file
    own = sum(w.numel() for n, w in finished.weights.items() if n.startswith("pretrained."))
    assert result["parameters"]["model"] == own and set(result["parameters"]["domains"]) == {"Big", "Small"}
    assert {"items", "texts", "Big.inter", "lists", "targets", "weights"} <= result["hashes"].keys()
    assert [e["epoch"] for e in result["curve"] if e["stage"] == f"{told[-1]}"][0] == -1, "measured before it is tuned"
    assert finished.returned["best_valid_score"] == result["validation"]["score"]
    rounded = {name: round(value, 4) for name, value in result["average"].items()}
    assert {name: finished.returned["test_result"][name] for name in rounded} == rounded


def test_nothing_in_a_checkpoint_is_pickled(finished):
    names = {path.suffix for path in (finished.folder / "checkpoint").rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors"}


LOAD = """
import json, pickle, sys
import torch
import recbole_gmc.baselines.unisrec, recbole_gmc.baselines.vqrec, recbole_gmc.baselines.recformer
from recbole_gmc import loading

def forbidden(*args, **kwargs):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = torch.load = forbidden
asked = json.load(open(sys.argv[1]))
told = {}
for name, questions in asked.items():
    model = loading.load(name)
    told[name] = [[model.recommend(domain, history, 10) for domain, history in questions]]
json.dump(told, open(sys.argv[2], "w"))
"""


def lines_of(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / "topk.tsv").read_text().splitlines()[1:]]


def same_list(line: list[str], items: list[str]) -> None:
    """The ten items of a line of topk.tsv; scores that differ in the last bits only may change places."""
    score = dict(zip(line[4::2], map(float, filter(None, line[5::2])), strict=False))
    for told, item in zip(line[4:24:2], items, strict=True):
        assert told == item or score[told] == pytest.approx(score[item], abs=1e-4), (told, item)
    assert len(set(items)) == len(items)


def histories(root: Path, domain: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (root / domain / f"{domain}.inter").read_text().splitlines()[1:]:  # in order of time
        user, item, _ = line.split("\t")
        found.setdefault(user, []).append(item)
    return found


@pytest.fixture(scope="module")
def answers(root) -> dict:
    """What one fresh process recommends for every third user, from each model's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        for model in MODELS:
            if not (root / model / "result.json").exists():
                run(model, root, model)
    asked = {}
    for model in MODELS:
        lines = lines_of(root / model)[::3]
        asked[str(root / model)] = [(line[0], histories(root, line[0])[line[1]][:-1]) for line in lines]
    (root / "asked.json").write_text(json.dumps(asked))
    python("-c", LOAD, "asked.json", "told.json", cwd=root)
    return read_json(root / "told.json")


def test_a_fresh_process_recommends_the_same(finished, answers):
    lines = lines_of(finished.folder)[::3]
    (told,) = answers[str(finished.folder)]
    for line, given in zip(lines, told, strict=True):
        same_list(line, [item for item, _ in given])
        assert [score for _, score in given] == pytest.approx([float(s) for s in line[5:24:2]], abs=1e-4)


def test_recbole_functions_take_the_folder(finished, root, monkeypatch):
    monkeypatch.chdir(root)
    config, model, dataset, _, _, test = load_data_and_model(str(finished.folder / "checkpoint"))
    users = test.dataset.inter_feat[test.dataset.uid_field]
    _, found = full_sort_topk(users.numpy(), model, test, 10, device=config["device"])
    tokens = dataset.id2token(dataset.iid_field, found.numpy())
    wanted = {(line[0], line[1]): line for line in lines_of(finished.folder)}
    names = [str(token).split("/", 1) for token in dataset.id2token(dataset.uid_field, users.numpy())]
    for (domain, user), row in zip(names, tokens, strict=True):
        same_list(wanted[domain, user], [str(token).split("/", 1)[1] for token in row])


STOPS = {"UniSRec": ("finetune:Big", 1), "VQRec": ("reassign:Small", 1), "RecFormer": ("fixed:Big", 1)}


class Stopped(KeyboardInterrupt):
    pass


def test_a_stopped_run_ends_as_one_that_never_stopped(finished, root, monkeypatch):
    stage, epoch = STOPS[finished.model]
    whole = TransferTrainer.backward

    def backward(self, rows):
        entries = [e for e in self.record.curve if e["stage"] == self.stage.name and "loss" in e]
        if self.stage.name == stage and len(entries) == epoch:
            raise Stopped
        return whole(self, rows)

    name = f"{finished.model}-stopped"
    with monkeypatch.context() as patch:
        patch.setattr(TransferTrainer, "backward", backward)
        with pytest.raises(Stopped):
            run(finished.model, root, name)
    assert not (root / name / "result.json").exists()
    resume.resume(root / name)
    resumed = read_json(root / name / "result.json")
    assert f"Going on with {stage} at epoch {epoch}" in (root / name / "run.log").read_text()
    assert resumed["hashes"] == finished.result["hashes"] and resumed["epochs"] == finished.result["epochs"]
    assert (root / name / "topk.tsv").read_bytes() == (finished.folder / "topk.tsv").read_bytes()
    assert hash_file(root / name / "checkpoint/model.safetensors") == hash_file(
        finished.folder / "checkpoint/model.safetensors"
    )


def test_other_items_are_refused(finished, root, tmp_path, monkeypatch):
    write_planted(tmp_path, "Big", seed=5, users=20, items=10)
    write_planted(tmp_path, "Small", seed=6, users=20, items=8)
    shutil.copytree(finished.folder, tmp_path / "run")
    file = tmp_path / "run/checkpoint/config.json"
    moved = json.dumps({**read_json(file), "data_path": str(tmp_path)})
    file.write_text(moved)
    manifest = read_json(tmp_path / "run/checkpoint/manifest.json")
    manifest["files"]["config.json"] = hash_file(file)
    (tmp_path / "run/checkpoint/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="made for other items"):
        load_data_and_model(str(tmp_path / "run"))


@pytest.mark.parametrize("model", MODELS)
def test_one_domain_alone_and_no_tuning(root, model):
    run(model, root, f"{model}-alone", domains=["Small"], epochs=0, pretrain_epochs=1)
    result = read_json(root / f"{model}-alone/result.json")
    assert list(result["domains"]) == ["Small"] and result["epochs"] == {"pretrain": 1}
    assert recbole_gmc.load(root / f"{model}-alone").recommend("Small", ["small-1"], 12)


@pytest.mark.parametrize("model", MODELS)
def test_every_key_is_known_and_explained(model):
    file = packaged(f"properties/model/{model}.yaml")
    keys.refuse_unknown(read_yaml(file))
    for group in get_model(model).own_settings:
        assert keys_of(group).keys() <= read_yaml(file).keys()
    for name, value in read_yaml(file).items():
        (line,) = [line for line in file.read_text().splitlines() if line.startswith(f"{name}:")]
        assert "  # " in line or name in ("metrics",), line
        assert value == read_yaml(file)[name]


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("UniSRec", {"n_exps": 0}, "n_exps: 0 is out of range"),
        ("UniSRec", {"hidden_size": 15, "n_heads": 2}, "hidden_size: 15 is not a multiple of n_heads 2"),
        ("VQRec", {"perm_mode": "learned"}, "perm_mode: 'learned' is unknown"),
        ("VQRec", {"vq_bits": 9}, "vq_bits: 9 is out of range"),
        ("RecFormer", {"attention_window": 7}, "attention_window: 7 is odd"),
        ("RecFormer", {"longformer": "no/such/folder"}, "longformer: no folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(root, model, given, message):
    with pytest.raises(SettingError, match=message):
        run(model, root, "refused", **given)
    assert not (root / "refused/checkpoint").exists()
