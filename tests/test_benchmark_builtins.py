"""RecBole's own models beside GMC: attributes as the file has them, two stages in one run, sections, budgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recbole.config import Config
from recbole.data import create_dataset
from run_help import tiny, write_planted

import recbole_gmc
from recbole_gmc import hooks, lookup, quick, registry, sections
from recbole_gmc.errors import SettingError
from recbole_gmc.running import planning
from recbole_gmc.train.budget import Budget, BudgetReached
from recbole_gmc.values import read_yaml

CATEGORIES = ["Tools & Home,Screws,Wood Screws", "Tools & Home, Screws", " Tapes ,,Tools & Home", ""]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A domain of 18 items with categories; one more item nobody took, and one item without a row."""
    folder = write_planted(tmp_path, "Shop", seed=1)
    lines = (folder / "Shop.item").read_text().splitlines()[1:]
    rows = [f"{line.split(chr(9))[0]}\t{CATEGORIES[i % 4]}" for i, line in enumerate(lines)]
    rows = ["item_id:token\tcategories:token_seq", *rows[:-1], "nobody\tOnly Here"]
    (folder / "Shop.item").write_text("\n".join(rows) + "\n")
    (tmp_path / "Shop.yaml").write_text(
        """
FDSA:
  seq_separator: ","
  selected_features: [categories]
  load_col: {inter: [user_id, item_id, timestamp], item: [item_id, categories]}
S3Rec:
  seq_separator: ","
  item_attribute: categories
  load_col: {inter: [user_id, item_id, timestamp], item: [item_id, categories]}
"""
    )
    return tmp_path


def small(root: Path, **more) -> dict:
    sizes = {"hidden_size": 8, "inner_size": 8, "train_batch_size": 64, "epochs": 2, "MAX_ITEM_LIST_LENGTH": 5}
    return {"data_path": str(root), "run_dir": str(root / "run"), "show_progress": False, **sizes, **more}


def dataset_of(root: Path, **more):
    settings = {**planning.base_protocol(), **sections.of(read_yaml(root / "Shop.yaml"), "FDSA"), **small(root, **more)}
    return create_dataset(Config("FDSA", "Shop", [], {**settings, "train_neg_sample_args": None}))


def test_categories_are_the_entries_between_commas(shop):
    data = dataset_of(shop)
    assert set(data.field2id_token["categories"][1:]) == {"Tools & Home", "Screws", "Wood Screws", "Tapes"}
    assert set(data.field2id_token["item_id"][1:]) == {f"shop-{i}" for i in range(18)}  # as the interactions name them
    names = data.field2id_token["categories"]
    found = {}
    for item, entries in zip(data.item_feat["item_id"], data.item_feat["categories"], strict=True):
        found[data.field2id_token["item_id"][item]] = [names[entry] for entry in entries if entry]
    assert found["shop-1"] == ["Tools & Home", "Screws"] and found["shop-2"] == ["Tapes", "Tools & Home"]
    assert found["shop-3"] == [] and found["shop-17"] == []


def test_outside_our_command_line_recbole_reads_as_ever(shop):
    data = dataset_of(shop, run_dir=None, filter_inter_by_user_or_item=False)
    assert {" Tapes ", " Screws", "Only Here"} <= set(data.field2id_token["categories"])
    assert "nobody" in data.field2id_token["item_id"]


def test_fdsa_and_s3rec_take_their_columns_from_the_domain(shop):
    runs = quick.run("FDSA", "label", [], small(shop, domains=["Shop"]))
    assert len(runs["Shop"].table.items) == 18
    report = json.loads((shop / "run/result.json").read_text())
    assert report["settings"]["of_domain"]["Shop"]["selected_features"] == ["categories"]
    assert report["budget_limited"] is False


def test_s3rec_fine_tunes_what_it_pre_trained(shop, monkeypatch):
    import torch
    from recbole.model.sequential_recommender.s3rec import S3Rec

    starts, rows = [], []
    before = S3Rec.__init__

    def record(self, config, dataset):
        before(self, config, dataset)
        starts.append((self.train_stage, {name: value.clone() for name, value in self.state_dict().items()}))
        rows.append(config["train_batch_size"])

    monkeypatch.setattr(S3Rec, "__init__", record)
    runs = quick.run("S3Rec", "Shop", [], small(shop, pretrain_epochs=3, pretrain_train_batch_size=32))
    assert [stage for stage, _ in starts] == ["pretrain", "finetune"] and rows[0] == 32 != rows[1]
    first, second = (weights["item_embedding.weight"] for _, weights in starts)
    assert not torch.equal(first, second)  # the second stage starts where the first ended, not where it began
    assert runs["Shop"].facts == {"pretrain_epochs": 3} and runs["Shop"].epochs == 2
    assert set(runs["Shop"].seconds) == {"pretrain", "train", "test"}
    assert json.loads((shop / "run/result.json").read_text())["epochs"] == {"pretrain:Shop": 3, "Shop": 2}
    file = next((shop / "run/checkpoint/Shop").glob("*pretrained.pth"))
    starts.clear()
    again = quick.run("S3Rec", "Shop", [], small(shop, pre_model_path=str(file), run_dir=str(shop / "again")))
    assert [stage for stage, _ in starts] == ["finetune"]
    assert again["Shop"].result == runs["Shop"].result


