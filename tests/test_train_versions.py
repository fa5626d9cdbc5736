"""Several IDs an item in training: which codes a step sees, and which the adapters and the search."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from run_help import tiny, write_planted

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.errors import TokenizerError
from recbole_gmc.files import read_json
from recbole_gmc.settings import T5Settings, keys_of
from recbole_gmc.train.checkpoint import Checkpoint

SMALL = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "readout_size": 16}
LEARNED = {"tokenizer": "rqvae", "tokenizer_hidden_sizes": [8], "tokenizer_epochs": 6, "tokenizer_eval_step": 1}
LEARNED |= {
    "tokenizer_warmup_epochs": 1,
    "tokenizer_latent_rank": None,
    "gemm": "torch",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("versions")
    for seed, domain in enumerate(("Big", "Small")):
        write_planted(place, domain, seed=seed, users=25)
    return place


def settings(model: str, root: Path, **changes) -> dict:
    keys = tiny(root, root / "run", **LEARNED, ids_per_item=4)
    if model == "GMCPlus":
        keys = {name: value for name, value in keys.items() if name not in keys_of(T5Settings)} | SMALL
    return {**keys, **changes}


def prepared(model: str, keys: dict, monkeypatch) -> tuple:
    monkeypatch.setattr(sys, "argv", ["test"])
    config = Config(model, "tiny", config_dict=keys)
    init_seed(config["seed"], True)
    train = data_preparation(config, create_dataset(config))[0]
    network = get_model(model)(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    trainer._set_ids(train._dataset, False)
    rows = trainer._units(SequenceRows.of(train._dataset))
    return trainer, network, rows


@pytest.mark.parametrize("model, softmax", [("GMC", ""), ("GMCPlus", "table"), ("GMCPlus", "tree")])
def test_a_step_takes_one_version_and_adapters_the_final_one(model, softmax, root, monkeypatch):
    no_dropout = {"dropout_rate": 0.0} if model == "GMC" else {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    no_dropout |= {} if model == "GMC" else {"readout_dropout_prob": 0.0, "train_softmax": softmax}
    one = {"tokenizer": "rkmeans", "ids_per_item": 1}
    trainer, network, rows = prepared(model, settings(model, root, **one, **no_dropout), monkeypatch)
    ids = network.semantic_ids
    network.semantic_ids = replace(ids, earlier=np.stack([ids.codes[::-1], np.roll(ids.codes, 1, 0)]))
    versions = [*network.semantic_ids.earlier, ids.codes]
    final, losses = network.codes, []
    for version in versions:
        network.codes, network._trees = torch.from_numpy(np.asarray(version, np.int64)), {}
        losses.append(network.loss(rows).item())
    network.codes, network._trees = final, {}
    found = [trainer.backward(rows).item() for _ in range(25)]
    assert {round(loss, 4) for loss in found} == {round(loss, 4) for loss in losses}, "each one, and no other"
    assert network.codes is final
    network.eval()
    assert trainer.backward(rows).item() == pytest.approx(losses[-1], rel=1e-5)
    network.train().add_adapters().activate("Big")
    assert all(trainer.backward(rows).item() == pytest.approx(losses[-1], rel=1e-5) for _ in range(8))


def test_a_run_keeps_them_with_its_checkpoint(root):
    import recbole_gmc

    keys = settings("GMC", root, run_dir=str(root / "whole"), epochs=2, lora_epochs=1)
    recbole_gmc.run_recbole("GMC", "tiny", None, keys)
    ids = Checkpoint(root / "whole").ids
    told = read_json(root / "whole/result.json")["tokenizer"]["versions"]
    changed = ids.earlier != np.asarray(ids.codes)
    assert told["count"] == len(ids.earlier) + 1 and ids.earlier.shape[1:] == ids.codes.shape
    assert 0 <= told["first_code_changed"] <= told["any_code_changed"] <= 1 and changed.any()


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"tokenizer": "rkmeans"}, "come from states of an RQ-VAE"),
        ({"tokenizer_collisions": "count"}, "come from states of an RQ-VAE"),
        ({"unified_recommender": False}, "are what the unified recommender is trained on"),
    ],
)
def test_versions_that_nothing_would_make_or_train_on_are_refused_before_any_work(root, wrong, why, monkeypatch):
    with pytest.raises(TokenizerError, match=f"ids_per_item: 4 {why}"):
        prepared("GMC", settings("GMC", root, run_dir=str(root / "refused"), **wrong), monkeypatch)
    assert not (root / "refused").exists()
