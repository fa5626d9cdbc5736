"""Search spaces against hyperopt's own drawing and RecBole's reading of the same lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hyperopt.pyll import stochastic
from recbole.trainer import HyperTuning

from recbole_gmc.errors import SettingError
from recbole_gmc.tune.space import read_space

LINES = """\
# lines
learning_rate loguniform -8,-2
dropout_rate choice [0.1,0.2, 0.3]
weight_decay uniform 0,0.5
d_ff quniform 64,256,64
"""


def space_of(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    return read_space(file)


def drawn(space, seed):
    return stochastic.sample(space, np.random.RandomState(seed))


def test_lines_mean_what_they_mean_in_recbole(tmp_path):
    ours = space_of(tmp_path, LINES)
    theirs = HyperTuning._build_space_from_file(tmp_path / "space.yaml")
    for seed in range(5):
        here, there = drawn(ours.for_hyperopt(), seed), drawn(theirs, seed)
        assert here.keys() == there.keys()
        assert all(math.isclose(here[name], there[name]) for name in here)


def test_yaml_ranges_hold_their_ends_and_types(tmp_path):
    space = space_of(
        tmp_path,
        "learning_rate: {loguniform: [1e-4, 1e-2]}\nd_ff: {quniform: [64, 256, 64]}\n"
        "weight_decay: {quniform: [0.0, 0.3, 0.1]}\ntokenizer_hidden_sizes: [[64, 32], [32]]\n",
    )
    points = [space.settings(drawn(space.for_hyperopt(), seed)) for seed in range(60)]
    rates = [point["learning_rate"] for point in points]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates) and min(rates) < 1e-3 < max(rates)
    assert {point["d_ff"] for point in points} == {64, 128, 192, 256}
    assert all(type(point["d_ff"]) is int for point in points)
    assert {point["weight_decay"] for point in points} == {0.0, 0.1, 0.2, 0.3}
    assert [64, 32] in [point["tokenizer_hidden_sizes"] for point in points]


def test_the_size_of_a_space_is_counted_where_it_can_be(tmp_path):
    closed = "lora_r: [2, 4, 8]\nd_ff: {quniform: [64, 256, 64]}\n"
    assert space_of(tmp_path, closed).size == 12
    assert space_of(tmp_path, closed + "weight_decay: {uniform: [0, 1]}\n").size is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lerning_rate: [1, 2]\n", "learning_rate"),
        ("learning_rate: {choise: [1, 2]}\n", "choice"),
        ("learning_rate: {uniform: [2, 1]}\n", "no values between"),
        ("learning_rate: {uniform: [1]}\n", "2 numbers"),
        ("learning_rate: {loguniform: [0, 1]}\n", "logarithm"),
        ("learning_rate: 0.1\n", "no range"),
        ("learning_rate: []\n", "no list"),
        ("", "no setting"),
        ("learning_rate choice [1]\nlearning_rate choice [2]\n", ":2"),
        ("learning_rate choice [__import__('os').getcwd()]\n", "plain values"),
    ],
)
def test_a_bad_space_is_refused_with_its_place(tmp_path, text, said):
    with pytest.raises(SettingError) as raised:
        space_of(tmp_path, text)
    assert said in str(raised.value)
