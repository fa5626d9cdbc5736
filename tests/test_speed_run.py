"""The speed command on a trained run: its weights and its data, and exact search beside the oracle."""

from __future__ import annotations

import json
import sys

import pytest
from run_help import run, tiny, write_planted

from recbole_gmc import cli
from recbole_gmc.speed import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    for seed, domain in enumerate(("Big", "Small")):
        write_planted(root, domain, seed=seed, items=42 - 12 * seed)  # more than there are beams
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        run(tiny(root))
    return root / "run"


@pytest.fixture
def measured(folder, tmp_path, monkeypatch):
    """The flags say other data, another device key and another seed than the run has."""
    words = ["speed", "decode", "--tiny", "--rounds=1", f"--run={folder}", "--device=cpu", "--seed=3"]
    words += [f"--data_path={tmp_path}", f"--output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["recbole-gmc", *words])

    def measure():
        assert cli.main(words) == 0
        return json.loads((tmp_path / "speed.json").read_text())["decode"]

    return measure


def named(report, key):
    """All values under a key, however deep."""
    for name, value in report.items():
        if name == key:
            yield value
        elif isinstance(value, dict):
            yield from named(value, key)


def test_a_run_is_measured_on_its_own_data(measured):
    report = measured()
    assert "trained" in report
    assert all(named(report["trained"], "same"))


def test_lists_that_are_not_the_oracles_are_told(measured, monkeypatch):
    right = decode.score_all
    monkeypatch.setattr(decode, "score_all", lambda *arguments: right(*arguments).roll(1, dims=1))
    assert not all(named(measured()["trained"], "same"))
