"""Small settings of the dense baselines, a model with its real inputs, and the contrastive loss written out."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole.utils import get_model

import recbole_gmc
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows

SIZES = {
    "UniSRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_exps": 3},
    "VQRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "vq_digits": 4, "vq_bits": 3, "reassign_steps": 2},
    "RecFormer": {
        "longformer_hidden_size": 16,
        "longformer_layers": 1,
        "longformer_inner_size": 16,
        "attention_window": 8,
        "max_attribute_tokens": 4,
        "max_tokens": 24,
    },
}
MODELS = tuple(SIZES)


def settings(model: str, root: Path, name: str, **changes) -> dict:
    return {
        "data_path": str(root),
        "cache_dir": str(root / "cache"),
        "run_dir": str(root / name),
        "domains": ["Big", "Small"],
        "show_progress": False,
        "text_lsa_dim": 8,
        "MAX_ITEM_LIST_LENGTH": 6,
        "precision": "fp32",
        "pretrain_epochs": 2,
        "pretrain_train_batch_size": 64,
        "pretrain_eval_step": 1,
        "pretrain_learning_rate": 1e-4,  # so that tuning has something to do
        "epochs": 2,
        "eval_step": 1,
        "train_batch_size": 32,
        "learning_rate": 0.02,
        **SIZES[model],
        **changes,
    }


def run(model: str, root: Path, name: str, **changes) -> dict:
    return recbole_gmc.run_recbole(model, "tiny", None, settings(model, root, name, **changes))


def built(model: str, root: Path, **changes) -> SimpleNamespace:
    """A model with its real inputs, before any training."""
    config = Config(model, "tiny", config_dict=settings(model, root, "none", **changes))
    train, valid, _ = GMCDataset(config).build()
    torch.manual_seed(0)
    made = get_model(model)(config, train)
    rows = SequenceRows.of(train)
    made.set_inputs(made.make_inputs(config, train, rows, False))
    return SimpleNamespace(model=made.eval(), rows=rows, config=config, valid=SequenceRows.of(valid))


def by_hand(anchor, positive, temperature, target=None, negatives="exclude", extra=None) -> float:
    """The contrastive loss, written out."""
    anchor, positive = F.normalize(anchor, dim=1).tolist(), F.normalize(positive, dim=1).tolist()
    extra = F.normalize(extra, dim=1).tolist() if extra is not None else None

    def score(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / temperature

    total = 0.0
    for i, a in enumerate(anchor):
        denominator = exp(score(a, extra[i])) if extra is not None else 0.0
        for j, p in enumerate(positive):
            if i != j and target is not None and target[i] == target[j]:
                denominator += 0.0 if negatives == "exclude" else 1.0
            else:
                denominator += exp(score(a, p))
        total -= log(exp(score(a, positive[i])) / denominator)
    return total / len(anchor)
