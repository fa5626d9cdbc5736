"""RecFormer's tokens, masks and item matrix; its Longformer against that of transformers."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from recbole_gmc.baselines import recformer, recformer_text
from recbole_gmc.baselines.recformer_network import RecFormerNetwork, RecFormerSettings, own_shape
from recbole_gmc.baselines.recformer_text import IDS, KEY, KINDS, PADDING, START, VALUE, WORDS
from run_help import write_planted
from transformers import LongformerConfig, LongformerForMaskedLM, LongformerModel

import recbole_gmc
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_of, read_json

SPECIALS = recformer_text.Specials(start=0, pad=1, mask=2, first=3, size=40)
SETTINGS = RecFormerSettings(hidden=16, layers=2, heads=2, inner=24, window=4, most_tokens=20)
ITEMS = (
    {"title": "Red blue pen", "brand": "Acme", "category": "Pens Ink"},
    {"title": "Green pen", "brand": "", "category": "Pens"},
    {"title": "Tape", "brand": "Zed"},
)


@pytest.fixture
def tokens():
    tokenize, specials = recformer_text.own_words([f"{k} {v}" for row in ITEMS for k, v in row.items()], 100)
    return recformer_text.item_tokens(ITEMS, tokenize, specials.pad, 3, 3), tokenize, specials


def network(seed: int = 0) -> RecFormerNetwork:
    torch.manual_seed(seed)
    return RecFormerNetwork(own_shape(SETTINGS, SPECIALS), SPECIALS, SETTINGS, 4).eval()


def some_tokens(count: int = 6, width: int = 5) -> torch.Tensor:
    torch.manual_seed(1)
    made = torch.empty(count, 3, width, dtype=torch.int32)
    made[:, IDS] = torch.randint(3, 40, (count, width))
    made[:, KINDS] = VALUE
    made[:, KINDS, 0] = KEY
    made[:, WORDS] = torch.tensor([0, 1, 1, 2, 3])[:width]
    for row in range(count):  # items of different lengths
        made[row, IDS, width - row % 3 :] = 1
        made[row, KINDS, width - row % 3 :] = PADDING
        made[row, WORDS, width - row % 3 :] = -1
    return made


def test_items_are_keys_and_values(tokens):
    made, tokenize, specials = tokens
    first, second, third = made
    n = specials.size - 4  # words: title red blue pen brand acme category pens ink green tape zed
    assert n == 12 and specials.pad == 1 and made.shape == (3, 3, 8)

    def ids(text):
        return tokenize(text)[0]

    assert first[IDS].tolist() == ids("title red blue brand acme category pens ink")  # three tokens an attribute
    assert first[KINDS].tolist() == [KEY, VALUE, VALUE, KEY, VALUE, KEY, VALUE, VALUE]
    assert second[IDS].tolist() == [*ids("title green pen brand category pens"), 1, 1], "an empty value keeps its key"
    assert second[KINDS].tolist()[6:] == [PADDING] * 2 and second[WORDS].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert (third[KINDS] != PADDING).sum() == 4
    assert ids("Unheard of") == [3, 3]


def test_a_history_begins_with_its_newest_item():
    tokens = some_tokens()
    history, length = torch.tensor([[4, 3, 2, 9], [5, 9, 9, 9]]), torch.tensor([3, 1])
    history = history.clamp(max=5)
    found = recformer_text.sequences(tokens, history, length, 0, 1, 20, 4)
    parts = [tokens[row][:, tokens[row][KINDS] != PADDING] for row in (2, 3, 4)]
    body = torch.cat(parts, 1).long()
    n = body.shape[1] + 1
    assert found.ids.shape[1] % 4 == 0 and n <= found.ids.shape[1] < n + 4
    assert found.ids[0, :n].tolist() == [0, *body[IDS].tolist()] and (found.ids[0, n:] == 1).all()
    assert found.kinds[0, :n].tolist() == [START, *body[KINDS].tolist()] and not found.inside[0, n:].any()
    positions = [0] + [i + 1 for i, part in enumerate(parts) for _ in range(part.shape[1])]
    assert found.items[0, :n].tolist() == positions
    words = found.words[0, 1:n].tolist()
    pairs = [(i, w) for i, part in enumerate(parts) for w in part[WORDS].tolist()]
    assert len(set(words)) == len(set(pairs)) and found.words[0, 0] == -1, "words of two items are two words"
    assert found.inside[1].sum() == 1 + (tokens[5][KINDS] != PADDING).sum()
    short = recformer_text.sequences(tokens, history, length, 0, 1, 7, 4)
    assert short.ids.shape == (2, 8) and short.inside.sum(1).max() == 7
    assert torch.equal(short.ids[0, :7], found.ids[0, :7]), "the oldest fall off"


def test_the_encoder_is_the_longformer_of_transformers():
    """With kinds and item positions at zero, and tokens after the pad id, both give the same hidden states."""
    mine = network()
    with torch.no_grad():
        mine.kinds.weight.zero_()
        mine.items.weight.zero_()
    shape = own_shape(SETTINGS, SPECIALS)
    theirs = LongformerModel(LongformerConfig(**shape, attention_window=[4, 4], type_vocab_size=1)).eval()
    embeddings = theirs.embeddings
    embeddings.word_embeddings.load_state_dict(mine.words.state_dict())
    embeddings.position_embeddings.load_state_dict(mine.positions.state_dict())
    embeddings.LayerNorm.load_state_dict(mine.norm.state_dict())
    embeddings.token_type_embeddings.weight.data.zero_()
    theirs.encoder.load_state_dict(mine.encoder.state_dict())
    found = mine.tokens(some_tokens(), torch.tensor([[0, 1, 2], [3, 0, 0]]), torch.tensor([3, 1]))
    everywhere = torch.zeros_like(found.ids)
    everywhere[:, 0] = 1
    told = theirs(found.ids, attention_mask=found.inside.long(), global_attention_mask=everywhere).last_hidden_state
    made = mine(found)
    assert torch.allclose(made[found.inside], told[found.inside], atol=1e-5)
    local = theirs(found.ids, attention_mask=found.inside.long()).last_hidden_state
    assert not torch.allclose(made[:, 0], local[:, 0], atol=1e-3), "the start token attends to all"


@pytest.mark.parametrize("hidden", [16, 64, 128])
def test_items_differ_before_training(hidden):
    """Contrast can begin only where vectors are not all the same; from a deviation of 0.02 this is above .999."""
    torch.manual_seed(0)
    settings = replace(SETTINGS, hidden=hidden)
    mine = RecFormerNetwork(own_shape(settings, SPECIALS), SPECIALS, settings, 4).eval()
    vectors = F.normalize(mine.item_vectors(some_tokens()), dim=1)
    assert (vectors @ vectors.T)[~torch.eye(len(vectors), dtype=torch.bool)].mean() < 0.99


def test_order_counts_and_padding_does_not():
    mine, tokens = network(), some_tokens()
    for weight in mine.parameters():  # as it starts, most of its vectors is the start token
        torch.nn.init.normal_(weight, std=0.3)
    vectors = mine.item_vectors(tokens)
    one, two = torch.tensor([[0, 1, 2, 4]]), torch.tensor([[1, 0, 2, 5]])
    length = torch.tensor([3])

    def scores(history):
        return mine.logits(mine.history_vectors(tokens, vectors, history, length), vectors)

    assert not torch.allclose(scores(one), scores(two), atol=1e-3)
    other = one.clone()
    other[0, 3] = 0
    assert torch.equal(scores(one), scores(other))
    longer = torch.cat([one, one])
    both = mine.history_vectors(tokens, vectors, longer, torch.tensor([3, 4]))  # in a wider batch
    assert torch.allclose(both[:1], mine.history_vectors(tokens, vectors, one, length), atol=1e-5)
    assert scores(one).abs().max() <= 20 + 1e-4, "cosines divided by 0.05"


def test_whole_words_are_masked():
    tokens = some_tokens(6, 5)
    history = torch.randint(0, 6, (300, 3))
    found = recformer_text.sequences(tokens, history, torch.full((300,), 3), 0, 1, 20, 4)
    torch.manual_seed(0)
    ids, chosen = recformer_text.mask_words(found, SPECIALS, 0.15)
    assert not chosen[found.words < 0].any() and torch.equal(ids[~chosen], found.ids[~chosen])
    for row in range(300):
        for word in found.words[row][found.words[row] >= 0].unique():
            assert len(chosen[row][found.words[row] == word].unique()) == 1
    share = chosen.sum() / (found.words >= 0).sum()
    masked = (ids[chosen] == SPECIALS.mask).float().mean()
    same = (ids[chosen] == found.ids[chosen]).float().mean()
    assert 0.12 < share < 0.18 and 0.75 < masked < 0.85 and 0.06 < same < 0.16


def test_an_epoch_takes_one_target_a_user():
    user = torch.tensor([7, 3, 7, 3, 7, 7, 9, 7])
    seen: dict[int, set[int]] = {}
    late: dict[int, set[int]] = {}
    for seed in range(80):
        for store, later in ((seen, False), (late, True)):
            rows = recformer.one_a_user(user, later, torch.Generator().manual_seed(seed))
            assert user[rows].tolist() == [3, 7, 9]
            for row in rows.tolist():
                store.setdefault(int(user[row]), set()).add(row)
    assert seen == {3: {1, 3}, 7: {0, 2, 4, 5, 7}, 9: {6}}
    # Five rows are the targets 1 to 5 of a sequence of six: its second half begins at target 2.
    assert late == {3: {1, 3}, 7: {2, 4, 5, 7}, 9: {6}}


def small(root, **changes) -> dict:
    return {
        "data_path": str(root),
        "cache_dir": str(root / "cache"),
        "run_dir": str(root / "run"),
        "domains": ["Big"],
        "show_progress": False,
        "attention_window": 4,
        "max_tokens": 16,
        "MAX_ITEM_LIST_LENGTH": 4,
        "pretrain_epochs": 2,
        "epochs": 3,
        "eval_step": 1,
        "precision": "fp32",
        **changes,
    }


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    write_planted(tmp_path, "Big", seed=1, users=20)
    return tmp_path


def test_the_second_stage_keeps_the_item_matrix(root, monkeypatch):
    seen = []
    finish = recformer.RecFormer.finish_stage

    def noted(self, stage):
        if stage.domain:
            domain = self.of_domain(stage.domain)
            seen.append((stage.name, hash_of(domain.matrix.numpy()), hash_of(domain.norm.weight.detach().numpy())))
        return finish(self, stage)

    monkeypatch.setattr(recformer.RecFormer, "finish_stage", noted)
    begin = recformer.RecFormer.start_stage

    def started(self, stage):
        begin(self, stage)
        if stage.name == "fixed:Big":
            seen.append(("begins", hash_of(self.of_domain("Big").matrix.numpy()), ""))

    monkeypatch.setattr(recformer.RecFormer, "start_stage", started)
    sizes = {"longformer_hidden_size": 16, "longformer_layers": 1, "longformer_inner_size": 16}
    recbole_gmc.run_recbole("RecFormer", "tiny", None, small(root, **sizes))
    (first, _, _), (_, begins, _), (second, after, _) = seen
    assert (first, second) == ("finetune:Big", "fixed:Big") and begins == after


@pytest.fixture
def weights(root):
    """A Longformer with a tokenizer, as save_pretrained writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = (root / "Big/Big.item").read_text().lower().split()
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(set(texts))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special).save_pretrained(root / "weights")
    shape = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(5)
    config = LongformerConfig(
        vocab_size=len(words), max_position_embeddings=30, attention_window=8, bos_token_id=0, pad_token_id=1, **shape
    )
    model = LongformerForMaskedLM(config)
    model.save_pretrained(root / "weights")
    return model


