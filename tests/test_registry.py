"""RecBole finds registered models by name, whoever asks and in whichever process; and checks on their settings."""

import multiprocessing
import pickle
import re
import sys

import pytest
import toy_model
from recbole.config import Config
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model, get_trainer
from recbole.utils.case_study import full_sort_topk

import recbole_gmc
from recbole_gmc import keys, launch, registry
from recbole_gmc.errors import DataError, SettingError

YAML = "learning_rate: 0.5\nepochs: 2\ntoy_flag: 7\ntopk: [2, 3]\nvalid_metric: NDCG@3\n"
YAML += "train_neg_sample_args: ~\nload_col: ~\n"
SETTINGS = {"data_path": "data", "show_progress": False, "loss_type": "CE"}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    (tmp_path / "Toy.yaml").write_text(YAML)
    toy_model.write_domain(tmp_path / "data/A")
    parts = {"trainer": "toy_model:ToyTrainer", "dataset": "toy_model:ToyDataset"}
    recbole_gmc.register("Toy", "toy_model:Toy", properties=tmp_path / "Toy.yaml", **parts)
    yield tmp_path
    registry.unregister("Toy")


def test_a_registered_model_runs_by_name(toy):
    result = run_recbole("Toy", "A", config_dict=dict(SETTINGS))
    assert set(result["test_result"]) >= {"ndcg@2", "ndcg@3"}
    (file,) = toy.rglob("*.pth")
    config, model, dataset, _, _, test = load_data_and_model(str(file))
    assert type(model) is toy_model.Toy and type(dataset) is toy_model.ToyDataset
    assert config["toy_flag"] == 7 and config["learning_rate"] == 0.5
    assert full_sort_topk([1, 2], model, test, 3)[1].shape == (2, 3)
    assert not (toy / "log").exists() and list(toy.glob("runs/Toy-A-*/run.log"))


def test_look_ups_give_the_registered_classes(toy):
    assert get_model("Toy") is toy_model.Toy and get_model("Toy") is toy_model.Toy
    assert get_trainer(None, "Toy") is toy_model.ToyTrainer
    assert toy_model.__spec__.name == "toy_model" and pickle.loads(pickle.dumps(toy_model.Toy)) is toy_model.Toy
    assert get_trainer(None, "SASRec").__name__ == "Trainer"
    registry.unregister("Toy")
    with pytest.raises(SettingError):
        get_model("Toy")
    assert get_trainer(None, "Toy").__name__ == "Trainer"


def test_hyper_tuning_runs_a_registered_model(toy):
    pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    (toy / "run.yaml").write_text("model: Toy\ndataset: A\ndata_path: data\nshow_progress: False\nloss_type: CE\n")
    tuning = HyperTuning(
        recbole_gmc.objective_function,
        algo="exhaustive",
        params_dict={"choice": {"learning_rate": [0.1, 0.5]}},
        fixed_config_file_list=["run.yaml"],
    )
    tuning.run()
    assert tuning.best_params["learning_rate"] in (0.1, 0.5) and len(tuning.params2result) == 2


def test_spawned_processes_know_the_models():
    from recbole.quick_start import quick_start

    assert quick_start.run_recboles is launch.run_recboles
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(SettingError, match="nearest: 'GMC'.*SASRec"):
            pool.apply(quick_start.run_recboles, (0, "GMCC", "A", None, {}))


def test_an_unknown_model_is_answered_with_the_names(toy):
    for name in ("toy", "Sasrec", "x"):
        with pytest.raises(SettingError, match="Of recbole_gmc: GMC, .*Toy. Of RecBole: .*SASRec"):
            run_recbole(name, "A")


