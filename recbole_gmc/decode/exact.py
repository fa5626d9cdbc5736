"""The exact score of every item: the oracle of the tests, and the dense scores of small catalogues."""

from __future__ import annotations

import math

import torch

from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.decode.network import Memory
from recbole_gmc.errors import GMCError


@torch.no_grad()
def score_all(search: BeamSearch, input_ids: torch.Tensor, mask: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """The log-probability of every item of the tree for every user, with no pruning.

    Every distinct prefix of L - 1 codes is teacher-forced on its own path; cost grows with the catalogue.

    Args:
        search: gives weights, tree and vocabulary; its beam size does not matter.
        input_ids, mask: histories as for ``BeamSearch.search``.
        chunk: prefixes in one pass.

    Returns:
        float32 [B, items], columns in the tree's item rows.
    """
    trie, network, vocabulary = search.trie, search.network, search.vocabulary
    device = network.device
    memory = network.encode(input_ids.to(device), mask.to(device))
    size, levels = len(input_ids), trie.levels
    by_leaf = torch.empty(size, len(trie), device=device)
    prefixes = trie.paths(levels - 2) if levels > 1 else torch.zeros(1, 0, dtype=torch.long, device=device)
    offsets = torch.tensor([vocabulary.level(level).start for level in range(levels)], device=device)
    first = trie.first[levels - 1]
    for begin in range(0, len(prefixes), chunk):
        tokens = prefixes[begin : begin + chunk] + offsets[: levels - 1]
        path, log_probs = _walk(search, memory, tokens, size)
        leaves = slice(int(first[begin]), int(first[begin + len(tokens)]))
        counts = first[begin + 1 : begin + len(tokens) + 1] - first[begin : begin + len(tokens)]
        parent = torch.repeat_interleave(torch.arange(len(tokens), device=device), counts)
        token = trie.codes[levels - 1][leaves] + offsets[-1]
        by_leaf[:, leaves] = path[:, parent] + log_probs[:, parent, token]
    scores = torch.empty_like(by_leaf)
    scores[:, trie.items] = by_leaf
    if bool(scores.isnan().any()):
        raise GMCError("the recommender's output is not a number", mend="Go back to an earlier checkpoint")
    return scores


def _walk(search: BeamSearch, memory: Memory, tokens: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forces prefixes [P, L - 1]; returns their log-probabilities [B, P] and those after them [B, P, V]."""
    network = search.network
    count, depth = tokens.shape
    branch = Memory(memory.cross, memory.bias, [None] * len(memory.tree))
    place = torch.arange(count, device=tokens.device)
    owner, position = place.new_zeros(0), place.new_zeros(0)
    score = torch.zeros(size, count, device=tokens.device)
    step = tokens.new_full((count,), network.start)
    for level in range(depth + 1):
        owner, position = torch.cat([owner, place]), torch.cat([position, torch.full_like(place, level)])
        bias = network.decoder_position_bias(level - position)[:, None]
        bias = torch.where(owner == place[:, None], bias, -math.inf)[None]
        log_probs = network.step(step.expand(size, -1), branch, bias).log_softmax(-1)
        if level < depth:
            step = tokens[:, level]
            score += log_probs.gather(2, step.expand(size, -1)[..., None]).squeeze(2)
    return score, log_probs
