"""A run that was stopped and resumed in a fresh process ends exactly as one that never stopped."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from run_help import python, run, tiny, write_planted
from safetensors.torch import load_file

from recbole_gmc import cli
from recbole_gmc.files import read_json
from recbole_gmc.train.trainer import GMCTrainer

# Where each run is stopped: in the middle of an epoch, or between two stages.
STOPS = {"unified": ("unified", 2), "adapter": ("lora:Small", 1), "between": ("lora:Big", 0)}
CHANGES = {
    "epochs": 3,
    "lora_epochs": 2,
    "train_batch_size": 30,
    "lora_train_batch_size": 16,
    "valid_users": 12,
    "dropout_rate": 0.2,
    "lora_dropout": 0.2,
}


class Stopped(KeyboardInterrupt):
    pass


def stop_at(patch: pytest.MonkeyPatch, stage: str, epoch: int) -> None:
    whole = GMCTrainer.backward

    def backward(self, rows):
        if self.stage is not None and self.stage.name == stage:
            entries = [entry for entry in self.record.curve if entry["stage"] == stage and "loss" in entry]
            if len(entries) == epoch and self.scheduler.last_epoch % 3 == 2:
                raise Stopped
        return whole(self, rows)

    patch.setattr(GMCTrainer, "backward", backward)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        write_planted(root, "Big", seed=1, users=20)
        write_planted(root, "Small", seed=2, users=14, items=12)
        settings = tiny(root, **CHANGES)
        run({**settings, "run_dir": str(root / "whole"), "cache_dir": str(root / "cache-whole")})
        for name, (stage, epoch) in STOPS.items():
            with pytest.MonkeyPatch.context() as stopping:
                stop_at(stopping, stage, epoch)
                with pytest.raises(Stopped):
                    run({**settings, "run_dir": str(root / name), "cache_dir": str(root / f"cache-{name}")})
            assert not (root / name / "result.json").exists()
        shutil.copytree(root / "whole", root / "finished")
        for name in ("topk.tsv", "result.json"):  # it finds its place, although its folder is another one now
            (root / "finished" / name).unlink()
    code = "import sys; from recbole_gmc import cli; sys.exit(max(cli.main([f'--resume={f}']) for f in sys.argv[1:]))"
    python("-c", code, *(str(root / name) for name in (*STOPS, "finished")), cwd=root)
    return root


@pytest.mark.parametrize("name", STOPS)
def test_a_resumed_run_ends_as_one_that_never_stopped(runs, name):
    whole, resumed = (read_json(runs / folder / "result.json") for folder in ("whole", name))
    assert resumed["hashes"] == whole["hashes"]

    def plain(curve):
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in curve]

    assert plain(resumed["curve"]) == plain(whole["curve"])
    for part in ("domains", "average", "validation", "epochs", "parameters"):
        assert resumed[part] == whole[part], part
    assert (runs / name / "topk.tsv").read_bytes() == (runs / "whole/topk.tsv").read_bytes()
    names = [f"adapters/{domain}/adapter_model.safetensors" for domain in ("Big", "Small")]
    for file in ("model.safetensors", *names):  # those of adapters that were not kept, too
        mine, theirs = (load_file(runs / folder / "checkpoint" / file) for folder in (name, "whole"))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs), file
    for stage in resumed["epochs"]:
        trained = sum(entry.get("seconds", 0.0) for entry in resumed["curve"] if entry["stage"] == stage)
        assert resumed["seconds"][stage] >= trained, "what it took before it was stopped counts"


def test_it_did_not_start_over(runs):
    logs = {name: (runs / name / "run.log").read_text() for name in STOPS}
    assert "Going on with unified at epoch 2" in logs["unified"]
    assert "Going on with lora:Small at epoch 1" in logs["adapter"]
    assert "Stages done: unified, lora:Big" in logs["adapter"]
    assert [log.count("Stage unified:") for log in logs.values()] == [2, 1, 1]


def test_a_finished_run_only_writes_its_results_again(runs):
    assert (runs / "finished/topk.tsv").read_bytes() == (runs / "whole/topk.tsv").read_bytes()
    again, whole = (read_json(runs / name / "result.json") for name in ("finished", "whole"))
    for part in ("hashes", "curve", "average", "epochs", "validation"):
        assert again[part] == whole[part], part


def test_without_a_checkpoint_it_is_said(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "none", tmp_path / "empty", runs / "Big"):
        assert cli.main([f"--resume={folder}"]) == 2
        printed = capsys.readouterr().err
        assert f"{folder}: no checkpoint here. Give a run folder" in printed and printed.count("\n") == 1


def test_changed_data_are_refused(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["test"])
    file = runs / "Small/Small.inter"
    before = file.read_bytes()
    lines = before.splitlines(keepends=True)
    try:
        file.write_bytes(b"".join([lines[0], *lines[2:], lines[1]]))
        assert cli.main([f"--resume={runs / 'finished'}"]) == 2
        assert "Small.inter: the file has changed since the run began" in capsys.readouterr().err
    finally:
        file.write_bytes(before)
