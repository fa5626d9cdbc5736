"""What the keys of training do: rows, optimiser, order, and which of them decide if trained weights serve again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from run_help import histories, write_both
from test_train_fit import prepared

from recbole_gmc import quick
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.running import single
from recbole_gmc.train import unified_cache

pytestmark = pytest.mark.usefixtures("own_arguments")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_both(folder)
    return folder


class Found(Exception):
    """What was looked for, where a run has come far enough."""


def prefixes(items: list[str], most: int) -> list[tuple[list[str], str]]:
    """The last training rows of a user, the two held-out items left aside; histories of 6 items at most."""
    trained = items[: len(items) - 2]
    rows = [(trained[max(0, end - 6) : end], trained[end]) for end in range(1, len(trained))]
    return rows[-most:]


def test_only_the_last_prefixes_of_a_user_are_trained_on(root, monkeypatch):
    """``max_prefixes``, for a model of ours and for one of RecBole's, as the quick start compares them."""
    wanted = sorted(row for items in histories(root, "Big").values() for row in prefixes(items, 2))

    made = prepared(root, "rows", domains=["Big"], max_prefixes=2, lora=False)

    def ours(dataset, train, *rest):
        raise Found(train)

    monkeypatch.setattr(made.trainer, "_prepare", ours)
    with pytest.raises(Found) as found:
        made.trainer.fit(made.train, made.valid)
    rows: SequenceRows = found.value.args[0]
    tokens = made.model.items.tokens["Big"]
    told = [
        ([tokens[row] for row in history[:length]], tokens[target])
        for history, length, target in zip(
            rows.history.tolist(), rows.length.tolist(), rows.target.tolist(), strict=True
        )
    ]
    assert sorted(told) == wanted

    def theirs(config, train, n):
        raise Found(shortened(config, train, n)._dataset)

    shortened = single._shortened
    monkeypatch.setattr(single, "_shortened", theirs)
    settings = {"data_path": str(root), "run_dir": str(root / "sas"), "MAX_ITEM_LIST_LENGTH": 6, "max_prefixes": 2}
    with pytest.raises(Found) as found:
        quick.run("SASRec", "Big", [], {**settings, "topk": [5, 10]})
    data = found.value.args[0]
    told = [
        ([*data.id2token("item_id", history[:length])], data.id2token("item_id", target))
        for history, length, target in zip(
            data.inter_feat["item_id_list"].numpy(),
            data.inter_feat["item_length"].tolist(),
            data.inter_feat["item_id"].numpy(),
            strict=True,
        )
    ]
    assert sorted(told) == wanted


def entered(root, name, **changes):
    """A trainer that is about to train its first stage."""
    made = prepared(root, name, lora=False, **changes)

    def stop(*_: Any, **__: Any) -> None:
        raise Found

    made.trainer._train_epoch = stop
    with pytest.raises(Found):
        made.trainer.fit(made.train, made.valid, saved=False)
    return made.trainer


def test_the_optimiser_is_the_one_of_the_settings(root):
    usual = entered(root, "adamw", learner="adamw", weight_decay=0.25, learning_rate=0.02)
    (group,) = usual.optimizer.param_groups
    assert type(usual.optimizer) is torch.optim.AdamW and group["weight_decay"] == 0.25
    assert group["initial_lr"] == 0.02
    other = entered(root, "sgd", learner="SGD", clip_grad_norm={"max_norm": 0.5}, weight_decay=0.0, warmup_ratio=0.0)
    assert type(other.optimizer) is torch.optim.SGD
    before = [parameter.detach().clone() for parameter in other._trained()]
    for parameter in other._trained():
        parameter.grad = torch.full_like(parameter, 1e3)
    rate = other.optimizer.param_groups[0]["lr"]
    other.update(torch.tensor(1.0), "a test")
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, other._trained(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.5 * rate, rel=1e-3)


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_come_in_order_only_where_that_is_asked_for(root, monkeypatch, shuffle):
    made = prepared(root, f"order{shuffle}", lora=False, shuffle=shuffle, train_batch_size=16)
    seen: list[torch.Tensor] = []

    def backward(rows):
        seen.append(rows.user)
        raise Found

    monkeypatch.setattr(made.trainer, "_say_how_long", lambda *_: None)  # which takes rows at random
    monkeypatch.setattr(made.trainer, "backward", backward)
    with pytest.raises(Found):
        made.trainer.fit(made.train, made.valid, saved=False)
    first = SequenceRows.of(made.train._dataset).user[: len(seen[0])]
    assert torch.equal(seen[0], first) != shuffle


OTHERS = {
    **{"seed": 7, "shuffle": False, "learner": "sgd", "clip_grad_norm": {"max_norm": 9.0}, "MAX_ITEM_LIST_LENGTH": 5},
    **{"valid_metric": "Recall@10", "topk": [10], "beam_size": 12, "prefix_beta": 0.1, "max_prefixes": 2},
    **{"learning_rate": 0.02, "weight_decay": 0.1, "epochs": 5, "eval_step": 2, "stopping_step": 3, "valid_users": 9},
    **{"train_batch_size": 32, "lr_schedule": "linear", "warmup_ratio": 0.5, "d_model": 24, "dropout_rate": 0.3},
    **{"precision": "bf16", "chunk_tokens": 64, "codebook_size": 9, "gemm": "onednn", "beam_search": "exact"},
}
SAME = {"lora_r": 4, "lora_epochs": 9, "lora_learning_rate": 0.5, "show_progress": True, "metric_decimal_place": 6}


@pytest.fixture(scope="module")
def usual(root):
    with pytest.MonkeyPatch.context() as patch:
        return key_of(root, patch, "usual")


def key_of(root, patch, name, **changes) -> str:
    """The key under which a run looks for a unified recommender that was trained before."""

    def turn(cache, key):
        raise Found(key)

    patch.setattr("sys.argv", ["test"])
    patch.setattr(unified_cache, "turn", turn)
    made = prepared(root, f"key-{name}", **changes)
    with pytest.raises(Found) as found:
        made.trainer.fit(made.train, made.valid)
    return found.value.args[0]


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_other_settings_are_not_used_again(root, monkeypatch, usual, name):
    """Row 10 of the fault matrix, for the unified recommender."""
    assert key_of(root, monkeypatch, name, **{name: OTHERS[name]}) != usual


def test_weights_are_used_again_where_nothing_decides_otherwise(root, monkeypatch, usual):
    assert key_of(root, monkeypatch, "same", **SAME) == usual
