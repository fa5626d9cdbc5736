"""Search spaces against hyperopt's own drawing and RecBole's reading of the same lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hyperopt.pyll import stochastic
from recbole.trainer import HyperTuning

from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_of
from recbole_gmc.tune.search import Search, SearchOptions
from recbole_gmc.tune.space import read_space

RESULT = {"model": "", "best_valid_score": 0.5, "valid_score_bigger": True, "best_valid_result": {}, "test_result": {}}

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
    by_hyperopt = [space.settings(drawn(space.for_hyperopt(), seed)) for seed in range(60)]
    for points in (by_hyperopt, space.sample(60, seed=1)):
        hold_their_ends_and_types(points)


def hold_their_ends_and_types(points):
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
    assert len(drawn_by_hyperopt(space_of(tmp_path, closed + "lora_dropout: [0.1, 0.2]\n"))) == 24
    huge = space_of(tmp_path, "seed: {quniform: [0, 4294967295, 1]}\n")
    assert huge.size == 2**32 and len({point["seed"] for point in huge.sample(5, seed=1)}) == 5
    numbers = [SearchOptions(algo, 50, None, 1).trials(space_of(tmp_path, closed)) for algo in ("bayes", "random")]
    assert numbers == [50, 12]


def test_true_is_not_one(tmp_path):
    assert space_of(tmp_path, "lora: [true, false, 1]\n").size == 3


def drawn_by_hyperopt(space, algo="exhaustive"):
    """By RecBole's HyperTuning, as the command has it draw."""
    found = []
    search = Search(None, space, SearchOptions(algo, None, None, 3), None)
    search.objective_function = lambda drawn, _: found.append(space.settings(drawn)) or RESULT
    search.trials()
    return {hash_of(point) for point in found}


def test_points_are_drawn_once_each_and_again_by_the_same_seed(tmp_path):
    lists = space_of(tmp_path, "tokenizer_hidden_sizes: [[64, 32], [32]]\nd_ff: {quniform: [64, 256, 64]}\n")
    pairs = [(sizes, width) for sizes in ([64, 32], [32]) for width in range(64, 257, 64)]
    grid = [{"tokenizer_hidden_sizes": sizes, "d_ff": width} for sizes, width in pairs]
    assert lists.sample(8, seed=1) == lists.sample(100, seed=2) == grid
    some = lists.sample(5, seed=1)
    assert some == lists.sample(5, seed=1) != lists.sample(5, seed=2)
    assert len({hash_of(point) for point in some}) == 5 and all(point in grid for point in some)
    assert drawn_by_hyperopt(lists) == {hash_of(point) for point in grid}
    signed = space_of(tmp_path, "tokenizer_beta: {quniform: [-3, 3, 1]}\nlora_dropout: {quniform: [-0.5, 0.5, 0.1]}\n")
    assert drawn_by_hyperopt(signed, "random") == {hash_of(point) for point in signed.grid()} and signed.size == 77
    open_one = space_of(tmp_path, "learning_rate: {loguniform: [1e-4, 1e-2]}\nlora_r: [2, 4]\n")
    assert len({point["learning_rate"] for point in open_one.sample(9, seed=1)}) == 9


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
        ("lora_r choice [1]\n\nlora_alpha chose [2]\n", ":3"),
        ("lora_r chose [1]\n", ":1"),
        ("lora_r: [2]\nd_ff: [8]\nlora_r: [4]\n", ":3"),
        ("d_ff: {quniform: [3, 8, 2]}\n", "multiples of its step"),
        ("lora_r: [2, 4, 2.0]\n", "named twice"),
        ("? [a, b]\n: [1]\n", "key: value"),
        ("rm_dup_inter: [first, last]\n", "same users"),
        ("model: [GMC, SASRec]\n", "one model"),
        ("domains: [[A], [A, B]]\n", "same users"),
        ("valid_metric: [NDCG@10, Recall@10]\n", "one metric"),
        ("run_dir: [a, b]\n", "folder of its own"),
        ("learning_rate choice [__import__('os').getcwd()]\n", "plain values"),
    ],
)
def test_a_bad_space_is_refused_with_its_place(tmp_path, text, said):
    with pytest.raises(SettingError) as raised:
        space_of(tmp_path, text)
    assert said in str(raised.value)
