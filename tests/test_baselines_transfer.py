"""Whole runs of UniSRec, VQRec and RecFormer: what is frozen stays, and what a run leaves can be used again."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dense_help import MODELS, run
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model
from recbole.utils.case_study import full_sort_topk
from recbole_gmc.baselines.transfer_trainer import TransferTrainer
from run_help import histories, python, write_both, write_planted
from safetensors.torch import load_file

import recbole_gmc
from recbole_gmc import keys
from recbole_gmc.errors import CheckpointError, SettingError
from recbole_gmc.files import hash_file, read_json
from recbole_gmc.lookup import packaged
from recbole_gmc.settings import keys_of
from recbole_gmc.train import resume
from recbole_gmc.values import read_yaml

pytestmark = pytest.mark.usefixtures("own_arguments")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    write_both(root)
    return root


@pytest.fixture(scope="module")
def trained(root):
    """What a whole run of a model returns, which stands in a folder of its name; each is run once."""
    made: dict = {}

    def of(model: str):
        if model not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["test"])
                made[model] = run(model, root, model)
        return made[model]

    return of


@pytest.fixture(scope="module", params=MODELS)
def finished(request, root, trained) -> SimpleNamespace:
    """A whole run of each model."""
    returned, folder = trained(request.param), root / request.param
    weights = load_file(folder / "checkpoint/model.safetensors")
    result = read_json(folder / "result.json")
    return SimpleNamespace(model=request.param, folder=folder, weights=weights, result=result, returned=returned)


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
        "UniSRec": "setting with items dropped, no words",
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


@pytest.fixture(scope="module")
def answers(root, trained) -> dict:
    """What one fresh process recommends for every third user, from each model's folder."""
    for model in MODELS:
        trained(model)
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


def test_a_budget_leaves_every_domain_its_part(root, monkeypatch):
    """Pre-training alone would take all of it; half goes to fine-tuning, in equal parts."""
    clock = itertools.count()
    monkeypatch.setattr("recbole_gmc.train.budget.process_time", lambda: next(clock))  # a second a look
    long = {"epochs": 500, "stopping_step": 500, "pretrain_epochs": 500, "pretrain_stopping_step": 500}
    run("UniSRec", root, "budget", **long, budget_minutes=2)
    told = read_json(root / "budget/result.json")
    epochs = told["epochs"]
    assert told["budget_limited"] and 20 <= epochs["pretrain"] <= 40
    assert all(6 <= epochs[f"finetune:{domain}"] <= 30 for domain in ("Big", "Small")), epochs


def test_a_budget_leaves_both_stages_of_a_domain_their_part(root, monkeypatch):
    """RecFormer's second stage got none where the first one never ended by itself."""
    clock = itertools.count()
    monkeypatch.setattr("recbole_gmc.train.budget.process_time", lambda: next(clock))
    long = {"epochs": 500, "stopping_step": 500, "fixed_stopping_step": 500, "pretrain_epochs": 1}
    run("RecFormer", root, "stages", **long, budget_minutes=1.2)
    epochs = read_json(root / "stages/result.json")["epochs"]
    stages = [f"{stage}:{domain}" for domain in ("Big", "Small") for stage in ("finetune", "fixed")]
    assert all(epochs[stage] >= 3 for stage in stages), epochs


@pytest.mark.parametrize("model", MODELS)
def test_every_key_is_known_and_explained(model):
    file = packaged(f"properties/model/{model}.yaml")
    keys.refuse_unknown(read_yaml(file))
    for group in get_model(model).own_settings:
        assert keys_of(group).keys() <= read_yaml(file).keys()
    for name in read_yaml(file):
        (line,) = [line for line in file.read_text().splitlines() if line.startswith(f"{name}:")]
        assert "  # " in line or name in ("metrics",), line


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