def test_settings_of_ours_hold_for_recbole_s_models_or_are_said(shop, caplog):
    import torch

    before = torch.get_num_threads()
    given = small(shop, cpu_threads=before + 1, precision="bf16", valid_users=5, checkpoint_dir=str(shop / "mine"))
    try:
        quick.run("SASRec", "Shop", [], given)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert "SASRec does not read precision, valid_users" in caplog.text
    settings = json.loads((shop / "run/result.json").read_text())["settings"]
    assert settings["cpu_threads"] == before + 1 and not {"precision", "valid_users"} & settings.keys()
    assert list((shop / "mine/run/Shop").glob("*.pth")) and not (shop / "run/checkpoint").exists()


def test_a_mask_of_less_than_one_item_is_refused(shop):
    with pytest.raises(SettingError, match="mask_ratio: 0.1 of 6 items is less than one"):
        quick.run("BERT4Rec", "Shop", [], small(shop, mask_ratio=0.1, MAX_ITEM_LIST_LENGTH=6))


def test_attributes_that_no_file_names_are_refused(shop):
    (shop / "Shop.yaml").unlink()
    for model in ("FDSA", "S3Rec"):
        with pytest.raises(SettingError, match="'class' is not loaded"):
            quick.run(model, "Shop", [], small(shop))


def test_a_section_is_for_its_model_only(tmp_path):
    (tmp_path / "preset.yaml").write_text("epochs: 60\nd_model: 128\n")
    common = {
        "epochs": 5,
        "GMC": {"config_files": str(tmp_path / "preset.yaml"), "d_model": 64},
        "SASRec": {"n_layers": 1},
    }
    assert sections.for_model(common, "GMC") == {"epochs": 60, "d_model": 64}
    assert sections.for_model(common, "SASRec") == {"epochs": 5, "n_layers": 1}
    assert sections.for_model(common, "Pop") == {"epochs": 5}
    with pytest.raises(SettingError, match="d_modle: unknown setting"):
        sections.for_model({"GMC": {"d_modle": 3}}, "Pop")
    with pytest.raises(SettingError, match="no section"):
        sections.for_model({"GMC": 3}, "GMC")


def test_no_setting_is_called_like_a_model():
    from recbole_gmc.keys import known_keys

    assert not known_keys() & {*registry.entries(), *registry.recbole_names()}


def test_sections_reach_recbole_s_config_below_what_the_program_says(tmp_path):
    write_planted(tmp_path, "A", seed=1)
    (tmp_path / "bench.yaml").write_text("epochs: 5\nGMC: {epochs: 7, d_model: 32}\nSASRec: {hidden_size: 8}\n")
    config = Config("GMC", "A", [str(tmp_path / "bench.yaml")], {"data_path": str(tmp_path), "d_model": 16})
    assert (config["epochs"], config["d_model"]) == (7, 16)


def test_packaged_files_say_what_their_models_need():
    for name in ("Scientific", "Pantry", "Instruments", "Arts", "Office", "Office2014", "Beauty", "Toys"):
        file = read_yaml(lookup.packaged(f"properties/dataset/{name}.yaml"))
        assert "data_path" not in file and file["user_inter_num_interval"] == "[5,inf)"
        fdsa, s3rec = sections.of(file, "FDSA"), sections.of(file, "S3Rec")
        assert set(fdsa["selected_features"]) <= set(fdsa["load_col"]["item"])
        assert s3rec["item_attribute"] in s3rec["load_col"]["item"]
    for model in ("SASRec", "BERT4Rec", "HGN", "GRU4Rec", "FDSA", "S3Rec"):
        settings = planning.protocol_of(model)
        same = [settings[name] for name in ("loss_type", "stopping_step", "eval_step", "epochs", "train_batch_size")]
        assert same == ["CE", 8, 1, 300, 2048] and "valid_metric" not in settings


def test_a_budget_counts_its_share():
    budget = Budget(60.0, spent=30 * 60)
    half = budget.share(2)
    assert half.minutes == pytest.approx(15, abs=0.1) and not half.reached
    half.check()
    over = Budget(1.0, spent=61)
    with pytest.raises(BudgetReached):
        over.check()
    assert over.reached and over.share(3).minutes == 0 and Budget(None).share(2).minutes is None


@pytest.mark.parametrize("model", ["GRU4Rec", "S3Rec"])
def test_a_budget_ends_recbole_s_models_with_what_they_have(shop, model):
    long = {"epochs": 100_000, "stopping_step": 100_000, "pretrain_epochs": 100_000}  # only the budget can end it
    runs = quick.run(model, "Shop", [], small(shop, **long, budget_minutes=0.01))
    assert runs["Shop"].limited and len(runs["Shop"].table) == 40
    assert json.loads((shop / "run/result.json").read_text())["budget_limited"] is True


@pytest.mark.parametrize("model", ["GMC", "TIGER", "UniSRec"])
def test_a_budget_ends_registered_models_with_what_they_have(tmp_path, model):
    for number, domain in enumerate(("Big", "Small")):
        write_planted(tmp_path, domain, seed=number)
    long = {"epochs": 100_000, "stopping_step": 100_000, "lora_epochs": 100_000, "pretrain_epochs": 100_000}
    quick.run(model, "tiny", [], tiny(tmp_path, **{**long, "budget_minutes": 0.05, "hidden_size": 8}))
    report = json.loads((tmp_path / "run/result.json").read_text())
    assert report["budget_limited"] is True and report["settings"]["budget_minutes"] == 0.05
    assert report["average"]["recall@10"] >= 0


def test_the_hooks_are_for_recbole_s_models_of_our_command_line():
    assert recbole_gmc.__version__
    assert hooks._ours({"model": "SASRec", "run_dir": "x"})
    assert not hooks._ours({"model": "SASRec", "run_dir": None}) and not hooks._ours({"model": "GMC", "run_dir": "x"})
