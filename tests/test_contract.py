"""What every model must do, on planted data: two domains of 210 items whose text tells what follows what.

A further model is one more line of ``MODELS``: its name and the settings with which it learns in seconds.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.config import Config
from recbole.quick_start import load_data_and_model
from recbole.utils.case_study import full_sort_topk
from run_help import write_planted

import recbole_gmc
from recbole_gmc import quick, registry
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate import per_user
from recbole_gmc.evaluate.popularity import popular
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.files import read_json
from recbole_gmc.items import ItemIndex

SEEDS = (1, 2, 3)
DOMAINS = ("Left", "Right")
ENCODER = {"hidden_size": 32, "inner_size": 64, "n_layers": 1, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1}
TRANSFER = {
    "pretrain_train_batch_size": 128,
    "pretrain_learning_rate": 0.01,
    "pretrain_eval_step": 0,
    "learning_rate": 0.01,
    "train_batch_size": 128,
    "eval_step": 2,
    "text_lsa_dim": 32,
    "precision": "fp32",
}
T5 = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_model": 32,
    "d_ff": 64,
    "num_heads": 2,
    "d_kv": 16,
    "dropout_rate": 0.0,
    "learning_rate": 0.01,
    "train_batch_size": 128,
    "eval_step": 6,
    "precision": "fp32",
}
QUANTISED = {"tokenizer": "rkmeans", "code_levels": 3, "codebook_size": 24, "code_dim": 16, "text_lsa_dim": 16}
SEQUENTIAL = {"learning_rate": 0.01, "train_batch_size": 128, "eval_step": 4, "epochs": 12}
BRANDS = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}}
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {**ENCODER, **SEQUENTIAL},
    "BERT4Rec": {**ENCODER, **SEQUENTIAL, "mask_ratio": 0.4, "epochs": 24, "eval_step": 8},
    "HGN": {**SEQUENTIAL, "embedding_size": 32},
    "GRU4Rec": {**SEQUENTIAL, "embedding_size": 32, "hidden_size": 32, "dropout_prob": 0.1},
    "FDSA": {**ENCODER, **SEQUENTIAL, **BRANDS, "selected_features": ["brand"]},
    "S3Rec": {
        **{**ENCODER, **SEQUENTIAL, **BRANDS, "item_attribute": "brand"},
        **{"pretrain_epochs": 3, "pretrain_train_batch_size": 128},
    },
    "GMC": {**T5, **QUANTISED, "epochs": 6, "lora_epochs": 1, "lora_train_batch_size": 128},
    "GMCPlus": {
        **QUANTISED,
        **{"hidden_size": 32, "inner_size": 64, "n_layers": 1, "readout_size": 32},
        **{"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1, "learning_rate": 0.01, "train_batch_size": 64},
        **{"epochs": 8, "eval_step": 4, "lora_epochs": 1},
    },
    "TIGER": {**T5, **QUANTISED, "epochs": 6},
    "P5CID": {**T5, "cid_clusters": 21, "cid_leaf_size": 20, "epochs": 12},
    "IDGenRec": {**T5, "epochs": 6},
    "UniSRec": {**ENCODER, **TRANSFER, "n_exps": 2, "pretrain_epochs": 6, "epochs": 2},
    "VQRec": {**ENCODER, **TRANSFER, "vq_digits": 8, "vq_bits": 4, "pretrain_epochs": 6, "epochs": 4},
    "RecFormer": {
        **TRANSFER,
        "longformer_hidden_size": 32,
        "longformer_layers": 1,
        "longformer_inner_size": 64,
        "longformer_dropout": 0.0,
        "attention_window": 8,
        "max_attributes": 1,
        "max_attribute_tokens": 3,
        "max_tokens": 16,
        "mlm_weight": 0.0,
        "targets_an_epoch": "all",
        "pretrain_epochs": 2,
        "epochs": 2,
    },
}


def shuffle(source: Path, target: Path, seed: int) -> None:
    """The same users, items and times, with the items of all interactions drawn anew from the same urn."""
    for domain in DOMAINS:
        head, *lines = (source / domain / f"{domain}.inter").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        items = [row[1] for row in rows]
        random.Random(seed).shuffle(items)
        folder = target / domain
        folder.mkdir(parents=True)
        lines = ["\t".join((row[0], item, row[2])) for row, item in zip(rows, items, strict=True)]
        (folder / f"{domain}.inter").write_text("\n".join([head, *lines]) + "\n")
        (folder / f"{domain}.item").write_bytes((source / domain / f"{domain}.item").read_bytes())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("contract")
    for seed, domain in enumerate(DOMAINS):  # 21 states of 10 items; each state follows exactly one
        write_planted(root / "planted", domain, seed=seed, users=200, items=210, states=21, length=(6, 9), noise=0.05)
    shuffle(root / "planted", root / "shuffled", seed=9)
    return root


class Runs:
    """The runs of one model, each made when it is first asked for."""

    def __init__(self, model: str, root: Path) -> None:
        self.model, self.root = model, root
        self._made: dict[str, Path] = {}

    def folder(self, data: str, seed: int, again: bool = False) -> Path:
        name = f"{self.model}-{data}-{seed}{'-again' if again else ''}"
        if name not in self._made:
            settings: Mapping[str, Any] = {
                "data_path": str(self.root / data),
                "cache_dir": str(self.root / f"cache{'-again' if again else ''}"),  # or nothing would be trained again
                "run_dir": str(self.root / name),
                "domains": list(DOMAINS),
                "seed": seed,
                "show_progress": False,
                "MAX_ITEM_LIST_LENGTH": 5,
                **MODELS[self.model],
            }
            quick.run(self.model, "planted", [], settings)
            self._made[name] = self.root / name
        return self._made[name]

    def data(self, data: str) -> GMCDataset:
        settings = {"data_path": str(self.root / data), "domains": list(DOMAINS), "MAX_ITEM_LIST_LENGTH": 5}
        return GMCDataset(Config("GMC", "planted", config_dict=settings))

    def table(self, data: str, seed: int) -> TopKTable:
        return TopKTable.read(self.folder(data, seed) / "topk.tsv", self.items(data))

    def items(self, data: str) -> ItemIndex:
        return self._datasets[data].items

    @cached_property
    def _datasets(self) -> dict[str, GMCDataset]:
        return {data: self.data(data) for data in ("planted", "shuffled")}

    def gain(self, data: str, seeds: tuple[int, ...]) -> np.ndarray:
        """[users]: NDCG@10 above that of popularity, the mean over the seeds."""
        train, _, test = self.data(data).build()
        rows = SequenceRows.of(test)
        names = [self.items(data).domains[position] for position in rows.domain.tolist()]
        users = tuple(test.original_user_token(rows.user))
        base = popular(self.items(data), SequenceRows.of(train), rows, users, 20)
        floor = dict(zip(zip(names, users, strict=True), per_user.ndcg(base.rank, 10), strict=True))
        gains = []
        for seed in seeds:
            table = self.table(data, seed)
            keys = [(table.items.domains[d], user) for d, user in zip(table.domain.tolist(), table.user, strict=True)]
            found = dict(zip(keys, per_user.ndcg(table.rank, 10), strict=True))
            assert found.keys() == floor.keys(), "the same users for every model"
            gains.append([found[key] - floor[key] for key in sorted(floor)])
        return np.mean(gains, axis=0)


@pytest.fixture(scope="module", params=MODELS)
def runs(request, root) -> Runs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        patch.chdir(root)
        yield Runs(request.param, root)


def test_it_beats_popularity_where_there_is_a_rule(runs):
    gain = runs.gain("planted", SEEDS)
    assert gain.mean() > 3 * per_user.standard_error(gain), gain.mean()


def test_it_does_not_where_targets_are_shuffled(runs):
    gain = runs.gain("shuffled", SEEDS)
    assert gain.mean() < 3 * per_user.standard_error(gain), gain.mean()


def test_it_lists_distinct_items_of_the_right_domain(runs):
    table = runs.table("planted", SEEDS[0])
    assert {domain: len(table.items.tokens[domain]) >= 200 for domain in DOMAINS} == dict.fromkeys(DOMAINS, True)
    for position, domain in enumerate(DOMAINS):
        rows, part = table.items.rows(domain), table.of_domain(position)
        assert len(part) == 200 and ((part.ranked >= rows.start) & (part.ranked < rows.stop)).all()
        assert all(len(set(row)) == part.ranked.shape[1] >= 20 for row in part.ranked.tolist())
        assert (np.diff(part.scores, axis=1) <= 0).all()


def test_one_seed_gives_one_result(runs):
    one, two = (runs.folder("planted", SEEDS[0], again) for again in (False, True))
    assert (one / "topk.tsv").read_bytes() == (two / "topk.tsv").read_bytes()
    assert read_json(one / "result.json")["hashes"] == read_json(two / "result.json")["hashes"]


def test_it_recommends_the_same_after_loading(runs):
    folder, table = runs.folder("planted", SEEDS[0]), runs.table("planted", SEEDS[0])
    for position, domain in enumerate(DOMAINS):
        part = table.of_domain(position)
        names = np.array(table.items.tokens[domain])
        ranked = names[part.ranked - table.items.rows(domain).start].tolist()
        again = lists_again(runs.model, folder, domain, runs.root / "planted")
        for user, items, scores in zip(part.user, ranked, part.scores, strict=True):
            found = dict(zip(items, scores.tolist(), strict=True))
            # batches of other sizes round otherwise: what is all but equal may change places
            assert len(set(again[user])) == 10
            assert [found[item] for item in again[user]] == pytest.approx(scores[:10].tolist(), abs=1e-5)


def lists_again(model: str, folder: Path, domain: str, data: Path) -> dict[str, list[str]]:
    """User -> the ten best items, from what the run left on disk."""
    entry = registry.entry(model)
    if entry is None:
        (file,) = (f for f in (folder / "checkpoint" / domain).glob("*.pth") if "pretrained" not in f.name)
        config, network, dataset, _, _, test = load_data_and_model(str(file))
        users = test.dataset.inter_feat[test.dataset.uid_field].numpy()
        found = full_sort_topk(users, network, test, 10, device=config["device"])[1]
        tokens = dataset.id2token(dataset.iid_field, found.cpu().numpy())
        return dict(zip(dataset.id2token(dataset.uid_field, users), tokens.tolist(), strict=True))
    loaded = recbole_gmc.load(folder if entry.union else folder / "domains" / domain)
    histories: dict[str, list[str]] = {}
    for line in (data / domain / f"{domain}.inter").read_text().splitlines()[1:]:  # in order of time
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(item)
    return {user: [item for item, _ in loaded.recommend(domain, h[:-1], 10)] for user, h in histories.items()}
