"""The quick start with tiny settings, by command line and by ``run_recbole``: equal hashes."""

from __future__ import annotations

import sys

import pytest
from recbole.quick_start import run_recbole
from run_help import ROOT, python

from recbole_gmc import lookup, quick_start, values
from recbole_gmc.files import read_json

FLAGS = {
    "epochs": "1",
    "lora_epochs": "1",
    "tokenizer_epochs": "3",
    "tokenizer_warmup_epochs": "2",
    "max_prefixes": "1",
    "valid_users": "20",
    "num_encoder_layers": "1",
    "num_decoder_layers": "1",
    "d_model": "16",
    "d_ff": "16",
    "num_heads": "2",
    "d_kv": "8",
    "beam_size": "10",
    "codebook_size": "64",
    "show_progress": "False",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    flags = [f"--{key}={value}" for key, value in FLAGS.items()]
    flags += [f"--cache_dir={folder / 'cache'}", "--run_dir=run"]
    return folder, python(str(ROOT / "run_recbole_gmc.py"), *flags, cwd=folder)


def test_it_prints_three_models_side_by_side(made):
    folder, done = made
    lines = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    start = lines.index(["ndcg@10", "users", "popularity", "SASRec", "GMC", "GMC", "-", "popularity"])
    table = lines[start + 2 : start + 6]
    assert [row[0] for row in table] == ["Action", "Comedy", "Drama", "average"]
    result, sasrec = (read_json(folder / name / "result.json") for name in ("run", "run/SASRec"))
    for row in table[:3]:
        part, other = result["domains"][row[0]], sasrec["domains"][row[0]]
        assert int(row[1].replace(",", "")) == part["users"] == other["users"] > 500
        assert float(row[4]) == pytest.approx(part["ndcg@10"], abs=5e-5)
        assert float(row[3]) == pytest.approx(other["ndcg@10"], abs=5e-5)
        assert float(row[5]) == pytest.approx(float(row[4]) - float(row[2]), abs=2e-4)
    assert result["hashes"]["targets"] == sasrec["hashes"]["targets"]
    assert result["hashes"]["candidates"] == sasrec["hashes"]["candidates"]


def test_run_recbole_gives_the_same(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)
    settings = {**values.parse_all(FLAGS), "cache_dir": str(tmp_path / "cache"), "run_dir": "run"}
    file = str(lookup.find_yaml("properties/quick_start.yaml"))
    result = run_recbole(model="GMC", dataset="ml-100k-genres", config_file_list=[file], config_dict=settings)
    ours, theirs = (read_json(folder / "run/result.json") for folder in (tmp_path, made[0]))
    assert ours["hashes"] == theirs["hashes"] and ours["average"] == theirs["average"]
    assert result["test_result"]["ndcg@10"] == round(ours["average"]["ndcg@10"], 4)


def test_filters_of_the_data_hold_for_all_models(tmp_path):
    changed = {"user_inter_num_interval": "[20,inf)", "rm_dup_inter": "first", "epochs": 2}
    own = quick_start._for_sasrec({"seed": 1, "lora_r": 2, **changed}, changed, tmp_path)
    assert {key: own.get(key) for key in changed} == changed and own["seed"] == 1 and "lora_r" not in own
