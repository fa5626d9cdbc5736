"""What is known of RecBole's own settings must fit every one of its models."""

import pytest

from recbole_gmc import recbole_keys, registry
from recbole_gmc.errors import SettingError


def test_every_model_of_recbole_passes_with_its_own_property_files():
    assert len(registry.recbole_names()) > 80
    for model in registry.recbole_names():
        usual = recbole_keys.defaults(model)
        recbole_keys.check(model, usual, usual)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("SASRec", {"train_neg_sample_args": None, "topk": 5, "metrics": "Recall", "shuffle": 0, "use_gpu": True}),
        ("SASRec", {"learning_rate": 1, "hidden_dropout_prob": 0, "learner": "sparse_adam", "clip_grad_norm": None}),
        ("SASRec", {"gpu_id": 0, "n_layers": 0, "load_col": None, "benchmark_filename": ["a", "b", "c"]}),
        ("DiffRec", {"noise_scale": 1, "noise_min": 0.5}),  # RecBole calls both whole numbers, and gives fractions
        ("BPR", {"n_layers": "not a key of this model"}),
    ],
)
def test_what_recbole_takes_is_taken(model, given):
    recbole_keys.check(model, given, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"item_inter_num_interval": "[5,inf"}, "item_inter_num_interval: '.5,inf' is no interval"),
        ({"user_inter_num_interval": "[a,b]"}, "is no interval"),
        ({"val_interval": {"rating": "3"}}, "val_interval: rating: '3' is no interval"),
        ({"LIST_SUFFIX": ""}, "LIST_SUFFIX: the name is empty"),
        ({"train_neg_sample_args": {"sample_num": 0}}, "train_neg_sample_args: sample_num 0 is out of range"),
        ({"load_col": "x"}, "load_col: 'x' is not of type dict or ~"),
        ({"n_layers": -1}, "n_layers: -1 is out of range"),
        ({"metric_decimal_place": -1}, "metric_decimal_place: -1 is out of range"),
    ],
)
def test_what_recbole_would_fail_on_or_pass_over_is_refused(given, message):
    with pytest.raises(SettingError, match=message):
        recbole_keys.check("SASRec", given, {})


@pytest.mark.parametrize("text", ["[5,inf)", "(0,1];[3,4]", " [ -1.5 , inf ] ", "[.5,2.)"])
def test_intervals_as_recbole_writes_them(text):
    recbole_keys.check("SASRec", {"user_inter_num_interval": text, "val_interval": {"rating": text, "x": ["a"]}}, {})


@pytest.mark.parametrize("learner", ["adamm", 7, None])
def test_recbole_would_fall_back_to_adam(learner):
    with pytest.raises(SettingError, match="learner"):
        recbole_keys.check("SASRec", {"learner": learner}, {})
