"""The prefix tree against grouping its paths by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import GMCError


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, unique=True),
    size=st.sampled_from([4, 7, 2**40]),
)
def test_tree_holds_exactly_its_paths(paths, size):
    tree = Trie.build(torch.tensor(paths), size)
    ordered = sorted(paths)
    assert [tuple(path) for path in tree.paths(2).tolist()] == ordered
    assert [paths[row] for row in tree.items.tolist()] == ordered and len(tree) == len(paths)
    for level in range(3):
        prefixes = [key for key, _ in itertools.groupby(ordered, key=lambda path: path[: level + 1])]
        assert tree.codes[level].tolist() == [prefix[-1] for prefix in prefixes]
        parents = [key for key, _ in itertools.groupby(ordered, key=lambda path: path[:level])]
        counts = [sum(prefix[:level] == parent for prefix in prefixes) for parent in parents]
        assert tree.first[level].diff().tolist() == counts and tree.first[level][0] == 0


def test_tree_refuses_what_is_no_catalogue():
    with pytest.raises(GMCError, match="items 1 and 3 .* share"):
        Trie.build(torch.tensor([[0, 1], [2, 2], [1, 1], [2, 2]]), 4)
    with pytest.raises(GMCError, match="do not fit"):
        Trie.build(torch.tensor([[0, 4]]), 4)
    with pytest.raises(GMCError):
        Trie.build(torch.zeros(0, 3), 4)


def test_tree_is_linear_in_the_items():
    torch.manual_seed(0)
    codes = torch.randint(0, 256, (20_000, 4)).unique(dim=0)
    tree = Trie.build(codes.numpy(), 256)
    numbers = sum(tensor.numel() for tensor in (*tree.codes, *tree.first, tree.items))
    assert numbers <= 2 * 4 * len(codes) + len(codes) + 8
    assert torch.equal(tree.to("cpu").paths(3), codes)
