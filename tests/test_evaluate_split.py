"""Every model of RecBole that our commands run holds out the same interactions as GMC."""

import sys
from collections import Counter

import pytest
from data_help import chain, random_rows, write_domain
from recbole.config import Config
from recbole.data import create_dataset

import recbole_gmc  # noqa: F401
from recbole_gmc import quick
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.evaluate import split
from recbole_gmc.files import read_json
from recbole_gmc.running import planning

GIVEN = {"data_path": "data", "domains": ["A", "B"], "show_progress": False, "epochs": 1, "embedding_size": 4}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Domains with ties in time, repeated items, and users of 1, 2, 3 and more interactions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    write_domain(tmp_path / "data", "A", random_rows(1, [f"u{i}" for i in range(40)], [f"i{i}" for i in range(12)], 6))
    write_domain(tmp_path / "data", "B", random_rows(2, [f"u{i}" for i in range(30)], [f"i{i}" for i in range(9)], 5))
    return tmp_path


def held_out(dataset, part):
    """The (user, item) pairs of a split, sorted."""
    rows = part.inter_feat
    users, items = (dataset.id2token(field, rows[field]) for field in (dataset.uid_field, dataset.iid_field))
    return sorted(zip(users.tolist(), items.tolist(), strict=True))


def ours(domain):
    dataset = GMCDataset(Config("GMC", domain, config_dict={"data_path": "data"}))
    return [held_out(dataset, part) for part in dataset.build()]


@pytest.mark.parametrize("model", ["BPR", "Pop", "SASRec"])
def test_splits_equal_those_of_gmc(alone, model, caplog):
    _, valid, test = ours("A")
    settings = {**planning.base_protocol(), "data_path": "data", "loss_type": "BPR"}
    config = Config(model, "A", config_dict=settings)
    dataset = create_dataset(config)
    count = dataset.inter_feat.groupby(dataset.uid_field).size()
    assert {1, 2, 3} <= set(count), "the case is there"
    found = split.hold_out(dataset, "A").build()
    assert [held_out(dataset, part) for part in found[1:]] == [valid, test]
    assert f"A: {(count < 3).sum()} users with fewer than 3 interactions serve training only" in caplog.text
    if model != "SASRec":  # a sequential model's rows are prefixes: a user's first interaction is none
        assert sum(map(len, found)) == len(dataset.inter_feat)


def test_all_models_of_our_commands_have_the_same_targets(alone):
    """Whether they are sequential, count items, learn from pairs, pass messages in a graph, or encode users."""
    hashes, users = {}, {}
    for model in ("SASRec", "GRU4Rec", "Pop", "BPR", "LightGCN", "MultiVAE"):
        runs = quick.run(model, "both", [], {**GIVEN, "run_dir": model})
        hashes[model] = read_json(alone / model / "result.json")["hashes"]
        users[model] = [len(run.table) for run in runs.values()]
    assert {model: found["targets"] for model, found in hashes.items()} == dict.fromkeys(
        hashes, hashes["SASRec"]["targets"]
    )
    assert len({found["candidates"] for found in hashes.values()}) == 1
    assert users["LightGCN"] == [len(ours(domain)[2]) for domain in ("A", "B")]


def test_items_of_the_history_stay_candidates(alone):
    run = quick.run("Pop", "A", [], {"data_path": "data", "show_progress": False})["A"]
    first = run.table.ranked[:, 0]
    assert (first == first[0]).all(), "the most popular item comes first, also for those who had it"


def test_popularity_counts_interactions(alone):
    """RecBole's Pop alone counts an item once a batch, and sampled negatives, too."""
    run = quick.run("Pop", "A", [], {"data_path": "data", "show_progress": False})["A"]
    config = Config("BPR", "A", config_dict={**planning.base_protocol(), "data_path": "data"})
    dataset = create_dataset(config)
    counts = Counter(item for _, item in held_out(dataset, split.hold_out(dataset, "A").build()[0]))
    names = run.table.items.tokens["A"]
    listed = [counts[names[row]] for row in run.table.ranked[0] if row >= 0]
    assert len(set(listed)) > 2 and listed == sorted(counts[name] for name in names)[::-1]


def test_a_domain_that_tests_nobody_is_refused(alone):
    write_domain(alone / "data", "C", [row for i in range(5) for row in chain(f"u{i}", ["a", "b"])])
    for model in ("BPR", "SASRec"):
        with pytest.raises(DataError, match="domain C: no user has 3 interactions"):
            quick.run(model, "C", [], {"data_path": "data"})
    with pytest.raises(DataError, match="domain C: no user has 3 interactions"):
        quick.run("SASRec", "x", [], {"data_path": "data", "domains": ["A", "C"]})  # before A is trained
    assert sorted(path.name for path in alone.iterdir()) == ["data"]


def test_files_with_another_separator_are_read(alone):
    for file in (alone / "data/A").iterdir():
        file.write_text(file.read_text().replace("\t", ","))
    given = {"data_path": "data", "show_progress": False, "field_separator": ",", "epochs": 1}
    assert len(quick.run("Pop", "A", [], given)["A"].table)


def test_short_catalogues_and_no_validation_users_are_fine(alone, caplog):
    write_domain(alone / "data", "D", [row for i in range(6) for row in chain(f"u{i}", ["a", "b", f"c{i % 2}"])])
    for model in ("BPR", "SASRec"):
        run = quick.run(model, "D", [], {"data_path": "data", "show_progress": False, "epochs": 1})["D"]
        assert len(run.table) == 6 and run.result["recall@10"] == 1.0, "four items in ten places"
        assert "D has 4 items: lists end before 10" in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("FM", "model: FM needs labels or a knowledge graph"),
        ("KGAT", "model: KGAT needs labels or a knowledge graph"),
        ("KSR", "model: KSR needs labels or a knowledge graph"),
        ("FDSA", "selected_features: column 'class' is not loaded"),
    ],
)
def test_models_that_need_more_than_interactions_are_refused(alone, model, message):
    with pytest.raises(SettingError, match=message):
        quick.run(model, "A", [], {"data_path": "data"})
    assert sorted(path.name for path in alone.iterdir()) == ["data"]
