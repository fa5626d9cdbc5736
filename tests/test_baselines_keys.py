"""Keys of the baselines' property files that no other test sets: what they say is what happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_help import built, by_hand
from recbole_gmc.baselines import id_generator, recformer_network, unisrec
from run_help import histories, tiny, write_both
from test_baselines_ids import checkpoint  # noqa: F401 - a fixture

import recbole_gmc
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.files import read_json
from recbole_gmc.settings import CooccurrenceSettings, TextSettings, read
from recbole_gmc.train.prepare import semantic_ids

pytestmark = pytest.mark.usefixtures("own_arguments")
TEXT_MODELS = ("UniSRec", "VQRec")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("keys")
    write_both(root)
    return root


# ---- the encoder of UniSRec and VQRec --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_the_encoder_is_made_by_its_keys(root, model):
    how = {"hidden_act": "relu", "layer_norm_eps": 3.0, "initializer_range": 0.5}
    encoder = built(model, root, **how).model.pretrained.encoder
    block = encoder.blocks.layer[0]
    activate = block.feed_forward.intermediate_act_fn
    assert activate(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    signs = torch.tensor([1.0, -1.0]).repeat(8)  # of mean 0 and variance 1
    for norm in (encoder.norm, block.multi_head_attention.LayerNorm, block.feed_forward.LayerNorm):
        assert torch.allclose(norm(signs), signs / 2), "divided by sqrt(1 + 3)"
    assert float(block.feed_forward.dense_1.weight.detach().std()) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("model", [*TEXT_MODELS, "RecFormer"])
def test_pre_training_follows_its_keys(root, model):
    how = {"pretrain_lr_schedule": "linear", "pretrain_weight_decay": 0.3, "pretrain_epochs": 4}
    stage = built(model, root, **how).model.pretrain_stage()
    assert (stage.schedule, stage.weight_decay, stage.epochs) == ("linear", 0.3, 4)
    assert stage.rate_at(stage.batch_size)(2) == pytest.approx(0.5), "half way through four steps"


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize("frozen", [True, False])
def test_fine_tuning_leaves_the_encoder_only_where_it_is_frozen(root, model, frozen):
    made = built(model, root, freeze_encoder=frozen).model
    network = made.add_domain("Small")
    trained = {id(parameter) for parameter in made.trained(made.stages("Small")[-1])}
    left = {name for name, parameter in network.named_parameters() if id(parameter) not in trained}
    blocks = {name for name, _ in network.named_parameters() if name.startswith(("encoder.position", "encoder.blocks"))}
    assert blocks and left == (blocks if frozen else set())


def rows_with_one_target_twice(found) -> SequenceRows:
    """Eight rows, the first two of them with the same next item."""
    rows = found.rows.select(torch.arange(8))
    target = rows.target.clone()
    target[1] = target[0]
    return replace(rows, target=target)


@pytest.mark.parametrize("negatives", ["exclude", "zero"])
def test_rows_with_the_same_target(root, negatives):
    found = built("UniSRec", root, same_target_negatives=negatives, **{"lambda": 0.0})
    rows, network = rows_with_one_target_twice(found), found.model.pretrained
    vectors = network.item_vectors(found.model.inputs.items)
    states = network.encoder(vectors[rows.history.clamp(min=0)], rows.length)
    wanted = by_hand(states, vectors[rows.target], network.temperature, rows.target.tolist(), negatives)
    assert float(found.model.pretrain_loss(rows)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("negatives", ["exclude", "zero"])
def test_a_made_up_item_with_no_digit_changed_is_the_target(root, negatives):
    """fake_idx_ratio, and same_target_negatives for VQRec."""
    found = built("VQRec", root, fake_idx_ratio=0.0, same_target_negatives=negatives)
    rows, network = rows_with_one_target_twice(found), found.model.pretrained
    vectors = network.item_vectors(found.model.inputs.items)
    states, own = network.encoder(vectors[rows.history.clamp(min=0)], rows.length), vectors[rows.target]
    wanted = by_hand(states, own, network.temperature, rows.target.tolist(), negatives, extra=own)
    assert float(found.model.pretrain_loss(rows)) == pytest.approx(wanted, abs=1e-4)
    torch.manual_seed(0)
    other = float(built("VQRec", root, fake_idx_ratio=1.0, same_target_negatives=negatives).model.pretrain_loss(rows))
    assert abs(other - float(found.model.pretrain_loss(rows))) > 1e-5, (other, wanted)


# ---- UniSRec ---------------------------------------------------------------------------------------------------------


def test_the_adaptor_drops_what_its_key_says(root):
    for share in (0.0, 0.6):
        adaptor = built("UniSRec", root, adaptor_dropout_prob=share).model.pretrained.adaptor.train()
        torch.nn.init.ones_(adaptor.weight)
        torch.manual_seed(0)
        made = adaptor(torch.ones(4000, 8))[:, 0] / 8  # whatever the gates, they sum to 1
        expected = share / (1 - share) / 8  # of one expert; gates mix independent draws of several
        assert float(made.mean()) == pytest.approx(1.0, abs=0.03)
        assert float(made.var()) < 1e-9 if share == 0 else expected / 4 < float(made.var()) < expected * 1.1


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_words_are_dropped_by_their_ratio(root, monkeypatch, ratio):
    seen, embed = [], unisrec.embed

    def noted(texts, text, cache, **how):
        seen.append(texts.texts)
        return embed(texts, TextSettings(lsa_dim=8), cache, **how)

    monkeypatch.setattr(unisrec, "embed", noted)
    monkeypatch.setattr(unisrec, "refuse_missing", lambda items, text: None)
    built("UniSRec", root, word_drop_ratio=ratio, text_encoder="some/encoder")
    whole, fewer = seen
    assert any(len(text.split()) > 1 for text in whole)
    assert list(fewer) == (list(whole) if ratio == 0 else [text.split()[0] for text in whole])


# ---- VQRec -----------------------------------------------------------------------------------------------------------


def sinkhorn(choice: np.ndarray, iterations: int, temperature: float) -> np.ndarray:
    """Rows and columns of exp(choice / temperature) divided by their sums in turn."""
    soft = np.exp(choice / temperature)
    for _ in range(iterations):
        soft /= soft.sum(2, keepdims=True)
        soft /= soft.sum(1, keepdims=True)
    return soft


@pytest.mark.parametrize("iterations, temperature", [(1, 0.7), (40, 0.7), (2, 5.0)])
def test_codes_are_chosen_by_the_sinkhorn_keys(root, iterations, temperature):
    """Straight through: the choice is that of the normalised matrix, and so is the gradient."""
    made = built("VQRec", root, sinkhorn_iter=iterations, sinkhorn_temperature=temperature).model
    network = made.add_domain("Small")
    soft = sinkhorn(network.choice.detach().double().numpy(), iterations, temperature)
    found = made._assigned(network, noise=False)
    assert (found.detach().argmax(-1).numpy() == soft.argmax(-1)).all()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    step, where = 1e-5, (0, 1, 2)
    moved = network.choice.detach().double().numpy().copy()
    moved[where] += step
    slope = ((sinkhorn(moved, iterations, temperature) - soft) * weights.double().numpy()).sum() / step
    assert float(network.choice.grad[where]) == pytest.approx(slope, abs=1e-3)


# ---- RecFormer -------------------------------------------------------------------------------------------------------


def test_recformers_network_and_groups_are_made_by_their_keys(root):
    how = {"longformer_heads": 4, "longformer_vocabulary": 5, "pretrain_contrast_rows": 3}
    found = built("RecFormer", root, **how)
    made = found.model
    assert made.pretrained.encoder.layer[0].attention.self.num_heads == 4
    assert made.inputs.facts["specials"]["size"] == 4 + 5 and int(made.inputs.items[:, 0].max()) == 4 + 5 - 1
    parts = made.parts(found.rows.select(torch.arange(8)), made.pretrain_stage())
    assert [len(part) for part in parts] == [3, 3, 2]


def test_items_are_encoded_a_few_at_once(root, monkeypatch):
    whole, few = (built("RecFormer", root, item_batch=size).model for size in (256, 7))
    calls, pooled = [], recformer_network.RecFormerNetwork.pooled

    def noted(self, found):
        calls.append(len(found.ids))
        return pooled(self, found)

    monkeypatch.setattr(recformer_network.RecFormerNetwork, "pooled", noted)
    items = whole.inputs.items
    assert torch.allclose(whole.pretrained.encode(items), few.pretrained.encode(items), atol=1e-5)
    assert calls[0] == len(items) and max(calls[1:]) == 7 and sum(calls[1:]) == len(items)


def test_so_many_words_are_masked_as_the_ratio_says(root, monkeypatch):
    shares, mask = [], recformer_network.mask_words

    def noted(found, specials, ratio):
        ids, chosen = mask(found, specials, ratio)
        shares.append(float(chosen.sum() / (found.words >= 0).sum()))
        return ids, chosen

    monkeypatch.setattr(recformer_network, "mask_words", noted)
    found = built("RecFormer", root, mlm_ratio=0.6)
    torch.manual_seed(0)
    found.model.pretrain_loss(found.rows.select(torch.arange(64)))
    assert len(shares) == 2 and all(0.5 < share < 0.7 for share in shares), "of histories and of targets"


# ---- IDGenRec --------------------------------------------------------------------------------------------------------


def test_a_run_with_ids_by_a_generator(root, checkpoint, monkeypatch):  # noqa: F811
    """The whole run, whose IDs are written once; and how many texts, outputs and tokens there are at a time."""
    calls, write = [], id_generator.Writer.write

    def noted(self, texts, penalty, least):
        read_at_once = self.tokenizer(list(texts), truncation=True, max_length=self.settings.max_length)
        groups = write(self, texts, penalty, least)
        calls.append((len(texts), max(map(len, read_at_once.input_ids)), [len(group) for group in groups], least))
        assert all(len(words) <= least + 2 for group in groups for words in group), "idgen_new_tokens"
        return groups

    monkeypatch.setattr(id_generator.Writer, "write", noted)
    keys = {"idgen_checkpoint": checkpoint, "idgen_beams": 3, "idgen_batch_size": 5, "idgen_max_length": 8}
    keys |= {"idgen_new_tokens": 2, "domains": ["Small"], "epochs": 1}
    settings = {key: value for key, value in tiny(root, **keys).items() if "lora" not in key and "tokenizer" not in key}
    for unread in ("code_levels", "codebook_size", "code_dim", "text_lsa_dim"):
        settings.pop(unread, None)
    settings["run_dir"] = str(root / "written")
    recbole_gmc.run_recbole("IDGenRec", "tiny", None, settings)
    first = [call for call in calls if call[3] == 1 and call[0] > 1]
    items = len(catalogue := {item for history in histories(root, "Small").values() for item in history})
    assert {size for size, *_ in first} <= {5, items % 5} and all(longest <= 8 for _, longest, *_ in calls)
    assert all(groups == [3] * size for size, _, groups, _ in calls)
    result = read_json(root / "written/result.json")
    assert result["label"] == f"small from-scratch setting, ids by {checkpoint}"
    assert result["tokenizer"]["method"] == "generator" and result["tokenizer"]["unique_after"]
    listed = recbole_gmc.load(root / "written").recommend("Small", [sorted(catalogue)[0]], 5)
    assert len({item for item, _ in listed}) == 5 and {item for item, _ in listed} <= catalogue
    calls.clear()
    settings["run_dir"] = str(root / "again")
    recbole_gmc.run_recbole("IDGenRec", "tiny", None, settings)
    again = read_json(root / "again/result.json")
    assert not calls and again["hashes"] == result["hashes"], "the texts are in the cache"


# ---- GMC's block of co-occurrence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 5])
def test_the_block_is_as_wide_as_its_key_says(root, monkeypatch, width):
    from test_tokenizer_cooccurrence import training_part

    from recbole_gmc.train import prepare

    seen, tokenize = [], prepare.tokenize

    def noted(embeddings, *rest, **how):
        seen.append(embeddings.vectors.shape[1])
        return tokenize(embeddings, *rest, **how)

    monkeypatch.setattr(prepare, "tokenize", noted)
    keys = {"tokenizer_cooccurrence_weight": 0.5, "tokenizer_cooccurrence_dim": width}
    config, part = training_part(root, **keys)
    assert read(CooccurrenceSettings, config).dim == width
    semantic_ids(config, part, torch.device("cpu"), False)
    text = read(TextSettings, config).lsa_dim
    assert seen == [text + width]
