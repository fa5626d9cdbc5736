"""One seed in two fresh processes, by command line and by ``run_recbole``; and what the run folder gives back."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from math import log2
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
from recbole.utils.case_study import full_sort_topk
from run_help import ROOT, environment, histories, python, tiny, write_both

import recbole_gmc
from recbole_gmc.errors import DataError
from recbole_gmc.files import hash_file, read_json

API = """
import json, sys
import recbole_gmc
from recbole.quick_start import run_recbole
settings = json.load(open(sys.argv.pop()))
result = run_recbole(model="GMC", dataset="tiny", config_dict=settings)
json.dump({key: result[key] for key in ("best_valid_score", "test_result")}, open("returned.json", "w"))
"""

LOAD = """
import json, pickle, sys
import torch
import recbole_gmc.loading  # torch and transformers derive classes from pickle's as they are imported

def forbidden(*args, **kwargs):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = torch.load = forbidden
model = recbole_gmc.load(sys.argv[1])
asked = json.load(open(sys.argv[2]))
json.dump([model.recommend(domain, history, 10) for domain, history in asked], open(sys.argv[3], "w"))
"""


SECRETS = {"HF_TOKEN": "hf_4pPq1secret", "WANDB_API_KEY": "0wandb1secret", "RAY_PASSWORD": "2ray3secret"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("run")
    write_both(root)
    made = SimpleNamespace(root=root, cli=root / "cli", api=root / "api")
    changes = {"epochs": 2, "lora_epochs": 1, "dropout_rate": 0.1}
    flags = tiny(root, made.cli, **{**changes, "cache_dir": str(root / "cache-cli")})
    (root / "settings.json").write_text(json.dumps(tiny(root, made.api, **changes, cache_dir=str(root / "cache-api"))))
    command = [str(ROOT / "run_recbole_gmc.py"), "--model=GMC", "--dataset=tiny"]
    command += [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in flags.items()]
    made.command = command
    both = [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=root, env=environment() | SECRETS, stdout=-1, stderr=-2, text=True
        )
        for arguments in (command, ["-c", API, "settings.json"])
    ]
    made.printed = [process.communicate(timeout=1800)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(text[-2000:] for text in made.printed)
    made.result = read_json(made.cli / "result.json")
    made.lines = [line.split("\t") for line in (made.cli / "topk.tsv").read_text().splitlines()]
    return made


def test_the_validation_lists_are_of_the_users_and_weights_that_were_measured(runs):
    lines = [line.split("\t") for line in (runs.cli / "valid_topk.tsv").read_text().splitlines()[1:]]
    for domain in ("Big", "Small"):
        known = {user: items for user, items in histories(runs.root, domain).items() if len(items) >= 4}
        assert {line[1]: line[2] for line in lines if line[0] == domain} == {u: items[-2] for u, items in known.items()}
    ranks = [int(line[3]) for line in lines]
    ndcg = sum(1 / log2(rank + 2) for rank in ranks if 0 <= rank < 10) / len(ranks)
    assert ndcg == pytest.approx(runs.result["validation"]["score"])


def test_one_seed_gives_one_result(runs):
    """Row 21 of the fault matrix."""
    other = read_json(runs.api / "result.json")
    assert runs.result["hashes"] == other["hashes"]
    assert {"weights", "semantic_ids", "lists", "targets", "candidates", "Big.inter"} <= runs.result["hashes"].keys()
    assert runs.result["average"] == other["average"] and runs.result["validation"] == other["validation"]
    for name in ("topk.tsv", "checkpoint/model.safetensors", "semantic_ids/Big.index.json"):
        assert hash_file(runs.cli / name) == hash_file(runs.api / name), name


def test_run_recbole_returns_all_metrics(runs):
    returned = read_json(runs.root / "returned.json")
    assert returned["best_valid_score"] == runs.result["validation"]["score"]
    rounded = {name: round(value, 4) for name, value in runs.result["average"].items()}
    for domain in ("Big", "Small"):
        part = runs.result["domains"][domain]
        rounded |= {f"{domain}/{name}": round(part[name], 4) for name in runs.result["average"]}
    assert returned["test_result"] == rounded


def test_the_terminal_shows_one_table(runs):
    for printed in runs.printed:
        rows = [line.split() for line in printed.splitlines()]
        assert [row[:3] for row in rows if row[:1] == ["average"]] == [["average", "50", "30"]]
        assert "Traceback" not in printed and "Estimated time" in printed


def test_the_log_begins_with_the_command(runs):
    """As it was typed, or as the call from Python that it was."""
    first = {run: (run / "run.log").read_text().splitlines()[0].split(" INFO  ")[1] for run in (runs.cli, runs.api)}
    assert shlex.split(first[runs.cli]) == ["python", *runs.command]
    settings = read_json(runs.root / "settings.json")
    del settings["dropout_rate"]  # what the property file says, too
    assert first[runs.api] == f"run_recbole(model='GMC', dataset='tiny', config_dict={settings!r})"


def test_nothing_is_written_elsewhere(runs):
    assert {path.name for path in runs.root.iterdir()} == {
        *("Big", "Small", "cache-cli", "cache-api", "cli", "api", "settings.json", "returned.json")
    }
    assert {path.name for path in runs.cli.iterdir()} == {
        *("result.json", "topk.tsv", "valid_topk.tsv", "semantic_ids", "residuals.safetensors", "checkpoint"),
        *("run.log", "tensorboard", ".lock"),
    }


def test_secrets_of_the_environment_are_in_no_file_and_on_no_screen(runs):
    written = [path for path in runs.root.rglob("*") if path.is_file()]
    assert len(written) > 40
    for secret in SECRETS.values():
        assert not [path for path in written if secret.encode() in path.read_bytes()]
        assert not [text for text in runs.printed if secret in text]


def test_all_metrics_follow_from_the_file(runs):
    head, *lines = runs.lines
    assert head[:6] == ["domain", "user_id", "target_item", "rank", "item_1", "score_1"] and len(head) == 44
    ranks: dict[str, list[int]] = {"Big": [], "Small": []}
    for domain, user, target, rank, *pairs in lines:
        items = [item for item, score in zip(pairs[::2], pairs[1::2], strict=True) if score]
        assert int(rank) == (items.index(target) if target in items else -1)
        assert target == histories(runs.root, domain)[user][-1]
        ranks[domain].append(int(rank))
    assert {domain: len(found) for domain, found in ranks.items()} == {"Big": 30, "Small": 20}

    def metrics(found):
        made = {}
        for k in (5, 10):
            hits = [rank for rank in found if 0 <= rank < k]
            made[f"recall@{k}"] = made[f"hit@{k}"] = len(hits) / len(found)
            made[f"precision@{k}"] = len(hits) / len(found) / k
            made[f"mrr@{k}"] = sum(1 / (rank + 1) for rank in hits) / len(found)
            made[f"ndcg@{k}"] = sum(1 / log2(rank + 2) for rank in hits) / len(found)
        return made

    assert runs.result["average"] == pytest.approx(metrics(ranks["Big"] + ranks["Small"]), abs=1e-12)
    for domain, found in ranks.items():
        told = runs.result["domains"][domain]
        assert {name: told[name] for name in metrics(found)} == pytest.approx(metrics(found), abs=1e-12)
        assert told["items"] == len({item for items in histories(runs.root, domain).values() for item in items})


def test_semantic_ids_are_exported(runs):
    for domain in ("Big", "Small"):
        ids = read_json(runs.cli / f"semantic_ids/{domain}.index.json")
        assert ids.keys() == {item for items in histories(runs.root, domain).values() for item in items}
        assert len({tuple(codes) for codes in ids.values()}) == len(ids)


def test_a_loaded_model_recommends_the_same_in_a_fresh_process(runs, tmp_path):
    lines = runs.lines[1:][::3]
    asked = [(line[0], histories(runs.root, line[0])[line[1]][:-1]) for line in lines]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    python("-c", LOAD, str(runs.cli), "asked.json", "told.json", cwd=tmp_path)
    for line, told in zip(lines, read_json(tmp_path / "told.json"), strict=True):
        assert [item for item, _ in told] == line[4:24:2]
        assert [score for _, score in told] == pytest.approx([float(score) for score in line[5:24:2]], abs=1e-5)


def test_flags_of_the_program_around_are_no_settings_of_the_checkpoint(runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["my_eval.py", "--seed=1", "--topk=[3]", "--d_model=64"])
    config, *_ = load_data_and_model(str(runs.cli))
    assert (config["seed"], config["topk"], config["d_model"]) == (2020, [5, 10], 16)


def test_bad_questions_are_refused(runs):
    model = recbole_gmc.load(runs.cli)
    for domain, history, k, message in [
        ("Bog", ["big-1"], 5, "unknown domain 'Bog'. Choose one of: Big, Small"),
        ("Big", ["small-1"], 5, "items without semantic IDs: .'small-1'"),
        ("Big", [], 5, "the history is empty"),
        ("Big", ["big-1"], 21, "not within the beam of 20"),
        ("Big", ["big-1"], 0, "not within the beam of 20. Ask for 1 to 20 items"),
        ("Big", ["big-1"], 2.5, "k = 2.5 is not within the beam"),
        ("Big", "big-1", 5, "the history 'big-1' is one text"),
    ]:
        with pytest.raises(DataError, match=message):
            model.recommend(domain, history, k)
    assert len(model.recommend("Small", ["small-1"], 20)) == 12, "a catalogue of 12"


def test_recbole_functions_take_the_checkpoint_folder(runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(runs.root)
    config, model, dataset, train, valid, test = load_data_and_model(str(runs.cli / "checkpoint"))
    users = test.dataset.inter_feat[test.dataset.uid_field]
    scores, found = full_sort_topk(users.numpy(), model, test, 10, device=config["device"])
    tokens = dataset.id2token(dataset.iid_field, found.numpy())
    wanted = {(line[0], line[1]): line[4:24:2] for line in runs.lines[1:]}
    names = [str(token).split("/", 1) for token in dataset.id2token(dataset.uid_field, users.numpy())]
    assert len(names) == 50
    for (domain, user), row in zip(names, tokens, strict=True):
        assert [str(token).split("/", 1)[1] for token in row] == wanted[domain, user]
    assert torch.isfinite(scores).all() and (np.diff(scores.numpy(), axis=1) <= 0).all()

    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    for parameter in model.parameters():
        parameter.data.zero_()
    again = trainer.evaluate(test, load_best_model=True, model_file=str(runs.cli / "checkpoint"))
    rounded = {name: round(value, 4) for name, value in runs.result["average"].items()}
    assert {name: again[name] for name in rounded} == rounded
    assert trainer.evaluate(valid, load_best_model=False) == runs.result["validation"]["metrics"]
