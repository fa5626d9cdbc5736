"""How long a run says it will take: what is counted, what is left out, and that asking changes nothing."""

from __future__ import annotations

import sys

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from run_help import tiny, write_planted

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.settings import T5Settings, keys_of
from recbole_gmc.train import estimate
from recbole_gmc.train.stage import Stage

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "readout_size": 16}


class Clock:
    """Stands still but while something works."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.left, self.sizes = 0.0, list(seconds), []

    def __call__(self) -> float:
        return self.now

    def work(self, rows: SequenceRows) -> None:
        self.sizes.append(len(rows))
        self.now += self.left.pop(0)


def some_rows(n: int) -> SequenceRows:
    one = torch.arange(n)
    return SequenceRows(one[:, None], torch.ones_like(one), one, torch.zeros_like(one), one)


def stage(name: str, domain: str | None = None, epochs: int = 10, eval_step: int = 1, batch_size: int = 8) -> Stage:
    return Stage(name, domain, epochs, batch_size, 0.1, 0.0, eval_step, 3)


@pytest.mark.parametrize(
    ("took", "seconds"),
    [
        ((9.0, 3.0), 3.0),  # long enough
        ((9.0, 1.5, 0.6), 1.05),  # two are
        ((9.0, 0.1, 0.3, 0.2), 0.2),  # three are enough however short
    ],
)
def test_the_median_of_the_calls_after_the_first(monkeypatch, took, seconds):
    clock = Clock(*took)
    monkeypatch.setattr(estimate, "perf_counter", clock)
    assert estimate.seconds_each(clock.work, some_rows(9), 4, CPU) == pytest.approx(seconds / 4)
    assert clock.sizes == [4] * len(took)


def test_fewer_rows_than_a_batch_and_none_at_all(monkeypatch):
    clock = Clock(1.0, 9.0)
    monkeypatch.setattr(estimate, "perf_counter", clock)
    assert estimate.seconds_each(clock.work, some_rows(3), 8, CPU) == 3.0
    assert estimate.seconds_each(clock.work, some_rows(0), 8, CPU) == 0.0


def test_all_stages_add_up(monkeypatch):
    clock, lists = Clock(99.0, 8.0), Clock(99.0, 6.0)
    monkeypatch.setattr(estimate, "perf_counter", lambda: clock.now + lists.now)
    loads = [
        estimate.Load(stage("unified", epochs=10, eval_step=3), 100, 20),
        estimate.Load(stage("lora:A", "A", epochs=2), 60, 10),
    ]
    first, total = estimate.of_stages(loads, clock.work, lists.work, some_rows(100), some_rows(3), CPU)
    assert (clock.sizes, lists.sizes) == ([8, 8], [3, 3])
    assert first == 100 * 1.0 + 20 * 2.0  # a second a row, two a user
    assert total == (10 * 100 + 3 * 20 * 2.0) + (2 * 60 + 2 * 10 * 2.0)


def test_all_is_never_less_than_the_first_epoch_and_its_validation():
    load = estimate.Load(stage("unified", epochs=1, eval_step=2), 100, 20)
    assert load.seconds(1.0, 2.0) == 100 * 1.0 + 20 * 2.0


@pytest.mark.parametrize("model", ["GMC", "GMCPlus"])
def test_asking_changes_nothing_and_ranks_as_validation_does(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    for seed, domain in enumerate(("Big", "Small")):
        write_planted(tmp_path, domain, seed=seed, users=25)
    settings = tiny(tmp_path)
    if model == "GMCPlus":
        settings = {name: value for name, value in settings.items() if name not in keys_of(T5Settings)} | SMALL
    config = Config(model, "tiny", config_dict=settings)
    init_seed(config["seed"], True)
    train, valid, _ = data_preparation(config, create_dataset(config))
    network = get_model(model)(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    trainer._set_ids(train._dataset, False)
    searches, rank = [], trainer.rank
    monkeypatch.setattr(
        trainer, "rank", lambda *args, **how: searches.append(network.decode.search) or rank(*args, **how)
    )
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    codes, random, shuffle = network.codes.clone(), torch.get_rng_state(), trainer.shuffle.get_state()
    searched = network.decode.search
    trainer._say_how_long(trainer._units(SequenceRows.of(train._dataset)), SequenceRows.of(valid._dataset))
    assert set(searches) == {"beam"} and network.decode.search == searched
    after = network.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(network.codes, codes)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(trainer.shuffle.get_state(), shuffle)
