"""What users of RecBole are used to: partial protocols, columns of other names, folders, levels of logging, curves."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
from run_help import histories, tiny, write_both
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import recbole_gmc
from recbole_gmc import cli, keys, quick, run_recbole
from recbole_gmc.errors import CheckpointError, DataError, SettingError, TokenizerError
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.files import read_json
from recbole_gmc.running import planning
from recbole_gmc.train.curves import StageCurves

QUICK = {"epochs": 1, "show_progress": False, "topk": [5, 10]}


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])


@pytest.fixture
def root(tmp_path):
    write_both(tmp_path)
    return tmp_path


def settings_of(root, name="run", **more):
    return {**QUICK, "data_path": str(root), "run_dir": str(root / name), **more}


@pytest.mark.parametrize("part", [{"mode": "full"}, {"split": {"LS": "valid_and_test"}, "mode": "full"}])
@pytest.mark.parametrize("model", ["Pop", "SASRec"])
def test_a_part_of_the_protocol_is_the_whole_protocol(root, model, part):
    """RecBole completes it by its own defaults, which for general models are a random split."""
    found = planning.plan(model, "Big", (), settings_of(root, eval_args=part))
    assert found.settings["eval_args"] == keys.LEAVE_ONE_OUT


def test_held_out_items_are_the_last_ones_also_with_a_part_of_the_protocol(root):
    runs = quick.run("Pop", "Big", [], settings_of(root, eval_args={"mode": "full"}))
    table: TopKTable = runs["Big"].table
    named = [table.items.tokens["Big"][row] for row in table.target]
    assert dict(zip(table.user, named, strict=True)) == {u: items[-1] for u, items in histories(root, "Big").items()}


def test_columns_may_have_other_names(root):
    file = root / "Big/Big.inter"
    head, rest = file.read_text().split("\n", 1)
    file.write_text("uid:token\tiid:token\tts:float\n" + rest)
    named = {"USER_ID_FIELD": "uid", "ITEM_ID_FIELD": "iid", "TIME_FIELD": "ts"}
    runs = quick.run("SASRec", "Big", [], settings_of(root, **named))
    assert len(runs["Big"].table) == len(histories(root, "Big"))
    kept = {"ts": "[1,inf)", "stars": "[2,5]"}
    plan = planning.plan("SASRec", "Big", (), settings_of(root, **named, val_interval=kept))
    assert plan.settings["load_col"] == {"inter": ["uid", "iid", "ts", "stars"]}


def test_wandb_that_is_not_there_is_said_for_every_model(root, monkeypatch):
    monkeypatch.setattr(keys, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    for model in ("GMC", "SASRec"):
        with pytest.raises(SettingError, match="wandb is not installed"):
            planning.plan(model, "Big", (), settings_of(root, log_wandb=True)).refuse_bad(root / "run")


@pytest.mark.parametrize("asked", [{"gpu_id": "0"}, {"use_gpu": True}, {"gpu_id": 5, "use_gpu": True}])
def test_a_gpu_that_is_not_there_is_refused(root, monkeypatch, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="torch finds no GPU"):
        planning.plan("GMC", "Big", (), settings_of(root, **asked))
    planning.plan("GMC", "Big", (), settings_of(root, gpu_id="0", use_gpu=False))
    planning.plan("GMC", "Big", (), settings_of(root, gpu_id=""))


def test_learners_are_taken_as_recbole_takes_them():
    for model in (None, "SASRec"):
        keys.recbole_keys.check(model, {"learner": "Adam"}, {})
    with pytest.raises(SettingError, match="learner"):
        keys.recbole_keys.check(None, {"learner": "Adamm"}, {})


def test_columns_that_only_recbole_would_load_are_said():
    assert keys.unread("GMC", ["load_col", "unload_col", "eval_batch_size", "worker"]) == (
        *("eval_batch_size", "load_col", "unload_col", "worker"),
    )
    assert not keys.unread("SASRec", ["load_col", "unload_col", "eval_batch_size", "worker"])


def test_a_run_shows_its_table_also_where_only_warnings_are_logged(root, caplog):
    words = ["--model=Pop", "--dataset=Big", f"--data_path={root}", f"--run_dir={root / 'run'}", "--state=WARNING"]
    assert cli.main(words) == 0
    assert "average" in caplog.text and str(root / "run") in caplog.text and "number of users" not in caplog.text


def test_a_call_from_python_does_not_overwrite_a_run_either(root):
    settings = tiny(root, epochs=1, lora=False)
    run_recbole("GMC", "tiny", None, settings)
    before = read_json(root / "run/result.json")["hashes"]
    with pytest.raises(SettingError, match="run_dir: .* holds a run already. Go on with it by --resume"):
        run_recbole("GMC", "tiny", None, {**settings, "seed": 7})
    config, model, _, train, valid, _ = load_data_and_model(root / "run")
    with pytest.raises(SettingError, match="holds a run already"):
        get_trainer(config["MODEL_TYPE"], config["model"])(config, model).fit(train, valid)
    assert read_json(root / "run/result.json")["hashes"] == before


def test_a_run_of_one_domain_of_recbole_s_goes_on_too(root, caplog):
    settings = settings_of(root)
    first = quick.run("SASRec", "Big", [], settings)["Big"]
    caplog.clear()
    assert cli.main([f"--resume={root / 'run'}"]) == 0
    assert "average" in caplog.text and "training [time" not in caplog.text, "finished: told again"
    (root / "run/result.json").unlink()
    again = quick.resume(str(root / "run"))["Big"]
    assert again.table.ranked.tolist() == first.table.ranked.tolist()


@pytest.mark.parametrize(("model", "where"), [("TIGER", "domains/Big"), ("SASRec", "checkpoint/Big/SASRec")])
def test_where_the_weights_of_single_domains_are_is_said(root, model, where):
    own = tiny(root, epochs=1) if model == "TIGER" else settings_of(root, domains=["Big", "Small"])
    own = {key: value for key, value in own.items() if not key.startswith("lora")}
    quick.run(model, "both", [], own)
    for load in (recbole_gmc.load, load_data_and_model):
        with pytest.raises(CheckpointError, match=where):
            load(root / "run")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"text_embedding_path": {"Big": "x.npy"}}, "text_embedding_path"),
        ({"codebook_size": 4, "code_levels": 2}, "items of domain 'Big' cannot have an ID each"),
        ({}, "Small.item: the file does not exist"),
    ],
)
def test_all_domains_are_looked_at_before_the_first_is_trained(root, change, error):
    if not change:
        (root / "Small/Small.item").unlink()
    own = {key: value for key, value in tiny(root, domains=["Small", "Big"]).items() if not key.startswith("lora")}
    with pytest.raises((SettingError, DataError, TokenizerError), match=error):
        quick.run("TIGER", "both", [], {**own, **change})
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brnd"]}}, "'brnd' .*'brand'"),
        ({"user_inter_num_interval": "[99,inf)"}, "Big"),
    ],
)
def test_what_a_later_domain_lacks_is_found_before_the_first_is_trained(root, settings, error):
    with pytest.raises(DataError, match=error):
        quick.run("SASRec", "both", [], settings_of(root, domains=["Big", "Small"], **settings))
    assert not (root / "run").exists()


def test_places_of_home_are_the_same_for_every_command(root, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
    words = ["benchmark", "--models=Pop", "--dataset=Big", f"--data_path={root}", "--output=~/bench", "--topk=[5,10]"]
    assert cli.main(words) == 0 and (root / "bench/table.md").is_file()
    assert cli.main(["report", "~/bench", "--output=~/page", "--pictures=False"]) == 0
    assert (root / "page/report.html").is_file() and not (root / "~").exists()
    assert cli.main(["benchmark", "--compare=~/bench/Pop,~/bench/Pop-2020"]) == 0
    assert cli.main(["speed", "decode", "--run=~/none"]) == 2
    assert str(root / "none") in capsys.readouterr().err


def test_stages_have_curves_of_their_own(root):
    run_recbole("GMC", "tiny", None, tiny(root, epochs=2, lora_epochs=1))
    found = EventAccumulator(str(root / "run/tensorboard"))
    found.Reload()
    stages = ("unified", "lora:Big", "lora:Small")
    assert {f"Loss/Train/{stage}" for stage in stages} <= {*found.Tags()["scalars"]}
    assert [event.step for event in found.Scalars("Loss/Train/unified")] == [0, 1]
    assert [event.step for event in found.Scalars("Loss/Train/lora:Small")] == [0]


def test_stages_have_metrics_of_their_own_in_wandb(root, monkeypatch):
    """A stand-in for the package records what RecBole's logger hands to it."""
    logged, steps = [], {}
    wandb = SimpleNamespace(
        **{"__spec__": object(), "run": SimpleNamespace(summary={}), "log": lambda found, commit: logged.append(found)},
        define_metric=lambda name, step_metric: steps.update({name: step_metric}),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_recbole("GMC", "tiny", None, tiny(root, epochs=2, lora_epochs=1, log_wandb=True, wandb_project="shops"))
    assert steps == {"train/*": "train_step", "valid/*": "valid_step"}
    for stage, epochs in (("unified", [0, 1]), ("lora:Big", [0]), ("lora:Small", [0])):
        name = f"train/{stage}/train_loss"
        assert [found["train_step"] for found in logged if name in found] == epochs
        assert any(f"valid/{stage}/ndcg@10" in found for found in logged)
    assert not any("train/train_loss" in found for found in logged) and "eval/ndcg@10" in wandb.run.summary


def test_curves_hand_the_rest_on():
    said = []
    writer = SimpleNamespace(add_scalar=lambda *a, **k: said.append(a), close=lambda: said.append("closed"))
    curves = StageCurves(writer, "unified")
    curves.add_scalar("Loss/Train", 0.5, 3)
    curves.close()
    assert said == [("Loss/Train/unified", 0.5, 3), "closed"]
