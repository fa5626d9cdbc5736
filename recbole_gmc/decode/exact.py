"""The exact score of every item: the oracle of the tests, and the dense scores of small catalogues."""

from __future__ import annotations

import torch

from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.decode.network import Memory
from recbole_gmc.decode.soundness import refuse_broken


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
    memory = network.encode(input_ids.to(device), mask.to(device), room=chunk * trie.levels)
    size, levels = len(input_ids), trie.levels
    scores = torch.empty(size, len(trie), device=device)
    prefixes = trie.paths(levels - 2) if levels > 1 else torch.zeros(1, 0, dtype=torch.long, device=device)
    offsets = torch.tensor([vocabulary.level(level).start for level in range(levels)], device=device)
    first, last, items = trie.first[-1].long(), trie.codes[-1], trie.items.long()
    for begin in range(0, len(prefixes), chunk):
        tokens = prefixes[begin : begin + chunk] + offsets[: levels - 1]
        path, log_probs = _walk(search, memory, tokens, size)
        bounds = first[begin : begin + len(tokens) + 1]
        leaves = slice(int(bounds[0]), int(bounds[-1]))
        parent = torch.repeat_interleave(torch.arange(len(tokens), device=device), bounds.diff())
        scores[:, items[leaves]] = path[:, parent] + log_probs[:, parent, last[leaves].long() + offsets[-1]]
    refuse_broken(scores.isnan())
    return scores


def _walk(search: BeamSearch, memory: Memory, tokens: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forces prefixes [P, L - 1]; returns their log-probabilities [B, P] and those after them [B, P, V]."""
    network = search.network
    count, depth = tokens.shape
    memory.used = 0
    place = torch.arange(count, device=tokens.device)
    score = torch.zeros(size, count, device=tokens.device)
    step = tokens.new_full((count,), network.start)
    for level in range(depth + 1):
        past = torch.arange(level + 1, device=tokens.device)
        bias = network.lineage_bias(level - past)[:, None, None]
        lineage = (place[:, None] + past * count).expand(size, -1, -1)
        log_probs = network.step(step.expand(size, -1), memory, lineage, bias)
        if level < depth:
            step = tokens[:, level]
            score += log_probs.gather(2, step.expand(size, -1)[..., None]).squeeze(2)
    return score, log_probs
