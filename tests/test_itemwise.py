"""The item-wise decoder against its formulas written out: states, read-out, exact lists, beams, certificates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from itemwise_help import CODES, ITEMS, SMALL, all_scores, catalogue, histories, network, search

from recbole_gmc.decode.readout import Query
from recbole_gmc.errors import GMCError, SettingError
from recbole_gmc.model.code_tree import CodeTree
from recbole_gmc.model.itemwise import ItemwiseNetwork, ItemwiseSettings
from recbole_gmc.model.objectives import code_log_probs, dense_loss
from recbole_gmc.model.repeats import Seen

WEIGHTS = (0.0, 0.3, 0.75, 1.0)


@pytest.fixture(scope="module", params=["table", "tree"])
def made(request) -> ItemwiseNetwork:
    return network(settings=replace(SMALL, rank_softmax=request.param))


@torch.no_grad()
def items_of(made: ItemwiseNetwork) -> torch.Tensor:
    codes, text = catalogue()
    return made.items(codes, text if made.text is not None else None, slice(0, ITEMS))


@torch.no_grad()
def test_a_later_item_changes_no_earlier_state(made):
    items, length = items_of(made), torch.tensor([6, 6])
    history = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 6]])
    states, _ = made.states(items, history, length)
    one, other = states.view(2, 6, -1)
    assert torch.equal(one[:4], other[:4])
    assert not torch.allclose(one[4], other[4]) and not torch.allclose(one[5], other[5])


@torch.no_grad()
def test_a_state_does_not_depend_on_the_other_users(made):
    items, (history, length) = items_of(made), histories(9)
    states, place = made.states(items, history, length)
    assert len(states) == int(length.sum())
    for row in range(9):
        alone, _ = made.states(items, history[row : row + 1, : length[row]], length[row : row + 1])
        assert torch.allclose(states[place // 6 == row], alone, atol=1e-5)
        assert place[place // 6 == row].tolist() == [6 * row + column for column in range(length[row])]
    last = made.last_states(items, history, length)
    assert torch.allclose(last[3], made.states(items, history[3:4], length[3:4])[0][-1], atol=1e-5)


@torch.no_grad()
def test_an_item_is_the_sum_of_its_parts(made):
    codes, text = catalogue()
    whole = made.items(codes, text, slice(0, ITEMS))
    for row in (0, 7):
        parts = sum(made.tables[level, code] for level, code in enumerate(codes[row].tolist()))
        centred = (text[row] - made.text.mean) / made.text.scale
        parts = parts + made.text.linear.weight @ centred + made.vectors[row]
        assert torch.allclose(whole[row], parts, atol=1e-5)


def test_text_is_centred_and_scaled():
    made, text = network(), 100 + 7 * catalogue()[1]
    made.text.fit(text)
    normed = (text - made.text.mean) / made.text.scale
    assert torch.allclose(normed.mean(0), torch.zeros(5), atol=1e-4)
    assert float(normed.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("weight", WEIGHTS)
def test_scores_are_the_formulas(made, weight):
    finder, (history, length) = search(made), histories(4)
    query = finder.query(history, length)
    assert torch.allclose(finder.scores(query, weight), all_scores(made, query, weight), atol=1e-4)


@torch.no_grad()
def test_training_reads_out_the_same(made):
    finder, (history, length) = search(made), histories(5)
    query, codes = finder.query(history, length), catalogue()[0]
    rows, states = torch.arange(ITEMS).repeat(5), query.states.repeat_interleave(ITEMS, 0)
    tree, seen = CodeTree(codes, CODES), Seen.of(history, length)
    logits = made.level_logits(states, codes.repeat(5, 1))
    mask = tree.seen(rows, seen.select(torch.arange(5).repeat_interleave(ITEMS)))
    logits = logits + made.repeats.of_codes(1) * mask
    among_tree = made.settings.rank_softmax == "tree"
    found = code_log_probs(logits, codes.repeat(5, 1), tree.allowed(rows) if among_tree else None)
    found = found.sum(1).view(5, ITEMS)
    mass = found.exp().sum(1)
    assert torch.allclose(mass, torch.ones(5), atol=1e-4) if among_tree else (mass < 0.9).all()
    assert torch.allclose(found, finder.codes(query), atol=1e-4)
    logits = seen.added_to(query.states @ finder.vectors.T, made.repeats.of_items(1))
    dense = torch.stack([dense_loss(logits, torch.full((5,), item)) for item in range(ITEMS)], 1)
    assert torch.allclose(-dense, finder.dense(query), atol=1e-4)


def test_what_a_history_holds_is_told_by_item_and_by_prefix():
    """Items 0 and 1 share their first code, item 2 stands alone; the first history has both, the second one of them."""
    codes = torch.tensor([[4, 1], [4, 2], [3, 0], [0, 5]])
    seen = Seen.of(torch.tensor([[0, 1, 0, 2], [2, 0, 2, 1]]), torch.tensor([3, 3]))
    assert seen.counted.tolist() == [[True, True, False, False], [True, True, False, False]]
    mask = CodeTree(codes, 6).seen(torch.tensor([1, 1]), seen)
    held = [[tuple(place) for place in row.nonzero().tolist()] for row in mask]
    assert held == [[(0, 4), (1, 1), (1, 2)], [(0, 3), (1, 1)]]
    logits = seen.added_to(torch.zeros(2, 4), torch.tensor(-2.0))
    assert logits.tolist() == [[-2, -2, 0, 0], [-2, 0, -2, 0]]


def test_repeats_can_be_ruled_out():
    made = network()
    with torch.no_grad():
        made.repeats.bias[1] = -5.0
    finder, (history, length) = search(made), histories(8)
    for weight in WEIGHTS:
        found = finder.search(finder.query(history, length), weight, 5, exact=True)
        for user in range(8):
            assert not set(found.items[user].tolist()) & set(history[user, : length[user]].tolist())


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("wanted", [1, 5, 60])
def test_exact_lists_are_those_of_brute_force(made, weight, wanted):
    finder, (history, length) = search(made), histories(8, seed=3)
    with torch.no_grad():
        query = finder.query(history, length)
        truth = all_scores(made, query, weight)
    found = finder.search(query, weight, wanted, exact=True)
    assert found.certified.all() and found.items.shape == (8, wanted)
    best = truth.sort(dim=1, descending=True)
    kept = min(wanted, ITEMS)
    assert found.items[:, :kept].tolist() == best.indices[:, :kept].tolist()
    assert torch.allclose(found.scores[:, :kept], best.values[:, :kept], atol=1e-4)
    assert (found.items[:, kept:] == -1).all() and (found.scores[:, kept:] == -torch.inf).all()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_beams_that_cover_the_tree_find_the_same(made, weight):
    finder, (history, length) = search(made), histories(8)
    with torch.no_grad():
        query = finder.query(history, length)
    beam, exact = (finder.search(query, weight, ITEMS, exact) for exact in (False, True))
    assert beam.certified.all()
    assert torch.equal(beam.items, exact.items) and torch.equal(beam.scores, exact.scores)


@pytest.mark.parametrize("softmax", ["table", "tree"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_certificate_is_never_wrong_and_sometimes_missing(weight, softmax):
    certified = []
    for seed in range(4):
        made = network(seed, replace(SMALL, rank_softmax=softmax), sharp=12.0 if seed % 2 else 40.0)
        finder, (history, length) = search(made), histories(60, seed)
        with torch.no_grad():
            query = finder.query(history, length)
        for wanted in (1, 3):
            beam, exact = (finder.search(query, weight, wanted, exact) for exact in (False, True))
            right = (beam.items == exact.items).all(1)
            assert right[beam.certified].all()
            assert (beam.scores[:, -1] <= exact.scores[:, -1] + 1e-4).all()
            certified.append(beam.certified)
    certified = torch.cat(certified)
    assert certified.any() and not certified.all()


def test_equal_scores_are_ordered_by_code_path():
    made = network(settings=replace(SMALL, rank_softmax="table"))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    finder, codes = search(made), catalogue()[0]
    order = sorted(range(ITEMS), key=lambda row: codes[row].tolist())
    for weight in WEIGHTS:
        found = finder.search(Query(torch.zeros(1, 8)), weight, 7, exact=True)
        assert found.items[0].tolist() == order[:7]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_an_output_that_is_no_number_is_refused(made, weight):
    finder = search(made)
    with pytest.raises(GMCError, match="not a number"):
        finder.search(Query(torch.full((2, 8), torch.nan)), weight, 5, exact=True)
    if weight:
        finder.vectors[3] = torch.nan
        with pytest.raises(GMCError, match="not a number"):
            finder.search(Query(torch.ones(2, 8)), weight, 5, exact=True)


@pytest.mark.parametrize(
    "switch", [{"vectors": False}, {"text": False}, {"text": False, "vectors": False}, {"repeats": False}]
)
def test_switches_leave_their_parts_out(switch):
    made = network(settings=replace(SMALL, **switch))
    assert (made.vectors is None) == (switch.get("vectors") is False)
    assert (made.text is None) == (switch.get("text") is False)
    assert (made.repeats is None) == (switch.get("repeats") is False)
    finder, (history, length) = search(made), histories(3)
    with torch.no_grad():
        query = finder.query(history, length)
        assert torch.allclose(finder.scores(query, 0.5), all_scores(made, query, 0.5), atol=1e-4)


@torch.no_grad()
def test_without_an_item_table_new_items_are_scored_from_text_and_codes():
    made = network(settings=replace(SMALL, vectors=False, dense=False, rank_softmax="table"))
    assert not any(ITEMS in tensor.shape for tensor in made.state_dict().values())
    codes, text = catalogue()
    from recbole_gmc.decode.itemwise import ItemwiseSearch

    few, all_of_them = (ItemwiseSearch(made, codes[:count], text[:count], None, CODES) for count in (ITEMS - 10, ITEMS))
    history, length = torch.randint(ITEMS - 10, (4, 6)), torch.tensor([6, 3, 1, 2])
    query = few.query(history, length)
    others = all_of_them.query(history, length)
    assert torch.allclose(query.states, others.states, atol=1e-5)
    assert torch.allclose(all_of_them.codes(others)[:, : ITEMS - 10], few.codes(query), atol=1e-5)
    assert torch.isfinite(all_of_them.codes(others)).all()


def test_a_copy_holds_other_weights_and_later_changes_do_not_reach_it(made):
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    random = torch.get_rng_state()
    copy = made.holding(state)
    assert torch.equal(torch.get_rng_state(), random) and not copy.training
    state["tables"].zero_()
    assert torch.equal(copy.tables, made.tables)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(SettingError, match="hidden_size: 9 is not a multiple of n_heads 2"):
        ItemwiseSettings(width=9, heads=2)
