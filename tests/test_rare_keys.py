"""Keys of ``properties/model/GMC.yaml`` that no other test sets: what they say is what happens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from run_help import tiny, write_planted
from test_embed_pretrained import save_checkpoint
from test_tokenizer import embeddings

import recbole_gmc
from recbole_gmc import cli
from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.embed import lsa
from recbole_gmc.files import read_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.adapters import DomainAdapters
from recbole_gmc.model.seq2seq import build_t5
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.recommender import Recommender
from recbole_gmc.settings import (
    DecodeSettings,
    LoraSettings,
    T5Settings,
    TextSettings,
    TokenizerSettings,
    TrainSettings,
    read,
)
from recbole_gmc.tokenizer import fit
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.stage import Stage

NETWORK = {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 16, "d_ff": 24, "num_heads": 2, "d_kv": 8}


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.5, 1, 1, (2 + 3**0.5) / 4, 3 / 4, 1 / 2, 1 / 4, (2 - 3**0.5) / 4]),
    ],
)
def test_the_rate_warms_up_and_then_follows_its_schedule(schedule, factors):
    """Two of eight steps to warm up: lr_schedule, warmup_ratio."""
    config = {"epochs": 2, "train_batch_size": 4, "learning_rate": 0.1, "weight_decay": 0.2}
    config |= {"eval_step": 1, "stopping_step": 3}
    stage = Stage.unified(config, read(TrainSettings, {"lr_schedule": schedule, "warmup_ratio": 0.25}))
    assert [stage.rate_at(15)(step) for step in range(8)] == pytest.approx(factors)


def test_adapters_are_trained_by_the_lora_keys():
    keys = {"lora_epochs": 3, "lora_train_batch_size": 7, "lora_learning_rate": 0.3, "lora_weight_decay": 0.4}
    keys |= {"lora_eval_step": 2, "lora_stopping_step": 9}
    stage = Stage.adapter("A", read(LoraSettings, keys))
    assert stage == Stage("lora:A", "A", 3, 7, 0.3, 0.4, 2, 9)
    assert {stage.rate_at(100)(step) for step in range(40)} == {1.0}


def test_alpha_over_r_scales_an_adapter(recwarn):
    torch.manual_seed(0)
    keys = {"lora_r": 2, "lora_alpha": 6, "lora_target_modules": ["q"]}
    adapters = DomainAdapters(build_t5(read(T5Settings, NETWORK), Vocabulary(2, 4)), ("A",), read(LoraSettings, keys))
    adapters.restore("A", {name: torch.randn_like(w) for name, w in adapters.snapshot("A").items()})
    name = "encoder.block.0.layer.0.SelfAttention.q"
    weights, plain, merged = adapters.snapshot("A"), adapters.merged_state(None), adapters.merged_state("A")
    (down,) = (w for key, w in weights.items() if key.startswith(name) and "lora_A" in key)
    (up,) = (w for key, w in weights.items() if key.startswith(name) and "lora_B" in key)
    assert torch.allclose(merged[f"{name}.weight"] - plain[f"{name}.weight"], 3 * up @ down, atol=1e-5)
    assert not recwarn.list, "nor is there a line that a user can do nothing about"


@pytest.mark.parametrize(
    ("given", "most"), [({}, 12), ({"decode_batch_users": 5}, 5), ({"decode_memory_mb": 1, "beam_size": 20}, 4)]
)
def test_users_decoded_at_once_are_limited_and_no_list_changes(given, most, monkeypatch):
    torch.manual_seed(0)
    items = ItemIndex.of({"A": [f"i{n:02}" for n in range(30)]})
    codes = torch.cartesian_prod(torch.arange(8), torch.arange(8))[torch.randperm(64)[:30]]
    network = build_t5(read(T5Settings, {**NETWORK, "d_ff": 8192}), Vocabulary(2, 8)).eval()
    seen, search = [], BeamSearch.search

    def counted(self, tokens, mask):
        seen.append(len(tokens))
        return search(self, tokens, mask)

    def ranked(**keys):
        decode = read(DecodeSettings, {"beam_size": 20, **keys})
        ids = SemanticIds(items, codes.numpy(), 8)
        one = Recommender(ids, network.config, {"A": network.state_dict()}, max_items=5, decode=decode)
        return one.rank("A", torch.arange(60).view(12, 5) % 30, torch.full((12,), 5))

    usual = ranked()
    monkeypatch.setattr(BeamSearch, "search", counted)
    found = ranked(**given)
    assert sum(seen) == 12 and max(seen) <= most and (len(seen) > 1) == bool(given)
    assert (found.ranked == usual.ranked).all() and np.allclose(found.scores, usual.scores, atol=1e-5)


def test_users_are_halved_where_memory_does_not_suffice(monkeypatch):
    """Row 19 of the fault matrix."""
    items = ItemIndex.of({"A": [f"i{n:02}" for n in range(30)]})
    codes = torch.cartesian_prod(torch.arange(8), torch.arange(8))[torch.randperm(64)[:30]]
    network = build_t5(read(T5Settings, NETWORK), Vocabulary(2, 8)).eval()
    ids, decode = SemanticIds(items, codes.numpy(), 8), read(DecodeSettings, {"beam_size": 20})
    one = Recommender(ids, network.config, {"A": network.state_dict()}, max_items=5, decode=decode)
    asked = "A", torch.arange(55).view(11, 5) % 30, torch.full((11,), 5)
    whole, seen, search = one.rank(*asked), [], BeamSearch.search

    def scarce(self, tokens, mask):
        if len(tokens) > most:
            raise torch.OutOfMemoryError("too large")
        seen.append(len(tokens))
        return search(self, tokens, mask)

    monkeypatch.setattr(BeamSearch, "search", scarce)
    most = 3
    found = one.rank(*asked)
    assert sorted(seen) == [2, 3, 3, 3]
    assert (found.ranked == whole.ranked).all() and np.allclose(found.scores, whole.scores, atol=1e-5)
    assert (found.certified == whole.certified).all()
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        one.rank(*asked)


def test_older_items_than_the_settings_say_are_dropped():
    """Row 32 of the fault matrix, by what recommends: histories of 5 and 3 items, of which 2 count."""
    items = ItemIndex.of({"A": [f"i{n:02}" for n in range(30)]})
    codes = torch.cartesian_prod(torch.arange(8), torch.arange(8))[torch.randperm(64)[:30]]
    network = build_t5(read(T5Settings, NETWORK), Vocabulary(2, 8)).eval()
    decode = read(DecodeSettings, {"beam_size": 20})
    one = Recommender(
        SemanticIds(items, codes.numpy(), 8), network.config, {"A": network.state_dict()}, max_items=2, decode=decode
    )
    long = one.rank("A", torch.tensor([[7, 3, 9, 4, 1], [5, 2, 8, -1, -1]]), torch.tensor([5, 3]))
    short = one.rank("A", torch.tensor([[4, 1], [2, 8]]), torch.tensor([2, 2]))
    assert (long.ranked == short.ranked).all() and np.allclose(long.scores, short.scores, atol=1e-6)


def test_feed_forward_and_decoding_precision():
    keys = {**NETWORK, "feed_forward_proj": "gated-gelu"}
    network = build_t5(read(T5Settings, keys), Vocabulary(2, 8))
    assert "encoder.block.0.layer.1.DenseReluDense.wi_1.weight" in network.state_dict()
    ids = SemanticIds(ItemIndex.of({"A": "ab"}), np.array([[0, 1], [1, 0]]), 8)
    decode = read(DecodeSettings, {"decode_precision": "bf16", "gemm": "torch"})
    one = Recommender(ids, network.config, {"A": network.state_dict()}, max_items=5, decode=decode)
    assert one.searches["A"].network.products.dtype == torch.bfloat16


def test_text_keys():
    keys = {"text_batch_tokens": 64, "text_max_length": 9, "text_dtype": "bfloat16", "text_lsa_features": 20}
    settings = read(TextSettings, {**keys, "text_lsa_dim": 50})
    assert (settings.batch_tokens, settings.max_length, settings.dtype) == (64, 9, "bfloat16")
    draw = random.Random(1)
    texts = [" ".join(draw.choices("red blue green pen lamp desk toy car doll book".split(), k=6)) for _ in range(80)]
    assert lsa.encode(texts, settings).shape == (80, 19), "one less than the terms that it keeps"


class Watched:
    """What the training of an RQ-VAE was called with."""

    def __init__(self, monkeypatch) -> None:
        self.optimizer, self.clips, self.losses, self.called = None, set(), set(), set()
        adamw, clip, loss = torch.optim.AdamW, torch.nn.utils.clip_grad_norm_, fit.quantization_loss

        def made(*args, **kwargs):
            self.optimizer = adamw(*args, **kwargs)
            self.first = {key: self.optimizer.param_groups[0][key] for key in ("lr", "weight_decay", "betas")}
            return self.optimizer

        def lost(residuals, chosen, beta, reduction):
            self.losses.add((residuals.shape[1], beta, reduction))
            return loss(residuals, chosen, beta, reduction)

        def named(name):
            inner = getattr(fit, name)
            return lambda *args, **kwargs: (self.called.add(name), inner(*args, **kwargs))[1]

        monkeypatch.setattr(torch.optim, "AdamW", made)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, m: (self.clips.add(m), clip(p, m))[1])
        monkeypatch.setattr(fit, "quantization_loss", lost)
        for name in ("start_codebooks", "restart_dead_codes"):
            monkeypatch.setattr(fit, name, named(name))


BASE = {"code_levels": 2, "codebook_size": 8, "code_dim": 4, "tokenizer_hidden_sizes": [8], "tokenizer_epochs": 4}
BASE |= {"tokenizer_warmup_epochs": 0, "tokenizer_latent_rank": None, "tokenizer_eval_step": 2}


def trained(monkeypatch, **keys) -> tuple[Watched, fit.Learned]:
    data, watched = embeddings((30, 20), width=6), Watched(monkeypatch)
    settings = read(TokenizerSettings, {**BASE, **keys})
    return watched, fit.fit_rqvae(data.items, data.vectors, settings, seed=1, progress=False)


def test_tokenizer_keys_reach_the_training(monkeypatch):
    keys = {"tokenizer_beta": 0.5, "tokenizer_reduction": "sum", "tokenizer_learning_rate": 0.01}
    keys |= {"tokenizer_weight_decay": 0.3, "tokenizer_train_batch_size": 40, "tokenizer_clip_grad_norm": 0.25}
    keys |= {"tokenizer_lr_schedule": "constant", "tokenizer_scale_input": False, "tokenizer_sinkhorn": True}
    keys |= {"tokenizer_precision": "bf16"}
    watched, learned = trained(monkeypatch, **keys)
    assert watched.losses == {(40, 0.5, "sum"), (10, 0.5, "sum")} and watched.clips == {0.25}
    assert watched.first == {"lr": 0.01, "weight_decay": 0.3, "betas": (0.9, 0.999)}
    assert watched.optimizer.param_groups[0]["lr"] == 0.01
    assert "start_codebooks" in watched.called and learned.latents.model.quantizer.sinkhorn
    assert learned.latents.scale == 1.0 and learned.epochs == 4 and learned.latents.model.decoder.bf16


def test_tokenizer_switches_turn_off(monkeypatch):
    """Without a start by k-means, restarts and clipping; the rate falls by default, and 0 looks never stop early."""
    keys = {"tokenizer_kmeans_init": False, "tokenizer_restart_dead": False, "tokenizer_clip_grad_norm": None}
    watched, learned = trained(monkeypatch, **keys, tokenizer_stopping_step=0, tokenizer_epoch_items=20)
    assert not watched.called and not watched.clips
    assert {size for size, *_ in watched.losses} == {20}, "so many items an epoch"
    assert watched.optimizer.param_groups[0]["lr"] < watched.first["lr"] == 2e-3
    assert learned.latents.scale != 1.0 and [look["epoch"] for look in learned.history] == [2, 4]


def test_all_of_them_in_a_run_and_the_loaded_model_ranks_alike(tmp_path):
    """By the command line, with a transformers encoder; a notice says that lists of 15 end after 12 items."""
    write_planted(tmp_path, "Big", seed=1, users=14, items=12, length=(4, 6))
    write_planted(tmp_path, "Small", seed=2, users=10, items=12, length=(4, 6))
    for domain in ("Big", "Small"):
        _plain_titles(tmp_path / domain / f"{domain}.item")
    save_checkpoint(tmp_path / "encoder", "bert")
    rare = {"text_encoder": str(tmp_path / "encoder"), "text_dtype": "bfloat16", "text_max_length": 16}
    rare |= {"text_batch_tokens": 64, "text_normalize": "standardize", "feed_forward_proj": "gated-gelu"}
    rare |= {"decode_batch_users": 3, "decode_memory_mb": 1, "decode_precision": "bf16", "beam_search": "exact"}
    rare |= {"cpu_threads": 1, "gemm": "torch", "chunk_tokens": 64, "lr_schedule": "linear", "warmup_ratio": 0.5}
    rare |= {"lora_alpha": 4, "lora_target_modules": ["q", "wi_0"], "lora_weight_decay": 0.1, "lora_stopping_step": 0}
    rare |= {"learner": "sgd", "max_prefixes": 3, "valid_users": 5, "topk": [1, 5, 15], "valid_metric": "MRR@5"}
    flags = tiny(tmp_path, tmp_path / "run", epochs=1, lora_epochs=1, **rare)
    written = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flags.items()]
    assert cli.main(["--model=GMC", "--dataset=tiny", *written]) == 0
    told = read_json(tmp_path / "run/result.json")
    assert told["certified"]["all"] == 1.0 and told["average"]["recall@15"] == 1.0
    assert "Small has 12 items: its lists end before 15" in (tmp_path / "run/run.log").read_text()
    model, histories = recbole_gmc.load(tmp_path / "run"), {}
    for line in (tmp_path / "Big/Big.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(item)
    lines = [line.split("\t") for line in (tmp_path / "run/topk.tsv").read_text().splitlines()[1:]]
    for line in lines[:4]:
        found = model.recommend("Big", histories[line[1]][:-1], 12)
        assert line[0] == "Big" and [item for item, _ in found] == line[4:28:2]


def _plain_titles(file: Path) -> None:
    """Words that the encoder's tokenizer knows."""
    head, *rows = file.read_text().splitlines()
    words = "red blue green pen paper desk lamp chair book toy car doll".split()
    tokens = [row.split("\t")[0] for row in rows]
    rows = [f"{token}\t{words[i]} {words[i // 2]}\tpen" for i, token in enumerate(tokens)]
    file.write_text("\n".join([head, *rows]) + "\n")
