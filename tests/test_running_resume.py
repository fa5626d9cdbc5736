"""A run that takes its domains one at a time, stopped in the second one, goes on and ends as if it never had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_help import python, tiny, write_both

from recbole_gmc import cli, quick
from recbole_gmc.benchmark import run as benchmark_run
from recbole_gmc.errors import DataError
from recbole_gmc.files import locked, read_json
from recbole_gmc.places import DOMAINS_NOTE
from recbole_gmc.running import each_domain, single
from recbole_gmc.train.budget import Budget
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.trainer import GMCTrainer

pytestmark = pytest.mark.usefixtures("own_arguments")

THEIRS = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "learning_rate": 0.01}


class Stopped(KeyboardInterrupt):
    pass


def settings_of(root: Path, model: str, name: str) -> dict:
    given = tiny(root, root / name, epochs=3, cache_dir=str(root / f"cache-{name}"))
    if model == "TIGER":
        return given
    kept = ("data_path", "run_dir", "domains", "show_progress", "MAX_ITEM_LIST_LENGTH", "epochs", "train_batch_size")
    return {**{key: given[key] for key in kept}, **THEIRS}


def stop_in(patch: pytest.MonkeyPatch, model: str, domain: str) -> None:
    """In the middle of a domain's second epoch, or before it begins."""
    if model == "TIGER":
        whole = GMCTrainer.backward

        def backward(self, rows):
            if self.stage is not None and self.model.items.domains == (domain,) and self.start_epoch == 0:
                if self.scheduler.last_epoch and len(self.record.curve) == 1:
                    raise Stopped
            return whole(self, rows)

        patch.setattr(GMCTrainer, "backward", backward)
    else:
        whole_domain = single.run_domain

        def run_domain(plan, budget):
            if plan.domain == domain:
                raise Stopped
            return whole_domain(plan, budget)

        patch.setattr(single, "run_domain", run_domain)


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_it_ends_as_one_that_never_stopped(tmp_path, model, monkeypatch, capsys):
    write_both(tmp_path)
    quick.run(model, "both", (), settings_of(tmp_path, model, "whole"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, model, "Small")
        quick.run(model, "both", (), settings_of(tmp_path, model, "stopped"))
    folder = tmp_path / "stopped"
    first = folder / "domains/Big/result.json"
    before = first.stat().st_mtime_ns
    assert not (folder / "result.json").exists() and benchmark_run._resumable(folder)
    again = [f"--{name}={tmp_path / place}" for name, place in (("data_path", ""), ("run_dir", "stopped"))]
    assert cli.main(["--model=Pop", "--dataset=both", "--domains=Big,Small", *again]) == 2
    assert f"Go on with it by --resume={folder}" in capsys.readouterr().err

    half = Checkpoint.found(folder / "domains/Small")
    assert (half is None) == (model == "SASRec")
    before_stop = half.progress().record.cpu_seconds if half else 0.0  # read now: the folder is written again
    assert cli.main([f"--resume={folder}"]) == 0
    assert first.stat().st_mtime_ns == before, "a finished domain is taken as it is"
    if model == "TIGER":
        assert "Going on with unified at epoch 1" in (folder / "domains/Small/run.log").read_text()
    resumed, whole = (read_json(tmp_path / name / "result.json") for name in ("stopped", "whole"))
    for part in ("hashes", "domains", "average", "validation", "epochs", "parameters"):
        assert resumed[part] == whole[part], part
    for name in ("topk.tsv", "valid_topk.tsv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    shown = python("-m", "recbole_gmc", f"--resume={folder}", cwd=tmp_path)
    assert "average" in shown.stdout + shown.stderr, "also where nothing is left to do"
    spent = read_json(folder / DOMAINS_NOTE)["spent"]
    assert spent.keys() == {"Big", "Small"} and spent["Big"] > 0
    assert spent["Small"] > before_stop


def test_what_cannot_go_on_is_said(tmp_path, monkeypatch, capsys):
    write_both(tmp_path)
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "SASRec", "Small")
        quick.run("SASRec", "both", (), settings_of(tmp_path, "SASRec", "stopped"))
    note = (folder / DOMAINS_NOTE).read_text()
    with locked(folder / ".lock"):
        assert cli.main([f"--resume={folder}"]) == 1
        assert "another process is at work in it" in capsys.readouterr().err
    (folder / DOMAINS_NOTE).write_text(note[:-20])
    assert cli.main([f"--resume={folder}"]) == 2
    assert f"{folder / DOMAINS_NOTE}: the note on the run is damaged" in capsys.readouterr().err
    (folder / DOMAINS_NOTE).write_text(note)
    file = tmp_path / "Big/Big.inter"
    file.write_bytes(file.read_bytes() + b"u1\tbig-1\t99\n")
    assert cli.main([f"--resume={folder}"]) == 2
    assert "Big.inter: the file has changed since the run began" in capsys.readouterr().err


def test_a_share_of_a_budget_is_the_same_for_who_goes_on_in_the_middle():
    """60 minutes, a half for what began after 10: it ends after 35, whenever it is asked."""
    fresh, later = (Budget(60, spent=60 * minutes).part(2, begun=600) for minutes in (10, 20))
    assert fresh.minutes == later.minutes == 35
    assert later.spent() == pytest.approx(1200, abs=5)
    assert Budget(None, spent=5).part(2, begun=0).minutes is None


def test_a_refused_run_leaves_no_folder_but_those_of_others(tmp_path):
    with pytest.raises(DataError), each_domain._leaving_nothing_if_refused(tmp_path / "runs/mine"):
        (tmp_path / "runs/mine").mkdir(parents=True)
        (tmp_path / "runs/mine/.lock").touch()
        raise DataError("bad")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError), each_domain._leaving_nothing_if_refused(tmp_path / "runs/mine"):
        for name in ("mine", "other"):  # which another process has made meanwhile
            (tmp_path / "runs" / name).mkdir(parents=True)
        raise DataError("bad")
    assert [part.name for part in (tmp_path / "runs").iterdir()] == ["other"]
    with pytest.raises(DataError), each_domain._leaving_nothing_if_refused(tmp_path / "runs/more"):
        (tmp_path / "runs/more/checkpoint").mkdir(parents=True)
        raise DataError("bad")
    assert (tmp_path / "runs/more/checkpoint").is_dir()
