"""A trained model that recommends: semantic IDs, one network a domain, and nothing of RecBole."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config

from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.decode.best_first import search_exact
from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import DataError
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.seq2seq import encode_histories, group_by_length
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.products import choose
from recbole_gmc.settings import DecodeSettings
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

State = Mapping[str, Tensor]
CACHED = 64 << 20  # bytes of a batch on a CPU: one of 256 MB falls out of its caches and takes 4 to 12% longer


@dataclass(frozen=True)
class Ranking:
    """Lists of B users: item rows [B, K] (-1 past a short catalogue), log-probabilities [B, K], certified [B]."""

    ranked: np.ndarray
    scores: np.ndarray
    certified: np.ndarray


class ListRecommender(ABC):
    """Gives the best items of a domain for a history of that domain.

    Attributes:
        items: all items of all domains.
        max_items: items of history that count; older ones are dropped.
        decode: length of the lists (``beam_size``), users ranked at once.
    """

    items: ItemIndex
    max_items: int
    decode: DecodeSettings
    unknown = "unknown items"
    limit = "lists"

    @abstractmethod
    def rank(self, domain: str, history: Tensor, length: Tensor) -> Ranking:
        """Ranks for B users of one domain.

        Args:
            history: int64 [B, S], item rows, oldest first, -1 past ``length``.
            length: int64 [B].
        """

    def each_part(self, users: Tensor, work: Callable[[Tensor], None]) -> None:
        """``work`` on all ``users`` at once, or on each half of them where the device runs out of memory.

        Raises:
            torch.OutOfMemoryError: even one user is too much.
        """
        try:
            work(users)
            return
        except torch.OutOfMemoryError:  # what it holds is free once this block is left
            if len(users) == 1:
                raise
        torch.cuda.empty_cache()
        for half in users.chunk(2):
            self.each_part(half, work)

    def recommend(self, domain: str, history: Sequence[str], k: int = 10) -> list[tuple[str, float]]:
        """The k best next items after ``history`` (item tokens, oldest first), each with its score.

        Raises:
            DataError: unknown domain or item, a history that is no list or empty, or k that is no length of a list.
        """
        items = self.items
        if domain not in items.row_of:
            raise DataError(f"unknown domain {domain!r}", mend=f"Choose one of: {', '.join(items.domains)}")
        if not isinstance(k, Integral) or not 1 <= k <= self.decode.beam_size:
            what = f"k = {k!r} is not within the {self.limit} of {self.decode.beam_size}"
            raise DataError(what, mend=f"Ask for 1 to {self.decode.beam_size} items")
        if isinstance(history, str):
            raise DataError(f"the history {history!r} is one text", domain, "Give a list of item tokens, oldest first")
        if unknown := [token for token in history if token not in items.row_of[domain]]:
            raise DataError(f"{self.unknown}: {unknown[:10]}", domain, "Leave them out of the history")
        rows = [items.row_of[domain][token] for token in history][-self.max_items :]
        if not rows:
            raise DataError("the history is empty", domain, "Give at least one item")
        found = self.rank(domain, torch.tensor([rows]), torch.tensor([len(rows)]))
        names = items.tokens[domain]
        start = items.rows(domain).start
        pairs = zip(found.ranked[0, :k].tolist(), found.scores[0, :k].tolist(), strict=True)
        return [(names[row - start], score) for row, score in pairs if row >= 0]


class Recommender(ListRecommender):
    """Ranks the items of a domain for histories of that domain, by beam search on its prefix tree.

    Args:
        ids: semantic IDs of all domains.
        config: shape of the T5.
        states: domain -> weights of the plain T5, the domain's adapter already merged.
        max_items: items of history that count; older ones are dropped.
    """

    unknown = "items without semantic IDs"
    limit = "beam"

    def __init__(
        self,
        ids: SemanticIds,
        config: T5Config,
        states: Mapping[str, State],
        *,
        max_items: int,
        decode: DecodeSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.ids, self.items, self.max_items, self.decode = ids, ids.items, max_items, decode
        self.device = torch.device(device)
        self.vocabulary = Vocabulary.of(ids)
        self._codes = torch.from_numpy(np.asarray(ids.codes, np.int64)).to(self.device)
        products = choose(
            decode.gemm, decode.precision, self.device, config.d_model, 3 * config.num_heads * config.d_kv
        )
        self.searches = {}
        for domain, state in states.items():
            trie = Trie.build(torch.from_numpy(np.asarray(ids.for_domain(domain), np.int64)), ids.codebook_size)
            self.searches[domain] = BeamSearch(state, config, trie, self.vocabulary, decode.beam_size, products)

    @torch.inference_mode()
    def rank(self, domain: str, history: Tensor, length: Tensor) -> Ranking:
        search, start = self.searches[domain], self.ids.items.rows(domain).start
        ranked = torch.full((len(history), self.decode.beam_size), -1, dtype=torch.int64)
        scores = torch.full(ranked.shape, -torch.inf)
        certified = torch.zeros(len(history), dtype=torch.bool)
        history, length = history.cpu(), length.cpu()  # the lists are gathered on the CPU, by the same indices

        def search_for(users: Tensor) -> None:
            tokens, mask = encode_histories(
                self._codes,
                history[users].to(self.device),
                length[users].to(self.device),
                self.vocabulary,
                self.max_items,
            )
            if self.decode.search == "exact":
                found = search_exact(search, tokens, mask, self.decode.memory_mb << 20)
            else:
                found = search.search(tokens, mask)
            ranked[users] = torch.where(found.items >= 0, found.items + start, -1).cpu()
            scores[users] = found.scores.float().cpu()
            certified[users] = found.certified.cpu()

        for users in self._batches(search, length.clamp(max=self.max_items)):
            self.each_part(users, search_for)
        return Ranking(ranked.numpy(), scores.numpy(), certified.numpy())

    def _batches(self, search: BeamSearch, length: Tensor) -> Iterator[Tensor]:
        """Users of equal history length, which need no padding; as many at once as the settings let into memory."""
        memory = self.decode.memory_mb << 20
        if self.device.type == "cpu":
            memory = min(memory, CACHED)
        for group in group_by_length(length):
            tokens = int(length[group[0]]) * self.vocabulary.levels + 1
            user = search.network.user_bytes(tokens, self.decode.beam_size, self.vocabulary.levels)
            most = min(max(memory // user, 1), self.decode.batch_users)
            yield from group.tensor_split(math.ceil(len(group) / most))
