"""Metrics from lists: against fractions by hand, RecBole's own full-sort path, and scikit-learn."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import torch
import toy_model
from data_help import config_of
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import Collector
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed
from run_help import write_planted
from sklearn.metrics import ndcg_score

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate import dense_lists, per_user, results
from recbole_gmc.evaluate.collector import ListEvaluator
from recbole_gmc.evaluate.popularity import popular
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex
from recbole_gmc.running import domain_run, single
from recbole_gmc.running.planning import DomainPlan

pytestmark = pytest.mark.usefixtures("own_arguments")

METRICS = ["Recall", "NDCG", "MRR", "Hit", "Precision"]


def evaluator(tmp_path, topk, metrics=METRICS) -> ListEvaluator:
    config = config_of(tmp_path, "A", topk=topk, metrics=metrics, valid_metric=f"NDCG@{topk[0]}")
    return ListEvaluator(config, Collector(config))


def table(items, domain, target, ranked) -> TopKTable:
    ranked = np.array(ranked)
    scores = np.where(ranked >= 0, -np.arange(ranked.shape[1], dtype=np.float32), -np.inf).astype(np.float32)
    users = tuple(f"u{i}" for i in range(len(target)))
    return TopKTable(items, np.array(domain), users, np.array(target), ranked, scores, np.ones(len(users), bool))


def test_fractions_by_hand(tmp_path):
    items = ItemIndex.of({"A": "abcdef", "B": "xyz"})  # rows 0..5 and 6..8
    lists = table(
        items,
        [0, 0, 0, 1, 1],
        [0, 1, 5, 8, -1],  # the last held-out item is no candidate
        [
            [0, 1, 2, 3, 4],  # first
            [3, 4, 1, 0, 2],  # third
            [0, 1, 2, 3, 4],  # missed
            [7, 8, 6, -1, -1],  # second, in a catalogue of three
            [6, 7, 8, -1, -1],  # -1 is no item, so it is no hit
        ],
    )
    assert lists.rank.tolist() == [0, 2, -1, 1, -1]
    found = evaluator(tmp_path, [1, 2, 3, 5])(lists)
    by_hand = {
        "A/recall@1": 1 / 3,
        "A/recall@2": 1 / 3,
        "A/recall@3": 2 / 3,
        "A/recall@5": 2 / 3,
        "A/mrr@2": 1 / 3,
        "A/mrr@3": (1 + 1 / 3) / 3,
        "A/ndcg@1": 1 / 3,
        "A/ndcg@3": (1 + 1 / 2) / 3,
        "A/ndcg@5": (1 + 1 / 2) / 3,
        "A/precision@1": 1 / 3,
        "A/precision@3": 2 / 9,
        "A/precision@5": 2 / 15,
        "B/recall@1": 0,
        "B/recall@2": 1 / 2,
        "B/recall@5": 1 / 2,
        "B/mrr@2": 1 / 4,
        "B/ndcg@2": 1 / log2(3) / 2,
        "B/precision@2": 1 / 4,
        "B/precision@5": 1 / 10,
        "recall@1": 1 / 5,
        "recall@3": 3 / 5,
        "mrr@5": (1 + 1 / 3 + 1 / 2) / 5,
        "ndcg@5": (1 + 1 / 2 + 1 / log2(3)) / 5,
        "precision@5": 3 / 25,
    }
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-12)
    assert len(found) == 3 * 4 * len(METRICS)
    for name in [name for name in found if "/" not in name]:  # the plain keys weigh domains by their users
        assert found[name] == pytest.approx((3 * found[f"A/{name}"] + 2 * found[f"B/{name}"]) / 5, abs=1e-12)
        if name.startswith("recall"):
            assert found[name] == found[name.replace("recall", "hit")]
    parts = results.by_domain(found, lists)
    assert parts["B"]["users"] == 2 and parts["B"]["items"] == 3 and parts["B"]["mrr@2"] == found["B/mrr@2"]
    assert results.average(found, items.domains).keys() == {name for name in found if "/" not in name}
    drawn = results.draw({"domains": parts, "average": results.average(found, items.domains)}).splitlines()
    assert drawn[-1].split()[:3] == ["average", "5", "9"] and "0.6000" in drawn[-1]
    assert [line.split()[0] for line in drawn[2:]] == ["A", "B", "average"]


def test_a_domain_without_users_has_no_metrics(tmp_path):
    items = ItemIndex.of({"A": "ab", "B": "xy"})
    found = evaluator(tmp_path, [1])(table(items, [1], [2], [[2, 3]]))
    assert found["B/recall@1"] == found["recall@1"] == 1 and not any(name.startswith("A/") for name in found)


def test_scikit_learn_agrees_on_random_lists(tmp_path):
    draw = np.random.default_rng(3)
    items = ItemIndex.of({"A": [f"i{n:02}" for n in range(40)]})
    ranked = np.array([draw.permutation(40) for _ in range(50)])
    target = draw.integers(0, 40, 50)
    found = evaluator(tmp_path, [5, 10, 20])(table(items, np.zeros(50, int), target, ranked))
    truth = np.eye(40)[target]
    score = np.zeros((50, 40))
    np.put_along_axis(score, ranked, -np.arange(40.0)[None].repeat(50, 0), 1)
    for k in (5, 10, 20):
        assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(truth, score, k=k), abs=1e-12)


def test_values_of_each_user_average_to_the_metrics(tmp_path):
    draw = np.random.default_rng(4)
    items = ItemIndex.of({"A": [f"i{n:02}" for n in range(30)]})
    lists = table(items, np.zeros(20, int), draw.integers(0, 30, 20), [draw.permutation(30)[:10] for _ in range(20)])
    found = evaluator(tmp_path, [3, 10])(lists)
    for k in (3, 10):
        assert per_user.recall(lists.rank, k).mean() == pytest.approx(found[f"recall@{k}"])
        assert per_user.ndcg(lists.rank, k).mean() == pytest.approx(found[f"ndcg@{k}"])
    assert per_user.standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)  # deviation sqrt(2) / sqrt(2)
    assert np.isnan(per_user.standard_error(np.array([1.0])))


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    root = tmp_path_factory.mktemp("domain")
    write_planted(root, "A", seed=5, users=50, items=35)
    return root


def prepared(root, model="SASRec", **keys):
    config = config_of(root, "A", metrics=METRICS, topk=[1, 5, 10, 20], valid_metric="NDCG@10", hidden_size=16, **keys)
    config["metric_decimal_place"] = 12
    config["eval_args"] = {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": {"valid": "full", "test": "full"},
    }
    init_seed(1, True)
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    network = (get_model(model) if isinstance(model, str) else model)(config, train._dataset)
    return config, train, test, network


def test_recbole_full_sort_agrees(domain):
    config, train, test, network = prepared(domain)
    trainer = Trainer(config, network)
    trainer.eval_collector.data_collect(train)
    theirs = trainer.evaluate(test, load_best_model=False)
    lists = dense_lists.lists_of(network, test._dataset, test, "A")
    ours = ListEvaluator(config, trainer.eval_collector)(lists)
    assert len(theirs) == 4 * len(METRICS) and 0 < theirs["recall@10"] < 1
    assert {name: ours[name] for name in theirs} == pytest.approx(dict(theirs), abs=1e-9)
    assert (np.diff(lists.scores, axis=1) <= 0).all() and all(len(set(row)) == 20 for row in lists.ranked.tolist())


def test_lists_are_as_long_as_the_largest_k(domain, tmp_path):
    settings = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}, "topk": [10, 20, 30]}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    settings |= {"data_path": str(domain), "run_dir": str(tmp_path), "checkpoint_dir": str(tmp_path), "epochs": 1}
    settings |= {"train_neg_sample_args": None, "valid_metric": "MRR@10", "hidden_size": 16, "show_progress": False}
    run = single.run_domain(DomainPlan("SASRec", "A", settings))
    assert run.table.ranked.shape[1] == 30
    assert run.result["recall@30"] == (run.table.rank >= 0).mean() > run.result["recall@20"]


def test_equal_scores_keep_the_order_of_the_catalogue(domain):
    config, train, test, network = prepared(domain, toy_model.Toy)
    torch.nn.init.zeros_(network.score.weight)
    lists = dense_lists.lists_of(network, test._dataset, test, "A")
    assert (lists.ranked == np.arange(20)).all()
    assert lists.items.tokens["A"] == tuple(sorted(lists.items.tokens["A"]))
    assert (lists.rank == np.where(lists.target < 20, lists.target, -1)).all()


def test_popularity_counts_training_targets_and_breaks_ties_by_order():
    items = ItemIndex.of({"A": "abc", "B": "xy"})

    def rows(target):
        target = torch.tensor(target)
        domain = torch.from_numpy(items.domain_of_row)[target]
        return SequenceRows(
            torch.zeros(len(target), 1, dtype=torch.int64), torch.ones_like(target), target, domain, target
        )

    lists = popular(items, rows([2, 2, 1, 0, 4]), rows([1, 3]), ("u", "v"), 4)
    assert lists.ranked.tolist() == [[2, 0, 1, -1], [4, 3, -1, -1]] and lists.rank.tolist() == [2, 1]
    assert lists.scores[0].tolist() == [2, 1, 1, -np.inf]


def test_the_lists_of_several_domains_join():
    one = table(ItemIndex.of({"A": "ab"}), [0, 0], [0, -1], [[1, 0], [0, -1]])
    two = table(ItemIndex.of({"B": "xyz"}), [0], [2], [[2, 0]])
    joined = domain_run.union({"A": one, "B": two})
    assert joined.items.domains == ("A", "B") and joined.domain.tolist() == [0, 0, 1]
    assert joined.ranked.tolist() == [[1, 0], [0, -1], [4, 2]] and joined.target.tolist() == [0, -1, 4]
    assert joined.rank.tolist() == [1, -1, 0]
