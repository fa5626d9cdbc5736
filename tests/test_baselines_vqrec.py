"""VQRec: faiss' own codes, made-up items, and which code vectors a domain's codes take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dense_help import built
from recbole_gmc.baselines import dense, opq, vqrec
from run_help import python, write_both

pytestmark = pytest.mark.usefixtures("own_arguments")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    write_both(root)
    return root


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
    order = torch.randperm(9)
    likely = vqrec.assign(9 * torch.eye(9)[order][None], 3, 0.7, noise=False)
    assert torch.equal(likely.argmax(-1)[0], order), "the most likely choice, where nothing is drawn"
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


def test_fewer_items_than_dimensions_do_not_end_the_process(tmp_path):
    """faiss 1.15 corrupts memory where OPQ has fewer training vectors than dimensions."""
    vectors = np.random.default_rng(0).normal(size=(18, 64)).astype(np.float32)
    script = "import sys, numpy as np; from recbole_gmc.baselines import opq; v = np.load(sys.argv[1])\n"
    script += "print(opq.encode(v, np.ones(18, bool), 32, 4, sys.argv[2], 'Few').codes.shape)"
    np.save(tmp_path / "v.npy", vectors)
    done = python("-c", "import recbole_gmc\n" + script, str(tmp_path / "v.npy"), str(tmp_path / "cache"), cwd=tmp_path)
    assert "(18, 32)" in done.stdout