def test_named_weights_are_where_training_starts(root, weights):
    changes = {"longformer": str(root / "weights"), "pretrain_learning_rate": 1e-3, "epochs": 1}
    recbole_gmc.run_recbole("RecFormer", "tiny", None, small(root, **changes))
    from safetensors.torch import load_file

    made = load_file(root / "run/checkpoint/model.safetensors")
    embeddings, result = weights.longformer.embeddings, read_json(root / "run/result.json")
    assert result["label"] == "" and result["inputs"]["vocabulary"] == weights.config.vocab_size
    assert torch.equal(made["pretrained.words.weight"], embeddings.word_embeddings.weight), "frozen in pre-training"
    start = embeddings.position_embeddings.weight
    assert torch.allclose(made["pretrained.positions.weight"], start, atol=0.02)
    assert not torch.equal(made["pretrained.positions.weight"], start), "and the rest is trained"
    assert made["tuned.0.kinds.weight"].shape == (4, 12)
    assert recbole_gmc.load(root / "run").recommend("Big", ["big-1"], 5)


def test_weights_of_another_kind_are_refused(root, weights):
    for changes, message in (
        ({"max_tokens": 200}, "max_tokens: 200 tokens are more than the weights have positions for. At most 28"),
        ({"longformer": str(root / "Big")}, "longformer: no config.json names a model. Give a folder"),
    ):
        with pytest.raises(SettingError, match=message):
            recbole_gmc.run_recbole(
                "RecFormer", "tiny", None, small(root, **{"longformer": str(root / "weights"), **changes})
            )
        assert not (root / "run/checkpoint").exists()
