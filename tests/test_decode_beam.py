"""Beam search against every item scored one by one, against transformers' generate, and on random trees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_gmc.decode import beam as beam_module
from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.decode.best_first import search_exact
from recbole_gmc.decode.exact import score_all
from recbole_gmc.decode.network import Memory
from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import GMCError
from recbole_gmc.model.adapters import DomainAdapters
from recbole_gmc.model.seq2seq import build_t5, encode_histories, sequence_log_prob
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import LoraSettings, T5Settings

SMALL = T5Settings(encoder_layers=2, decoder_layers=2, d_model=32, d_ff=48, heads=2, d_kv=16)
TINY = T5Settings(encoder_layers=1, decoder_layers=2, d_model=16, d_ff=16, heads=2, d_kv=8)


class Case:
    """A random network over a random catalogue, and histories of several lengths."""

    def __init__(self, items=70, levels=3, size=8, users=6, network=SMALL, seed=0, sharp=1.0, padded=True):
        torch.manual_seed(seed)
        self.words = Vocabulary(levels, size)
        self.t5 = build_t5(network, self.words).eval()
        with torch.no_grad():  # a random head is nearly flat; a trained one is not
            self.t5.decoder.final_layer_norm.weight.mul_(sharp)
        every = torch.cartesian_prod(*[torch.arange(size)] * levels).view(-1, levels)
        self.codes = every[torch.randperm(len(every))[:items]]
        history = torch.randint(len(self.codes), (users, 6))
        length = torch.arange(users) % 6 + 1 if padded else torch.full((users,), 4)
        self.tokens, self.mask = encode_histories(self.codes, history, length, self.words)
        self.trie = Trie.build(self.codes, size)

    def search(self, beam: int, state=None) -> BeamSearch:
        return BeamSearch(state or self.t5.state_dict(), self.t5.config, self.trie, self.words, beam)

    @torch.no_grad()
    def brute_force(self) -> torch.Tensor:
        """[B, items]: every item teacher-forced through transformers' own forward pass."""
        labels = self.words.tokens(self.codes)
        rows = [
            sequence_log_prob(self.t5, t.expand(len(labels), -1), m.expand(len(labels), -1), labels)
            for t, m in zip(self.tokens, self.mask, strict=True)
        ]
        return torch.stack(rows)

    @torch.no_grad()
    def generate(self, beam: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [B, K, L] and scores [B, K] of transformers' constrained beam search."""
        children: dict[tuple[int, ...], set[int]] = {}
        for path in self.words.tokens(self.codes).tolist():
            for level, token in enumerate(path):
                children.setdefault(tuple(path[:level]), set()).add(token)
        levels = self.words.levels
        found = self.t5.generate(
            input_ids=self.tokens,
            attention_mask=self.mask,
            num_beams=beam,
            num_return_sequences=beam,
            prefix_allowed_tokens_fn=lambda _, seen: sorted(children[tuple(seen[1:].tolist())]),
            do_sample=False,
            early_stopping=False,
            length_penalty=0.0,
            min_new_tokens=levels,
            max_new_tokens=levels,
            return_dict_in_generate=True,
            output_scores=True,
        )
        users = len(self.tokens)
        return self.words.codes(found.sequences.view(users, beam, -1)[..., 1:]), found.sequences_scores.view(
            users, beam
        )


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_beam_as_wide_as_the_catalogue_ranks_all_items(activation):
    case = Case(items=40, network=T5Settings(2, 2, 32, 48, 2, 16, activation=activation))
    truth = case.brute_force()
    found = case.search(40).search(case.tokens, case.mask)
    assert torch.equal(found.items, truth.sort(1, descending=True).indices)
    assert torch.allclose(found.scores, truth.gather(1, found.items), atol=1e-5)
    assert found.certified.all()


def test_walking_the_whole_tree_gives_every_items_score():
    case = Case()
    for chunk in (7, 256):
        assert torch.allclose(score_all(case.search(5), case.tokens, case.mask, chunk), case.brute_force(), atol=1e-5)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("beam", [4, 20])
def test_order_and_scores_are_those_of_generate(padded, beam):
    case = Case(items=150, padded=padded, sharp=3.0)
    codes, scores = case.generate(beam)
    found = case.search(beam).search(case.tokens, case.mask)
    assert torch.equal(case.codes[found.items], codes)
    assert torch.allclose(found.scores, scores, atol=1e-4)


def test_order_and_scores_are_those_of_generate_with_an_adapter():
    case = Case(items=150)
    before = case.search(10).search(case.tokens, case.mask)
    adapters = DomainAdapters(case.t5, ("A", "B"), LoraSettings())
    adapters.restore("B", {k: 0.2 * torch.randn_like(w) for k, w in adapters.snapshot("B").items()})
    found = case.search(10, adapters.merged_state("B")).search(case.tokens, case.mask)
    adapters.activate("B")  # generate runs the peft layers themselves
    codes, scores = case.generate(10)
    assert torch.equal(case.codes[found.items], codes)
    assert torch.allclose(found.scores, scores, atol=1e-4)
    assert not torch.equal(found.items, before.items)
    again = case.search(10, adapters.merged_state("A")).search(case.tokens, case.mask)
    assert torch.equal(again.items, before.items)


def test_default_sizes_and_a_long_history_agree_with_generate():
    """81 tokens reach T5's logarithmic position buckets."""
    case = Case(items=400, levels=4, size=16, users=2, network=T5Settings(), padded=False)
    history = torch.randint(400, (2, 20))
    case.tokens, case.mask = encode_histories(case.codes, history, torch.tensor([20, 17]), case.words)
    codes, scores = case.generate(20)
    found = case.search(20).search(case.tokens, case.mask)
    assert torch.equal(case.codes[found.items], codes)
    assert torch.allclose(found.scores, scores, atol=1e-4)


def test_catalogue_smaller_than_the_beam_gives_distinct_items_then_misses():
    """Row 29 of the fault matrix."""
    case = Case(items=5)
    found = case.search(20).search(case.tokens, case.mask)
    assert found.items.shape == (6, 20)
    assert torch.equal(found.items[:, :5].sort(1).values, torch.arange(5).expand(6, -1))
    assert (found.items[:, 5:] == -1).all() and (found.scores[:, 5:] == -torch.inf).all()
    assert torch.equal(found.items[:, :5], case.brute_force().sort(1, descending=True).indices)
    assert found.certified.all()


def test_one_item_and_one_level():
    case = Case(items=1)
    assert case.search(3).search(case.tokens, case.mask).items.tolist() == [[0, -1, -1]] * 6
    flat = Case(items=6, levels=1)
    assert torch.equal(
        flat.search(6).search(flat.tokens, flat.mask).items, flat.brute_force().sort(1, descending=True).indices
    )
    assert torch.allclose(score_all(flat.search(6), flat.tokens, flat.mask), flat.brute_force(), atol=1e-5)


def test_weights_that_are_no_numbers_are_refused():
    """Row 29: NaN logits."""
    case = Case()
    for value in (float("nan"), float("inf")):
        state = {name: tensor.clone() for name, tensor in case.t5.state_dict().items()}
        state["decoder.block.1.layer.2.DenseReluDense.wo.weight"][0, 0] = value
        with pytest.raises(GMCError, match="not a number"):
            case.search(5, state).search(case.tokens, case.mask)


def test_target_outside_the_tree_is_never_returned():
    """Row 30, the decoder's part: what is not in the catalogue cannot be a hit."""
    case = Case(items=70)
    left_out = case.search(1).search(case.tokens, case.mask).items[0, 0].item()
    kept = [row for row in range(70) if row != left_out]
    case.trie = Trie.build(case.codes[kept], 8)
    found = case.search(69).search(case.tokens, case.mask)
    assert torch.equal(found.items.sort(1).values, torch.arange(69).expand(6, -1))


def test_equal_scores_are_ordered_by_semantic_id():
    """Row 30: with a zero network every item scores the same, so the order is that of the code paths."""
    case = Case(items=30)
    state = {name: torch.zeros_like(tensor) for name, tensor in case.t5.state_dict().items()}
    rows = sorted(range(30), key=lambda row: case.codes[row].tolist())
    found = case.search(30, state).search(case.tokens, case.mask)
    assert found.items.tolist() == [rows] * 6 and found.certified.all()
    narrow = case.search(4, state).search(case.tokens, case.mask)
    assert narrow.items.tolist() == [rows[:4]] * 6


def test_best_breaks_ties_by_column_and_orders_all_numbers():
    scores = torch.tensor([[-1.0, 0.0, -0.0, -torch.inf, -1.0, -1e-30, -3e38, 0.5]])
    assert beam_module.best(scores, 8)[0].tolist() == [[7, 1, 2, 5, 0, 4, 6, 3]]
    torch.manual_seed(0)
    scores = -torch.randint(0, 30, (50, 300)).float() / 7
    assert torch.equal(beam_module.best(scores, 300)[0], scores.sort(dim=1, descending=True, stable=True).indices)


def test_a_users_list_does_not_depend_on_the_batch():
    case = Case(items=200, users=12)
    search = case.search(8)
    together = search.search(case.tokens, case.mask)
    for user in range(12):
        width = int(case.mask[user].sum())
        alone = search.search(case.tokens[user : user + 1, :width], case.mask[user : user + 1, :width])
        assert torch.equal(alone.items[0], together.items[user])
        assert torch.allclose(alone.scores[0], together.scores[user], atol=1e-5)


def test_search_keeps_the_weights_of_its_moment():
    case = Case()
    search = case.search(5)
    before = search.search(case.tokens, case.mask)
    with torch.no_grad():
        for parameter in case.t5.parameters():
            parameter.add_(1.0)
    assert torch.equal(search.search(case.tokens, case.mask).scores, before.scores)


def test_misfit_of_tree_and_vocabulary_is_refused():
    case = Case()
    with pytest.raises(GMCError, match="does not fit"):
        BeamSearch(case.t5.state_dict(), case.t5.config, case.trie, Vocabulary(4, 8), 5)
    with pytest.raises(GMCError, match="beam_size"):
        case.search(0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    levels=st.integers(1, 4),
    size=st.integers(2, 5),
    items=st.integers(1, 60),
    beam=st.integers(1, 25),
    sharp=st.sampled_from([1.0, 4.0, 12.0]),
)
def test_on_random_trees_lists_are_valid_and_certificates_sound(seed, levels, size, items, beam, sharp):
    """Distinct items of the tree, as many as there are, best first, with true scores; certified means exact."""
    case = Case(items, levels, size, users=3, network=TINY, seed=seed, sharp=sharp)
    count = len(case.codes)
    search = case.search(beam)
    truth = score_all(search, case.tokens, case.mask)
    found = search.search(case.tokens, case.mask)
    assert found.items.shape == found.scores.shape == (3, beam)
    for user, certified in enumerate(found.certified.tolist()):
        row, score = found.items[user], found.scores[user]
        length = int((row >= 0).sum())
        assert (row[length:] == -1).all() and (score[length:] == -torch.inf).all()
        assert len(set(row[:length].tolist())) == length and row.max() < count
        assert (score[:length].diff() <= 0).all()
        assert torch.allclose(truth[user, row[:length]], score[:length], atol=1e-4)
        assert length == min(beam, count) or not certified
        if certified:
            best = truth[user].sort(descending=True).values[:length]
            assert torch.allclose(best, score[:length], atol=1e-4)
        if beam >= count:
            assert certified
    exact, listed = search_exact(search, case.tokens, case.mask), min(beam, count)
    assert exact.certified.all() and (exact.items[:, listed:] == -1).all()
    best = truth.sort(1, descending=True).values[:, :listed]
    assert torch.allclose(exact.scores[:, :listed], best, atol=1e-4)
    assert torch.allclose(truth.gather(1, exact.items[:, :listed]), best, atol=1e-4)


def test_exact_search_is_the_oracles_where_the_beam_is_not_and_stops_at_its_memory(monkeypatch):
    case = Case(items=300, network=TINY, users=24, seed=3)
    search = case.search(5)
    beam = search.search(case.tokens, case.mask)
    truth = score_all(search, case.tokens, case.mask).sort(1, descending=True)
    assert not beam.certified.any() and not torch.equal(beam.items, truth.indices[:, :5])
    exact = search_exact(search, case.tokens, case.mask)
    assert exact.certified.all() and torch.equal(exact.items, truth.indices[:, :5])
    short = search_exact(search, case.tokens, case.mask, most_bytes=1.0)
    assert not short.certified.any() and torch.equal(short.items, beam.items)
    grow, taken = Memory.grow, []

    def watched(memory, room):
        before = memory.room
        grow(memory, room)
        taken.extend([memory.room * memory.place_bytes] if memory.room > before else [])

    monkeypatch.setattr(Memory, "grow", watched)
    every = []
    for power in range(10, 24):
        taken.clear()
        every.append(search_exact(search, case.tokens, case.mask, most_bytes=2.0**power))
        assert all(size <= 2.0**power for size in taken)
    assert taken
    certified = [int(found.certified.sum()) for found in every]
    assert certified[0] == 0 and certified[-1] == 24
    for found in every:
        assert torch.equal(found.items[found.certified], truth.indices[:, :5][found.certified])


def test_certificate_is_given_with_prefixes_cut_off_once_the_network_knows_where_the_items_are():
    """Targets under few prefixes teach the network that the rest is unlikely: a narrow beam is then provably exact."""
    case = Case(items=300, network=TINY, users=24, seed=3)
    search = case.search(20)
    assert not search.search(case.tokens, case.mask).certified.any()
    likely = case.codes[(case.codes[:, 0] == 2) & (case.codes[:, 1] < 6)]
    optimiser = torch.optim.Adam(case.t5.parameters(), lr=0.02)
    for _ in range(80):
        labels = case.words.tokens(likely[torch.randint(len(likely), (24,))])
        optimiser.zero_grad()
        case.t5(input_ids=case.tokens, attention_mask=case.mask, labels=labels).loss.backward()
        optimiser.step()
    assert 20 < len(likely) < 60
    search = case.search(20)
    found, truth = search.search(case.tokens, case.mask), score_all(search, case.tokens, case.mask)
    assert found.certified.all()
    assert torch.equal(found.items, truth.sort(1, descending=True).indices[:, :20])