def test_names_of_recbole_cannot_be_taken():
    with pytest.raises(SettingError, match="is a model of RecBole"):
        recbole_gmc.register("SASRec", "toy_model:SASRec")
    with pytest.raises(SettingError, match="does not end in :Toy"):
        recbole_gmc.register("Toy", "toy_model:Other")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lerning_rate": 1}, "lerning_rate: unknown setting .nearest: 'learning_rate'"),
        ({"toy_flagg": 1}, "nearest: 'toy_flag'"),
        ({"epochs": "many"}, "epochs: 'many' is not of type int. The default is 2"),
        ({"lora_r": "x"}, "lora_r: 'x' is not of type int$"),
        ({"code_levels": 2.5}, "code_levels: 2.5 is not of type int$"),
        ({"learning_rate": -1}, "learning_rate: -1.0 is out of range"),
        ({"codebook_size": 1}, "codebook_size: 1 is out of range"),
        ({"learner": "adamm"}, "learner: 'adamm' is unknown"),
        ({"topk": [5, 50]}, "topk: 50 is above beam_size 20"),
        ({"topk": 0}, "topk: 0 is not a whole number"),
        ({"topk": []}, "topk: .* is not a whole number"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is out of range"),
        ({"tokenizer_hidden_sizes": ["a"]}, "tokenizer_hidden_sizes: 'a' is not a whole number"),
        ({"lora_target_modules": ["q", "foo"]}, "lora_target_modules: 'foo' is unknown"),
        ({"metrics": ["AUC"]}, "metrics: 'AUC' is not computed"),
        ({"valid_metric": "NDCG@7"}, "valid_metric: 'NDCG@7' is not among"),
        ({"benchmark_filename": ["train"]}, "benchmark_filename.*leave-one-out"),
        ({"train_neg_sample_args": {"sample_num": 1}}, "train_neg_sample_args.*softmax"),
        ({"loss_type": "BPR"}, "loss_type.*softmax"),
        ({"dataset_save_path": "x.pth"}, "dataset_save_path.*no pickles"),
        ({"repeatable": False}, "repeatable.*repeats included"),
        ({"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}}, "eval_args: split"),
        ({"eval_args": {"order": "RO"}}, "eval_args: order"),
        ({"eval_args": {"mode": "uni100"}}, "eval_args: mode"),
        ({"eval_args": {"mode": {"valid": "full", "test": "uni100"}}}, "eval_args: mode"),
        ({"domains": ["../A"]}, "domain '../A' cannot be a folder name"),
        ({"domains": ["A", "A"]}, "names a domain twice"),
        ({"domains": []}, "the list is empty"),
        ({"cache_dir": ["a"]}, "cache_dir: .'a'. is not a path"),
        ({"data_path": 5}, "data_path: 5 is not a path"),
        ({"run_dir": "data/A/A.inter"}, "run_dir: .*A.inter' is no folder that can be written"),
        ({"domains": [7]}, "Put it in quotes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(toy, given, message):
    with pytest.raises(SettingError, match=message):
        Config("Toy", "A", config_dict={**SETTINGS, **given})
    assert not (toy / "runs").exists(), "nothing is written"


@pytest.mark.parametrize("name", ["../A", "a/b", "..", "", "a\\b", "a:b"])
def test_a_data_set_s_name_cannot_leave_the_folder(toy, name):
    with pytest.raises(SettingError, match="cannot be a folder name"):
        Config("Toy", name, config_dict=dict(SETTINGS))


def test_files_are_checked_like_dicts_and_may_be_packaged_ones(toy):
    (toy / "typo.yaml").write_text("beam_sise: 20\n")
    with pytest.raises(SettingError, match="nearest: 'beam_size'"):
        Config("Toy", "A", ["typo.yaml"], dict(SETTINGS))
    config = Config("Toy", "A", ["properties/benchmark/protocol.yaml"], dict(SETTINGS, topk="5,10"))
    assert config["topk"] == [5, 10] and config["valid_metric"] == "NDCG@10"
    with pytest.raises(SettingError, match="no file 'properties/none.yaml'"):
        Config("Toy", "A", ["properties/none.yaml"], dict(SETTINGS))


def test_flags_of_the_program_around_us_only_warn(toy, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["test", "--cov=recbole_gmc", "--epochs=5"])
    config = Config("Toy", "A", config_dict=dict(SETTINGS))
    assert config["epochs"] == 5 and "cov" not in config and "cov" in caplog.text


def test_a_data_set_is_a_property_file_or_a_folder(toy):
    toy_model.write_domain(toy / "data/B")
    (toy / "data/both.yaml").write_text("domains: [A, B]\nlearning_rate: 0.25\nepochs: 9\n")
    config = Config("Toy", "both", config_dict=dict(SETTINGS, epochs=4))
    assert config["domains"] == ["A", "B"] and config["learning_rate"] == 0.25 and config["epochs"] == 4
    assert config["data_path"] == "data/both"
    label = Config("Toy", "both", config_dict=dict(SETTINGS, domains=["B"]))
    assert label["domains"] == ["B"] and label["learning_rate"] == 0.5, "given domains make the name a label"
    assert Config("Toy", "ml-100k", config_dict=dict(SETTINGS, domains="A"))["data_path"] == "data/ml-100k"
    assert Config("Toy", "A", config_dict=dict(SETTINGS))["domains"] is None
    with pytest.raises(DataError, match="no property file data/none.yaml"):
        Config("Toy", "none", config_dict=dict(SETTINGS))


def test_recbole_s_models_refuse_several_domains(toy):
    (toy / "data/both.yaml").write_text("domains: [A, B]\n")
    for dataset, given in (("A", {"domains": ["A", "B"]}), ("both", {})):
        with pytest.raises(SettingError, match="SASRec takes one domain.*run_recbole_gmc.py --model=SASRec"):
            run_recbole("SASRec", dataset, config_dict={"data_path": "data", **given})


def test_our_checkpoints_are_folders(toy, monkeypatch):
    from recbole_gmc import loading

    (toy / "checkpoint").mkdir()
    monkeypatch.setattr(loading, "load_data_and_model", lambda folder: ("ours", folder.name))
    assert load_data_and_model("checkpoint") == ("ours", "checkpoint")


def test_pickled_data_sets_are_not_read_for_registered_models(toy):
    class Exploit:
        def __reduce__(self):
            return (toy / "marker").touch, ()

    for name in ("A-ToyDataset.pth", "A-for-Toy-dataloader.pth"):
        (toy / "saved").mkdir(exist_ok=True)
        (toy / "saved" / name).write_bytes(pickle.dumps(Exploit()))
    run_recbole("Toy", "A", config_dict=dict(SETTINGS, checkpoint_dir="saved"))
    assert not (toy / "marker").exists()


def test_every_key_of_gmc_is_known_and_explained():
    from recbole_gmc.lookup import packaged
    from recbole_gmc.settings import GROUPS, keys_of
    from recbole_gmc.values import read_yaml

    file = read_yaml(packaged("properties/model/GMC.yaml"))
    keys.refuse_unknown(file)
    unexplained = {name for group in GROUPS for name in keys_of(group)} - set(file)
    assert unexplained == set()


@pytest.mark.parametrize("model", ["GMC", "GMCPlus", "IDGenRec", "P5CID", "RecFormer", "TIGER", "UniSRec", "VQRec"])
def test_every_key_of_a_model_says_its_type_and_its_source(model):
    from recbole_gmc.lookup import packaged
    from recbole_gmc.values import read_yaml

    file = packaged(f"properties/model/{model}.yaml")
    comments, key = dict.fromkeys(read_yaml(file), ""), None
    for line in file.read_text().splitlines():
        key = key if line.startswith(" ") else line.partition(":")[0]
        if key in comments:
            comments[key] += line.partition(" #")[2]
    wanted = r"\s*\((int|float|bool|str|list|dict)\b.*\[\w"
    assert [key for key, comment in comments.items() if not re.match(wanted, comment)] == []


def test_embedded_data_lies_where_the_plugin_put_it(toy, monkeypatch):
    from recbole_gmc import lookup
    from recbole_gmc.data import quick_start

    (toy / "data/made.yaml").write_text("embedded_data: some\ndomains: [A]\n")
    monkeypatch.setattr(quick_start, "prepare", lambda name, cache: cache / name)
    config = Config("Toy", "made", config_dict=dict(SETTINGS, cache_dir="cache"))
    assert config["data_path"] == "cache/some/made" and config["domains"] == ["A"]
    assert lookup.dataset_settings("made", {"data_path": "data"})["data_path"].endswith(".cache/recbole_gmc/some")
