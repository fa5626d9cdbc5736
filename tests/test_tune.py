"""The tune command on planted data: chosen by validation, stages reused, gone on with, tested once."""

from __future__ import annotations

import csv
import os
import shlex
import sys
from types import SimpleNamespace

import pytest
import yaml
from run_help import tiny, write_planted

from recbole_gmc import cli, quick
from recbole_gmc.files import locked, read_json, write_json
from recbole_gmc.running import planning
from recbole_gmc.tune import command, ray_search, request, trial
from recbole_gmc.tune.trial import id_of, run_trial

SPACE = "lora_r: [2, 4]\nlora_learning_rate: [0.01, 0.03]\n"


def prepare(folder):
    """Two planted domains, the settings of a tiny run, and a space of the adapter's settings."""
    write_planted(folder, "Big", seed=1)
    write_planted(folder, "Small", seed=2, users=20)
    settings = tiny(folder, epochs=2, lora_epochs=1)
    del settings["run_dir"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "space.yaml").write_text(SPACE, encoding="utf-8")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search of four trials, to look at."""
    folder = tmp_path_factory.mktemp("searched")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert tune() == 0
    return folder / "out"


def tune(*flags):
    usual = ("--model=GMC", "--dataset=tiny", "--config_files=tiny.yaml", "--params_file=space.yaml", "--output=out")
    named = {flag.split("=")[0] for flag in flags}
    return cli.main(["tune", *(flag for flag in usual if flag.split("=")[0] not in named), *flags])


def table(folder):
    with open(folder / "trials.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_by_validation_is_tested_and_nothing_else(searched):
    rows = table(searched)
    points = {(int(row["lora_r"]), float(row["lora_learning_rate"])) for row in rows}
    assert points == {(2, 0.01), (2, 0.03), (4, 0.01), (4, 0.03)} and len(rows) == 4
    best = max(rows, key=lambda row: float(row["score"]))
    chosen = yaml.safe_load((searched / "best.yaml").read_text(encoding="utf-8"))
    assert chosen == {"lora_r": int(best["lora_r"]), "lora_learning_rate": float(best["lora_learning_rate"])}
    result = read_json(searched / "best" / "result.json")
    assert result["settings"]["lora_r"] == chosen["lora_r"]
    assert result["validation"]["score"] == pytest.approx(float(best["score"]), abs=1e-12)
    assert not list((searched / "trials").rglob("topk.tsv")) and not list((searched / "trials").rglob("result.json"))
    assert len({row["trial"] for row in rows}) == 4
    assert all("plotly" in (searched / name).read_text(encoding="utf-8") for name in ("history.html", "parallel.html"))


def test_the_command_in_best_yaml_runs_the_best_settings_again(searched, monkeypatch, tmp_path):
    monkeypatch.chdir(searched.parent)
    command = (searched / "best.yaml").read_text(encoding="utf-8").splitlines()[3]
    assert command.startswith("# recbole-gmc --model=GMC ")
    assert cli.main([*shlex.split(command)[2:], f"--run_dir={tmp_path / 'again'}"]) == 0
    lists = [(folder / "topk.tsv").read_text(encoding="utf-8") for folder in (searched / "best", tmp_path / "again")]
    assert lists[0] == lists[1]


def test_what_a_trial_does_not_change_is_trained_once(searched):
    rows = table(searched)
    assert [row["reused"] for row in rows] == ["", "unified", "unified", "unified"]
    said = (searched / "trials" / rows[1]["trial"] / "run.log").read_text(encoding="utf-8")
    assert "Unified recommender: reused from the cache" in said and "Semantic IDs: reused from the cache" in said


def test_a_stopped_search_goes_on_without_what_is_done(searched, monkeypatch):
    monkeypatch.chdir(searched.parent)
    rows = table(searched)
    trials = searched / "trials"
    for part in (trials / rows[2]["trial"] / "trial.json", searched / "trials.csv", searched / "best.yaml"):
        part.unlink()
    before = {file: file.stat().st_mtime_ns for file in trials.glob("*/trial.json")}
    assert tune() == 0
    assert all(file.stat().st_mtime_ns == time for file, time in before.items()) and len(before) == 3
    again = table(searched)
    for row in (*rows, *again):
        row.pop("seconds"), row.pop("epochs")  # what is left of the stopped one is not trained again
    assert again == rows
    assert tune("--seed=3") == 2
    assert table(searched)[0]["trial"] == rows[0]["trial"]


def test_ray_runs_the_same_points_and_neither_tool_stops_at_one_that_does_not_fit(root, monkeypatch):
    """Two codes a level are too few for the items, which only the tokenizer finds."""
    (root / "space.yaml").write_text("codebook_size: [2, 16]\n", encoding="utf-8")
    assert tune("--code_levels=2", "--tool=ray", "--output=ray") == 0
    assert tune("--code_levels=2") == 0
    ours, theirs = ({row["trial"]: row["score"] for row in table(root / name)} for name in ("out", "ray"))
    assert ours == theirs and len(ours) == 2
    for row in (*table(root / "out"), *table(root / "ray")):
        fits = row["codebook_size"] == "16"
        assert (row["state"], bool(row["error"])) == ("done" if fits else "failed", not fits)
    tried = []  # again: what made it fail may be mended
    monkeypatch.setattr(trial, "_fit", lambda plan, *rest: tried.append(plan.settings["codebook_size"]) or fail())
    assert tune("--code_levels=2") == 0
    assert tried == [2]


def test_a_failed_trial_that_is_the_best_when_tried_again_is_tested(root, monkeypatch, capsys):
    def fit(plan, *rest):
        if plan.settings["lora_r"] == 4 and not mended:
            fail()
        return {"score": plan.settings["lora_r"] / 10}

    mended, ran = [], []
    (root / "space.yaml").write_text("lora_r: [2, 4]\n", encoding="utf-8")
    monkeypatch.setattr(trial, "_fit", fit)

    def run(model, dataset, files, given):
        ran.append(given["lora_r"])
        write_json(root / "out" / "best" / "result.json", {})

    monkeypatch.setattr(quick, "run", run)
    assert tune() == tune() == 0 and ran == [2]  # the second call has nothing to do
    mended.append(True)
    assert tune() == 0 and ran == [2, 4]
    assert yaml.safe_load((root / "out" / "best.yaml").read_text(encoding="utf-8")) == {"lora_r": 4}


def test_a_retry_leaves_no_old_failure_behind(root, monkeypatch):
    """ASHA ends a trial by an exit, after which nothing is written."""
    plan = planning.plan("GMC", "tiny", ["tiny.yaml"], {})
    monkeypatch.setattr(trial, "_fit", lambda *rest: fail())
    made = run_trial(plan, {"lora_r": 2}, root / "trials")
    assert (made.state, made.error) == ("failed", "ValueError: sizes that do not fit")
    monkeypatch.setattr(trial, "_fit", lambda *rest: sys.exit(0))
    with pytest.raises(SystemExit):
        run_trial(plan, {"lora_r": 2}, root / "trials")
    assert not list((root / "trials").rglob("trial.json"))


def test_a_model_of_recbole_is_tuned_over_its_domains(root):
    (root / "width.yaml").write_text("hidden_size: [8, 16]\n", encoding="utf-8")
    flags = ("--model=SASRec", "--epochs=2", "--config_files=sasrec.yaml", "--params_file=width.yaml", "--output=sas")
    keep = {"data_path": str(root), "domains": ["Big", "Small"], "show_progress": False, "inner_size": 16}
    (root / "sasrec.yaml").write_text(yaml.safe_dump(keep), encoding="utf-8")
    assert tune(*flags) == 0
    rows = table(root / "sas")
    runs = quick.run("SASRec", "tiny", ["sasrec.yaml"], {"epochs": 2, "hidden_size": 16, "run_dir": str(root / "one")})
    one = {domain: (len(run.table), run.valid["ndcg@10"]) for domain, run in runs.items()}
    weighted = sum(users * score for users, score in one.values()) / sum(users for users, _ in one.values())
    found = next(row for row in rows if row["hidden_size"] == "16")
    assert float(found["score"]) == pytest.approx(weighted, abs=1e-4)  # RecBole rounds what it reports


def test_validations_of_adapters_are_not_reported(root):
    plan = planning.plan("GMC", "tiny", ["tiny.yaml"], {"epochs": 3, "eval_step": 1, "lora_epochs": 2})
    told = []
    made = run_trial(plan, {"lora_r": 2}, root / "trials", lambda epoch, score: told.append((epoch, score)))
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    assert made.state == "done" and made.epochs == 3 + 2 + 2


def test_a_diverging_trial_does_not_stop_the_search(root):
    (root / "space.yaml").write_text("learning_rate: [0.01, 1.0e+30]\n", encoding="utf-8")
    assert tune("--clip_grad_norm=~") == 0
    states = {float(row["learning_rate"]): row["state"] for row in table(root / "out")}
    assert states == {0.01: "done", 1e30: "failed"}
    failed = next(row for row in table(root / "out") if row["state"] == "failed")
    assert "loss" in failed["error"] and failed["score"] == ""


def fail():
    raise ValueError("sizes\nthat do not fit")


def test_where_all_trials_fail_the_reason_is_said(root, monkeypatch, capsys):
    monkeypatch.setattr(trial, "_fit", lambda *rest: fail())
    assert tune() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no trial was finished" in error and "ValueError: sizes that do not fit" in error


def test_an_interrupted_ray_search_notes_nothing_on_trials_under_way(root, monkeypatch):
    ray_tune = pytest.importorskip("ray.tune")

    def interrupted(*_, **__):
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"  # else Ray itself takes the signal
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_tune, "run", interrupted)
    monkeypatch.setattr(ray_search, "_start", lambda address: None)
    assert tune("--tool=ray") == 130
    assert not list((root / "out").rglob("trial.json")) and not (root / "out" / "trials.csv").exists()
    died = SimpleNamespace(status="ERROR", config={ray_search.POINT: {"lora_r": 2}}, error_file="x")
    assert ray_search._read(died, root / "out" / "trials").state == "failed"
    assert not list((root / "out").rglob("trial.json"))


def test_two_searches_do_not_share_a_folder(root, capsys):
    with locked(root / "out" / command.LOCK):
        assert tune() == 2
    assert "another search is at work in it" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_refused(root, capsys):
    (root / "out").mkdir()
    (root / "out" / "result.json").write_text("{}", encoding="utf-8")
    assert tune() == 2
    assert "holds result.json, but no search" in capsys.readouterr().err


def test_a_setting_that_the_model_does_not_read_is_not_searched(root, capsys):
    (root / "sasrec.yaml").write_text(yaml.safe_dump({"data_path": str(root), "domains": ["Big"]}), encoding="utf-8")
    assert tune("--model=SASRec", "--config_files=sasrec.yaml") == 2
    assert "lora_r: SASRec does not read it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output=tiny.yaml"], "--output: "),
        (["--seed=abc"], "seed: 'abc'"),
        (["--tool=ray", "--ray_address=127.0.0.1:1"], "--ray_address: nothing answers"),
        (["--lora_r=3"], "--lora_r: is fixed by a flag and in the search space"),
        (["--valid_metric=NDCG@7"], "gmc: valid_metric: "),
        (["--params_file=none.yaml"], "--params_file: no file"),
        (["--tool=optuna"], "hyperopt"),
        (["--algo=grid"], "exhaustive"),
        (["--max_evals=0"], "--max_evals=10"),
        (["--tool=ray", "--algo=bayes"], "hyperopt"),
        (["--cpus_per_trial=2"], "--tool=ray"),
        (["--run_dir=x"], "--output"),
        (["--lora_rr=3"], "lora_r"),
        (["--model=GMCC"], "GMC"),
        (["--output"], "--output=value"),
    ],
)
def test_bad_use_is_one_line(root, capsys, flags, said):
    assert tune(*flags) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (root / "out").exists()


@pytest.mark.parametrize(("tool", "module"), [("ray", "ray"), ("hyperopt", "hyperopt")])
def test_a_tool_that_is_not_there_is_said_before_any_work(root, capsys, monkeypatch, tool, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert tune(f"--tool={tool}") == 2
    error = capsys.readouterr().err
    assert tool in error.lower() and "nstall" in error and error.count("\n") == 1
    assert not (root / "out").exists()


def test_a_damaged_search_is_refused_with_the_file(root, capsys):
    (root / "out").mkdir()
    (root / "out" / "search.json").write_text("{", encoding="utf-8")
    assert tune() == 2
    error = capsys.readouterr().err
    assert "search.json" in error and error.count("\n") == 1


def test_a_bad_value_in_the_space_is_found_before_any_work(root, capsys):
    (root / "space.yaml").write_text("dropout_rate: [0.1, 1.5]\n", encoding="utf-8")
    assert tune() == 2
    assert "1.5" in capsys.readouterr().err and not (root / "out").exists()


def test_help_names_every_flag(capsys):
    assert cli.main(["tune", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"--{name}" in printed for name in request.OWN)


def test_trials_are_named_by_what_they_try():
    assert id_of({"a": 1, "b": [2]}) == id_of({"b": [2], "a": 1}) != id_of({"a": 1, "b": [3]})


def test_asha_ends_a_hopeless_trial_early(root):
    """With a learning rate of 0 the second trial stays at its first score, below what the first one has learned."""
    space = "learning_rate: [0.02, 1.0e-30]\n"
    (root / "space.yaml").write_text(space, encoding="utf-8")
    one_by_one = f"--cpus_per_trial={os.cpu_count()}"
    early = ("--tool=ray", one_by_one, "--grace_validations=3", "--reduction_factor=2", "--epochs=8", "--lora=False")
    assert tune(*early) == 0
    good, bad = sorted(table(root / "out"), key=lambda row: -float(row["learning_rate"]))
    assert (good["state"], int(good["epochs"])) == ("done", 8)
    assert (bad["state"], int(bad["epochs"])) == ("stopped", 3)
    assert float(good["score"]) > float(bad["score"])
    assert yaml.safe_load((root / "out" / "best.yaml").read_text(encoding="utf-8")) == {"learning_rate": 0.02}
    assert not list((root / "out" / "trials").rglob("result.json"))
