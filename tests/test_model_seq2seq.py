"""Vocabulary, encoder input and loss, held against hand values and plain transformers."""

from __future__ import annotations

import pytest
import torch

from recbole_gmc.errors import GMCError
from recbole_gmc.model.seq2seq import (
    build_t5,
    encode_histories,
    group_by_length,
    sequence_log_prob,
)
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import T5Settings

SMALL = T5Settings(encoder_layers=2, decoder_layers=2, d_model=24, d_ff=32, heads=2, d_kv=8)


def small_batch(words: Vocabulary, rows: int = 9, width: int = 6) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(5)
    codes = torch.randint(words.codebook_size, (40, words.levels))
    history = torch.randint(40, (rows, width))
    length = torch.randint(1, width + 1, (rows,))
    return codes, history, length, words.tokens(codes[torch.randint(40, (rows,))])


def test_default_network_has_the_published_size():
    t5 = build_t5(T5Settings(), Vocabulary(4, 256))
    assert sum(parameter.numel() for parameter in t5.parameters()) == 4_330_240
    assert t5.config.vocab_size == 1026 and t5.config.decoder_start_token_id == 0
    assert t5.lm_head.weight is t5.shared.weight


def test_network_is_drawn_from_the_callers_generator():
    words = Vocabulary(2, 4)
    torch.manual_seed(3)
    one = build_t5(SMALL, words).state_dict()
    torch.manual_seed(3)
    two = build_t5(SMALL, words).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_vocabulary_offsets_each_level_and_comes_back():
    words = Vocabulary(levels=3, codebook_size=5)
    codes = torch.tensor([[0, 0, 0], [4, 3, 1]])
    assert words.size == 17
    assert words.tokens(codes).tolist() == [[2, 7, 12], [6, 10, 13]]
    assert torch.equal(words.codes(words.tokens(codes)), codes)
    assert words.level(1) == slice(7, 12)


@pytest.mark.parametrize("codes", [[[0, 5]], [[-1, 0]], [[0, 1, 2]]])
def test_vocabulary_refuses_codes_that_do_not_fit(codes):
    with pytest.raises(GMCError):
        Vocabulary(2, 5).tokens(torch.tensor(codes))


def test_vocabulary_refuses_a_token_of_another_level():
    with pytest.raises(GMCError):
        Vocabulary(2, 5).codes(torch.tensor([[2, 2]]))


def test_histories_are_concatenated_with_eos_behind_the_last_item():
    words = Vocabulary(2, 4)
    codes = torch.tensor([[0, 1], [2, 3], [3, 0]])
    tokens, mask = encode_histories(codes, torch.tensor([[1, -1, -1], [2, 0, 1]]), torch.tensor([1, 3]), words)
    assert tokens.tolist() == [[4, 9, 1, 0, 0, 0, 0], [5, 6, 2, 7, 4, 9, 1]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0, 0], [1] * 7]


def test_long_history_is_cut_on_item_boundaries_oldest_first():
    """Row 32 of the fault matrix."""
    words = Vocabulary(2, 4)
    codes = torch.tensor([[0, 1], [2, 3], [3, 0]])
    history, length = torch.tensor([[0, 1, 2, -1], [2, -1, -1, -1]]), torch.tensor([3, 1])
    tokens, mask = encode_histories(codes, history, length, words, max_items=2)
    assert tokens.tolist() == [[4, 9, 5, 6, 1], [5, 6, 1, 0, 0]]
    assert mask.sum(1).tolist() == [5, 3]


def test_padding_of_a_history_is_never_read_but_holes_are_refused():
    words = Vocabulary(2, 4)
    codes = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(GMCError, match="no semantic ID"):
        encode_histories(codes, torch.tensor([[0, -1]]), torch.tensor([2]), words)
    with pytest.raises(GMCError, match="lengths"):
        encode_histories(codes, torch.tensor([[0, 1]]), torch.tensor([3]), words)
    tokens, _ = encode_histories(codes, torch.tensor([[0, 99]]), torch.tensor([1]), words)
    assert tokens.tolist() == [[2, 7, 1]]


def test_empty_histories_are_an_eos():
    tokens, mask = encode_histories(torch.tensor([[0, 1]]), torch.tensor([[-1]]), torch.tensor([0]), Vocabulary(2, 4))
    assert tokens.tolist() == [[1]] and mask.tolist() == [[1]]


def test_log_probabilities_are_those_that_transformers_computes():
    words = Vocabulary(3, 7)
    t5 = build_t5(SMALL, words).eval()
    codes, history, length, labels = small_batch(words)
    tokens, mask = encode_histories(codes, history, length, words)
    with torch.no_grad():
        reference = t5(input_ids=tokens, attention_mask=mask, labels=labels)
        log_prob = sequence_log_prob(t5, tokens, mask, labels)
    by_hand = reference.logits.log_softmax(-1)
    for row, label in enumerate(labels.tolist()):
        hand = sum(by_hand[row, level, token].item() for level, token in enumerate(label))
        assert log_prob[row].item() == pytest.approx(hand, abs=1e-5)
    assert reference.loss.item() == pytest.approx(-log_prob.mean().item() / 3, abs=1e-5)


def test_groups_have_one_length_each():
    length = torch.tensor([3, 1, 3, 3, 2, 1])
    assert [g.tolist() for g in group_by_length(length)] == [[1, 5], [4], [0, 2, 3]]
