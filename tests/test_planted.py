"""Data with a known answer: the rule of transition is told by the text only, and noise has none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from recbole.config import Config
from run_help import run, tiny, write_planted

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate import per_user
from recbole_gmc.evaluate.popularity import popular
from recbole_gmc.evaluate.topk import TopKTable

SETTINGS = {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 16,
    "codebook_size": 16,
    "text_lsa_dim": 16,
    "train_batch_size": 128,
    "eval_step": 3,
    "epochs": 15,
    "lora_epochs": 2,
    "dropout_rate": 0.0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """12 states, each followed by one other; ``Small`` has one or two training steps a user and other items."""
    root = tmp_path_factory.mktemp("planted")
    rule = {"states": 12, "noise": 0.05}
    write_planted(root, "Big", seed=1, users=200, items=48, length=(6, 9), **rule)
    write_planted(root, "Small", seed=101, users=60, items=36, length=(3, 4), **rule)
    write_planted(root, "Noise", seed=201, users=150, items=36, length=(6, 9), rule=False, **rule)
    return root


def lists(root: Path, name: str, domains: list[str], **changes) -> tuple[TopKTable, TopKTable]:
    """The lists of GMC, and of popularity on the same rows."""
    settings = tiny(root, root / name, domains=domains, **{**SETTINGS, **changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        run(settings)
        data = GMCDataset(Config("GMC", "tiny", config_dict=settings))
    train, _, test = data.build()
    rows = SequenceRows.of(test)
    made = TopKTable.read(root / name / "topk.tsv", data.items)
    return made, popular(data.items, SequenceRows.of(train), rows, made.user, 20)


@pytest.fixture(scope="module")
def both(root):
    return lists(root, "both", ["Big", "Small"])


def test_a_rule_in_the_text_is_learned(both):
    made, popularity = both
    for position in (0, 1):
        gain = per_user.ndcg(made.of_domain(position).rank, 10) - per_user.ndcg(popularity.of_domain(position).rank, 10)
        assert gain.mean() > 0.2 and gain.mean() > 5 * per_user.standard_error(gain)


def test_the_large_domain_teaches_the_small_one(root, both):
    together = both[0].of_domain(1)
    alone, _ = lists(root, "alone", ["Small"], epochs=100, eval_step=10, stopping_step=4)
    assert together.user == alone.user and len(alone) == 60
    gain = per_user.ndcg(together.rank, 10) - per_user.ndcg(alone.rank, 10)
    # Seven other seeds gave gains of 0.30 to 0.47.
    assert gain.mean() > 0.2 and gain.mean() > 3 * per_user.standard_error(gain)


def test_nothing_is_learned_where_there_is_no_rule(root):
    made, popularity = lists(root, "noise", ["Noise"], epochs=10)
    gain = per_user.ndcg(made.rank, 10) - per_user.ndcg(popularity.rank, 10)
    assert gain.mean() < 3 * per_user.standard_error(gain)
    by_chance = sum(1 / np.log2(np.arange(10) + 2)) / 36
    found = per_user.ndcg(made.rank, 10)
    assert abs(found.mean() - by_chance) < 3 * per_user.standard_error(found)
