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


@pytest.mark.parametrize("learner", ["adamm", 7, None])
def test_recbole_would_fall_back_to_adam(learner):
    with pytest.raises(SettingError, match="learner"):
        recbole_keys.check("SASRec", {"learner": learner}, {})
