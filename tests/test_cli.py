"""The command line: what it runs, what it prints, and how it refuses."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_model import write_domain

from recbole_gmc import cli, files, keys, lookup, quick, quick_start, registry, values
from recbole_gmc.errors import RunError
from recbole_gmc.files import read_json
from recbole_gmc.flags import flags_of
from recbole_gmc.running import planning

RUN = ["--data_path=data", "--show_progress=False", "--topk=3", "--valid_metric=NDCG@3"]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recbole-gmc", "--not=ours"])
    write_domain(tmp_path / "data/A")
    write_domain(tmp_path / "data/B", users=9, items=5)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """What the command line hands to ``quick``."""
    seen = []
    monkeypatch.setattr(quick, "run", lambda *args, **kwargs: seen.append((*args, kwargs)))
    monkeypatch.setattr(quick, "resume", lambda folder: seen.append(folder))
    monkeypatch.setattr(quick_start, "quick_start", lambda flags: seen.append(flags))
    return seen


def test_without_arguments_it_is_the_quick_start(calls):
    assert cli.main([]) == 0 and cli.main(["--seed=7"]) == 0
    assert calls == [{}, {"seed": "7"}]


def test_flags_become_settings(calls):
    arguments = ["-m", "GMC", "--dataset", "d", "--config_files=a.yaml b.yaml", "--text_encoder=a=b", "--nproc=2"]
    assert cli.main(arguments) == 0 and cli.main(["--resume=runs/x"]) == 0
    assert calls == [("GMC", "d", ["a.yaml", "b.yaml"], {"text_encoder": "a=b"}, {"nproc": 2}), "runs/x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate=1"], "lerning_rate: unknown setting (nearest: 'learning_rate')"),
        (["modles"], "unknown command 'modles' (nearest: 'models')"),
        (["models", "x"], "models: takes no arguments"),
        (["--epochs"], "--epochs: has no value"),
        (["--epochs=1", "--epochs=2"], "--epochs: given twice"),
        (["--hlep"], "hlep: unknown setting (nearest: 'help')"),
        (["-x"], "'-x' is not a setting"),
        (["--model=GMC", "x"], "'x' is not a setting"),
        (["--resume=r", "--epochs=1"], "--resume: goes on with the run's own settings, not with --epochs"),
        (["--resume="], "--resume: names no folder. Write --resume=runs/<folder>"),
        (["--model=GMC", "--dataset=A", "--nproc=two"], "--nproc: 'two' is not a whole number"),
        (["--model=GMC"], "dataset: no dataset is named. Give --dataset=<name>"),
        (["--dataset=A"], "model: no model is named. Give --model=<name>"),
        (["--model=GMCC", "--dataset=A"], "model: 'GMCC' is no model (nearest: 'GMC')"),
        (["--model=GMC", "--dataset=C", "--data_path=data"], "no property file data/C.yaml"),
        (["--model=GMC", "--dataset=../A"], "dataset '../A' cannot be a folder name"),
        (["--model=GMC", "--dataset=A", "--domains=A,../B"], "domain '../B' cannot be a folder name"),
        (["--model=SASRec", "--dataset=A", "--domains=A,../B"], "domain '../B' cannot be a folder name"),
        (["--model=GMC", "--dataset=A", *RUN, "--beam_size=2"], "topk: 3 is above beam_size 2"),
        (["--model=GMC", "--dataset=A", *RUN, '--epochs=open("f","w")'], "is not of type int"),
        (["--config_files=no.yaml"], "no file 'no.yaml'"),
        (["--model=GMC", "--dataset=A", *RUN, "--epochs=x"], "epochs: 'x' is not of type int. The default is 200"),
        (["--model=GMC", "--dataset=A", *RUN, "--metric_decimal_place=x"], "metric_decimal_place: 'x' is not of type"),
        (["--model=GMC", "--dataset=A", "--nproc=0"], "nproc: a run uses one process"),
        *(
            ([f"--model={model}", "--dataset=A", "--data_path=data", flag], message)
            for model, flag, message in [
                ("SASRec", "--epochs=x", "epochs: 'x' is not of type int. The default is 300"),
                ("SASRec", "--epochs=~", "epochs: ~ is not of type int"),
                ("SASRec", "--learning_rate=abc", "learning_rate: 'abc' is not of type float. The default is 0.001"),
                ("SASRec", "--train_batch_size=0", "train_batch_size: 0 is out of range. It must be >= 1"),
                ("SASRec", "--hidden_size=-8", "hidden_size: -8 is out of range. It must be >= 1"),
                ("SASRec", "--hidden_dropout_prob=7", "hidden_dropout_prob: 7.0 is out of range"),
                ("SASRec", "--shuffle=maybe", "shuffle: 'maybe' is not of type bool. The default is True"),
                ("SASRec", "--metrics=AUC", "metrics: 'AUC' is not computed from top-k lists"),
                ("SASRec", "--topk=0", "topk: 0 is not a whole number from 1"),
                ("SASRec", "--valid_metric=foo", "valid_metric: 'foo' is not among the metrics"),
                ("SASRec", "--eval_args={order: RO}", "eval_args: order: 'RO' is not the protocol"),
                ("SASRec", "--benchmark_filename=[a,b,c]", "benchmark_filename: ['a', 'b', 'c'] cannot be used"),
                ("SASRec", "--max_prefixes=-1", "max_prefixes: -1 is out of range"),
                ("SASRec", "--nproc=2", "nproc: a run uses one process"),
                ("SASRec", "--domains=A,A", "domains: ['A', 'A'] names a domain twice"),
                ("SASRec", "--domains=[]", "domains: the list is empty"),
                ("SASRec", "--run_dir=data/B/B.inter/x", "run_dir: "),
                ("SASRec", "--run_dir=", "run_dir: '' is not a path"),
                ("SASRec", "--dataset_save_path=x.pth", "dataset_save_path: 'x.pth' cannot be used"),
                ("SASRec", "--n_layers=-1", "n_layers: -1 is out of range. It must be >= 0"),
                ("BPR", "--train_neg_sample_args={distribution: x}", "settings of BPR: RecBole refuses this"),
                ("lightgbm", "--epochs=1", "model: lightgbm needs a package that is not installed"),
                ("GMC", "--benchmark_filename=[a,b,c]", "benchmark_filename: ['a', 'b', 'c'] cannot be used"),
                ("GMC", "--additional_feat_suffix=[x]", "additional_feat_suffix: ['x'] cannot be used"),
                ("GMC", "--eval_args={split: {RS: [8, 1, 1]}}", "eval_args: split: {'RS': [8, 1, 1]} is not the"),
                ("GMC", "--run_dir=data/B/B.inter/x", "B.inter' is no folder that can be written"),
                ("GMC", "--local_rank=0", "local_rank: a run uses one process"),
                ("GMC", "--device=cuda", "device: 'cuda' cannot be used: it follows from use_gpu and gpu_id"),
                ("GMC", "--lora_target_modules=[]", "lora_target_modules: the list is empty. Choose from: q, k, v, o"),
                ("GMC", "--lora_target_modules=[q, wi_0]", "lora_target_modules: 'wi_0' is no matrix of a T5 with"),
                ("GMC", "--clip_grad_norm={max_norm: x}", "clip_grad_norm: max_norm 'x' is no number above 0"),
                ("GMC", "--clip_grad_norm={max_norm: -1}", "clip_grad_norm: max_norm -1 is no number above 0"),
                ("SASRec", "--clip_grad_norm={norm_type: 2}", "clip_grad_norm: max_norm is missing"),
                (
                    "GMC",
                    "--text_embedding_path=a.npy",
                    "'a.npy' is not of type dict or ~. Write text_embedding_path: {<",
                ),
                ("GMC", "--gpu_id=first", "gpu_id: 'first' names no GPU"),
                ("GMC", "--clip_grad_norm={norm: 1}", "clip_grad_norm: 'norm' is unknown"),
                ("GMC", "--user_inter_num_interval=5", "user_inter_num_interval: '5' is no interval"),
                ("GMC", "--rm_dup_inter=maybe", "rm_dup_inter: 'maybe' is unknown. Choose one of: first, last"),
                ("GMC", "--seed=4294967296", "seed: 4294967296 is out of range"),
                ("GMC", "--state=loud", "state: 'loud' is no level of logging"),
                ("NeuMF", "--mlp_hidden_size=[64,x]", "mlp_hidden_size: 'x' is not a whole number"),
                ("BPR", "--embedding_size=0", "embedding_size: 0 is out of range"),
            ]
        ),
    ],
)
def test_bad_use_is_one_line_and_status_2(alone, capsys, arguments, message):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path.name for path in alone.iterdir()) == ["data"], "nothing is written"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--semantic_ids_path=nowhere", "nowhere"),
        ("--semantic_ids_path=data/B.index.json", "Domain 'A' has no semantic ID for 'i0'"),
        ("'--text_embedding_path={B: b.npy}'", "text_embedding_path: no embedding file for A"),
        ("'--text_embedding_path={A: a.npy}'", "a.npy: no such file"),
        ("--text_encoder=./nowhere", "text_encoder: no folder './nowhere'"),
        ("--code_levels=1 --codebook_size=5", "6 items of domain 'A' cannot have an ID each: 5^1 is less"),
        ("--text_encoder=data", "text_encoder data: no config.json names a model"),
    ],
)
def test_files_of_later_stages_are_refused_before_any_work(alone, capsys, flag, message):
    (alone / "data/B.index.json").write_text('{"other": ["<a_1>", "<b_1>", "<c_1>", "<d_1>"]}')
    small = ["--d_model=8", "--d_ff=8", "--num_heads=1", "--d_kv=8", "--cache_dir=cache"]
    assert cli.main(["--model=GMC", "--dataset=A", *RUN, *small, *shlex.split(flag)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in alone.iterdir()) == ["data"], "nothing is written"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--n_heads=3",
            "recbole-gmc: SASRec: RecBole refuses this (ValueError: The hidden size (64) is not a multiple",
        ),
        ("--TIME_FIELD=when", "recbole-gmc: data of A: RecBole refuses this (ValueError: [when] is not exist"),
    ],
)
def test_what_recbole_finds_wrong_before_any_work_is_one_line(alone, capsys, flag, message):
    assert cli.main(["--model=SASRec", "--dataset=A", "--data_path=data", flag]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith(message)
    assert sorted(path.name for path in alone.iterdir()) == ["data"], "nothing is written"


def test_a_failed_run_is_status_1(monkeypatch, capsys):
    def fail(error):
        def run(*args, **kwargs):
            raise error

        return run

    monkeypatch.setattr(quick_start, "quick_start", fail(RunError("loss is NaN", "epoch 3", "Lower the learning rate")))
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "recbole-gmc: epoch 3: loss is NaN. Lower the learning rate\n"
    monkeypatch.setattr(quick_start, "quick_start", fail(ZeroDivisionError("bug")))
    assert cli.main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_version_and_models(capsys):
    for arguments in (["--help"], ["-h"], ["--model=GMC", "--help"], ["models", "--help"], ["models", "-h"]):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out.startswith("usage: recbole-gmc")
    assert cli.main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("recbole_gmc ", "recbole 1.2.1", "torch ", "numpy ", "python "))
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert str(registry.entry("GMC").properties) in printed and "SASRec" in printed


@pytest.mark.parametrize("command", ["--version", "models", "--help"])
def test_a_reader_that_goes_leaves_no_traceback(command):
    """As `recbole-gmc models | head -1` does; here the reader goes before the first line."""
    read, write = os.pipe()
    os.close(read)
    place = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": place, "PYTHONWARNINGS": "ignore"}  # of packages, as they are imported
    line = [sys.executable, "-m", "recbole_gmc", command]
    done = subprocess.run(line, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_model_of_recbole_runs_once_a_domain(alone):
    (alone / "data/both.yaml").write_text("domains: [A, B]\n")
    flags = ["data_path", "show_progress", "topk", "valid_metric"]
    given = dict(zip(flags, ["data", "False", "3", "NDCG@3"], strict=True))
    runs = quick.run("Pop", "both", [], dict(given, run_dir="run"))
    assert list(runs) == ["A", "B"] and sys.argv == ["recbole-gmc", "--not=ours"]
    assert [len(run.table) for run in runs.values()] == [12, 9]
    assert set(runs["A"].result) >= {f"{metric}@3" for metric in ("recall", "ndcg", "mrr", "hit", "precision")}
    report = read_json(alone / "run/result.json")
    assert report["domains"]["B"]["users"] == 9 and report["seed"] == 2020
    assert sorted(path.name for path in alone.iterdir()) == ["data", "run"]
    assert len((alone / "run/topk.tsv").read_text().splitlines()) == 1 + 12 + 9
    assert list(quick.run("Pop", "A", [], given)) == ["A"], "a folder is one domain"


def test_the_command_line_goes_through_to_recbole(alone):
    arguments = ["--model=SASRec", "--dataset=x", "--domains=A,B", *RUN, "--epochs=1", "--hidden_size=8"]
    assert cli.main(arguments) == 0
    (log,) = alone.glob("runs/SASRec-x-*/run.log")
    text = log.read_text()
    assert "SASRec on A" in text and "SASRec on B" in text
    assert "'order': 'TO'" in text and "epoch 0 training" in text


def test_protocols_are_those_of_the_benchmark():
    for model in ("SASRec", "Pop"):
        settings = {**planning.base_protocol(), **planning.protocol_of(model)}
        assert settings["eval_args"]["split"] == {"LS": "valid_and_test"} and settings["topk"] == [5, 10]
    assert planning.protocol_of("BPR") == {}, "the protocol of all models is enough"
    assert lookup.packaged("properties/../setup.cfg") is None and lookup.packaged("properties/benchmark") is None


def test_a_refused_file_leaves_no_run_folder(tmp_path):
    folder = tmp_path / "dataset" / "A"
    folder.mkdir(parents=True)
    (folder / "A.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ti\tnan\n")
    (folder / "A.item").write_text("item_id:token\ttitle:token_seq\ni\tone\n")
    for model in ("GMC", "SASRec"):
        done = subprocess.run(
            [sys.executable, "-m", "recbole_gmc", f"--model={model}", "--dataset=A", "--cache_dir=cache"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert "dataset/A/A.inter:2: " in done.stderr.splitlines()[-1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_a_place_below_home_is_no_folder_called_tilde(tmp_path, monkeypatch):
    """Shells leave `~` as it is in `--run_dir=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("run_dir: ~/x\ncache_dir: ~\nwandb_project: ~/x\n")
    assert lookup.read_files("~/a.yaml") == {"run_dir": f"{tmp_path}/x", "cache_dir": None, "wandb_project": "~/x"}
    assert values.parse_all({"data_path": "~/x", "run_dir": "~", "wandb_project": "~/x"}) == {
        **{"data_path": f"{tmp_path}/x", "run_dir": None, "wandb_project": "~/x"}
    }
    assert flags_of(["--resume=~/x", "--run_dir=~"]) == {"resume": f"{tmp_path}/x", "run_dir": "~"}


@pytest.mark.parametrize("place", ["run_dir", "cache_dir", "checkpoint_dir"])
def test_a_place_that_takes_no_folder_is_refused(alone, capsys, monkeypatch, place):
    """Also where permissions allow it, as /proc does to root."""

    made = tempfile.mkdtemp

    def full(prefix, dir):
        if dir.name == "data":
            raise OSError("no space")
        return made(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    assert cli.main(["--model=GMC", "--dataset=A", *RUN, f"--{place}=data/new"]) == 2
    assert f"{place}: '{alone / 'data'}' is no folder that can be written" in capsys.readouterr().err


def test_only_places_that_are_written_must_be_writable(alone, capsys, monkeypatch):
    """The working folder is one only where the run's own folder would stand in it."""
    asked = []
    monkeypatch.setattr(files, "tempfile", SimpleNamespace(mkdtemp=lambda prefix, dir: asked.append(dir) or "none"))
    monkeypatch.setattr(files.os, "rmdir", lambda _: None)
    settings = {"data_path": str(alone / "data"), "topk": [3], "valid_metric": "NDCG@3"}
    keys.check({**values.read_yaml(registry.entry("GMC").properties), **settings}, "A")
    assert not asked
    quick.run_folder({"run_dir": str(alone / "there")}, "GMC", "A")
    quick.run_folder({}, "GMC", "A")
    assert asked == [alone, alone]


@pytest.mark.parametrize("left", ["result.json", "checkpoint", "domains", "checkpoint.json", "domains.json"])
def test_a_run_is_not_overwritten(alone, capsys, tmp_path, left):
    (tmp_path / "before" / left).mkdir(parents=True)
    assert cli.main(["--model=Pop", "--dataset=ml-100k", f"--run_dir={tmp_path / 'before'}"]) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and error.count("\n") == 1
