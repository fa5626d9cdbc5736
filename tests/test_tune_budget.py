"""``budget_minutes`` in a search: every trial has it, a model run once a domain divides it."""

from __future__ import annotations

import shutil

import pytest
from run_help import tiny, write_both

from recbole_gmc import cli
from recbole_gmc.running import planning
from recbole_gmc.train.stages import StageTrainer
from recbole_gmc.tune import trial


def two_domains(root, model, minutes):
    write_both(root)
    keep = {"data_path": str(root), "domains": ["Big", "Small"], "show_progress": False, "topk": [5, 10]}
    return planning.plan(model, "both", (), {**keep, "budget_minutes": minutes})


def test_domains_share_the_time_of_a_trial(tmp_path, monkeypatch):
    given = []

    def fit(model, domain, files, settings, report, alone):
        given.append((domain, settings["budget_minutes"]))
        return {"score": 0.5, "valid": {}, "epochs": 1, "users": 2}

    monkeypatch.setattr(trial, "_fit_whole", fit)
    made = trial.run_trial(two_domains(tmp_path, "TIGER", 10.0), {"d_model": 8}, tmp_path / "trials")
    assert made.state == "done" and [domain for domain, _ in given] == ["Big", "Small"]
    assert given[0][1] == pytest.approx(5, abs=0.1)
    assert given[1][1] == pytest.approx(10, abs=0.1), "the first took nothing of its half"


def test_a_trial_without_a_validated_epoch_is_a_failed_one(tmp_path):
    made = trial.run_trial(two_domains(tmp_path, "SASRec", 1e-6), {"hidden_size": 8}, tmp_path / "trials")
    assert made.state == "failed" and "its time was up before the first validation" in made.error
    made = trial.run_trial(two_domains(tmp_path / "more", "SASRec", 5.0).having(epochs=1), {}, tmp_path / "others")
    assert made.state == "done" and made.score is not None


def test_keys_of_other_models_are_no_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_both(tmp_path)
    (tmp_path / "space.yaml").write_text("hidden_size: [8, 16]\n")
    words = ["tune", "--model=GMC", "--dataset=Big", "--data_path=.", "--params_file=space.yaml", "--output=out"]
    assert cli.main(words) == 2
    assert "hidden_size: GMC does not read it, so all trials would be equal" in capsys.readouterr().err


def test_a_stopped_trial_goes_on_with_what_its_domains_have(tmp_path, monkeypatch):
    """Also where the time left is another by then: what a domain has learned is not thrown away."""
    settings = {**tiny(tmp_path, epochs=1), "budget_minutes": 10.0}
    settings = {key: value for key, value in settings.items() if not key.startswith("lora")}
    write_both(tmp_path)
    plan = planning.plan("TIGER", "both", (), settings)
    first = trial.run_trial(plan, {}, tmp_path / "trials")
    (tmp_path / "trials" / first.id / trial.FILE).unlink()
    shutil.rmtree(tmp_path / "cache")  # else the unified recommender would come from there
    monkeypatch.setattr(StageTrainer, "_train_epoch", lambda *_, **__: pytest.fail("trained again"))
    again = trial.run_trial(plan, {}, tmp_path / "trials")
    assert (again.state, again.score) == ("done", first.score)


def test_a_trial_without_a_whole_checkpoint_begins_anew(tmp_path):
    write_both(tmp_path)
    plan = planning.plan("GMC", "tiny", (), tiny(tmp_path, epochs=1, lora=False))
    first = trial.run_trial(plan, {}, tmp_path / "trials")
    folder = tmp_path / "trials" / first.id
    (folder / trial.FILE).unlink()
    (folder / "checkpoint/model.safetensors").write_bytes(b"damaged")
    again = trial.run_trial(plan, {}, tmp_path / "trials")
    assert (again.state, again.score) == ("done", first.score)
