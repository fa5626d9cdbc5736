"""GMCPlus as RecBole sees it: the item-wise decoder with a dense head, on the tokenizer and the stages of GMC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.windows import Windows
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import SettingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.mixed_recommender import MixedRecommender
from recbole_gmc.model.code_tree import CodeTree
from recbole_gmc.model.generative import GenerativeRecommender
from recbole_gmc.model.itemwise import ItemwiseNetwork, ItemwiseSettings
from recbole_gmc.model.objectives import code_log_probs, dense_loss
from recbole_gmc.model.prefix_loss import prefix_aware_loss
from recbole_gmc.model.repeats import Seen
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import Lookup, PrefixSettings, key, read
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

AUTO = "auto"
UNTIL_CHOSEN = 0.75  # the weight while training: domains that were measured end there or at 1


@dataclass(frozen=True)
class LearningSettings:
    """What is learned from sequences by codes and dense head, and how the final ranking mixes both."""

    weight: float | str = key("dense_weight", AUTO)
    codes: float = key("code_loss_weight", 0.1, above=0.0)
    dropped: float = key("item_drop_ratio", 0.5, least=0.0, most=1.0)

    def __post_init__(self) -> None:
        if self.weight != AUTO and not (isinstance(self.weight, float) and 0 <= self.weight <= 1):
            raise SettingError(f"{self.weight!r} is no weight", "dense_weight", "Write auto, or a number from 0 to 1")


class GMCPlus(GenerativeRecommender):
    """One item-wise decoder over the items of all domains, with one LoRA adapter a domain.

    Codes and dense head share the item vectors and the states; the softmax of the dense head is over the items of the
    target's own domain. A domain's list is ordered by ``(1 - w) * log p(codes) + w * log p(item)``.
    """

    own_settings = (ItemwiseSettings, LearningSettings)
    network: ItemwiseNetwork

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        self.itemwise, self.learning = read(ItemwiseSettings, config), read(LearningSettings, config)
        self.prefix = read(PrefixSettings, config)
        self.mix = dict.fromkeys(self.items.domains, self.first_weight)
        self.network = _built(self.itemwise, self.vocabulary, self.items, None, self.max_items)
        self.register_buffer("text_rows", None, persistent=False)
        self._trees: dict[str, CodeTree] = {}  # of each domain, made when first asked for

    @property
    def first_weight(self) -> float:
        """The weight of the dense head before any is chosen."""
        if not self.itemwise.dense:
            return 0.0
        return UNTIL_CHOSEN if self.learning.weight == AUTO else float(self.learning.weight)

    @property
    def chooses_weight(self) -> bool:
        return self.itemwise.dense and self.learning.weight == AUTO

    # ---- inputs and weights --------------------------------------------------------------------------------------

    def set_inputs(self, ids: SemanticIds, text: TextEmbeddings | None = None) -> None:
        self.text = text if self.itemwise.text else None
        self.vocabulary = Vocabulary.of(ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _built(self.itemwise, self.vocabulary, self.items, self.text, self.max_items)
        self.network, self.text_rows = network.to(self.codes.device), None
        if self.text is not None:
            rows = torch.from_numpy(np.asarray(self.text.vectors))
            network.text.fit(rows.to(self.codes.device))
            self.text_rows = rows.to(self.codes.device)
        self._set_codes(ids)
        self._trees = {}

    def starting_point(self) -> list[Any]:
        text = [] if self.text is None else [self.text.fingerprint]
        return [
            self.semantic_ids.fingerprint,
            *text,
            self._base_fingerprint(),
            asdict(self.itemwise),
            asdict(self.learning),
        ]

    @staticmethod
    def rebuilt(config: Lookup, ids: SemanticIds, text: TextEmbeddings | None) -> ItemwiseNetwork:
        longest = config["MAX_ITEM_LIST_LENGTH"]
        return _built(read(ItemwiseSettings, config), Vocabulary.of(ids), ids.items, text, longest)

    @staticmethod
    def serving(
        network: ItemwiseNetwork,
        states: Mapping[str, Mapping[str, Tensor]],
        *,
        ids: SemanticIds,
        text: TextEmbeddings | None,
        mix: Mapping[str, float] | None,
        **how: Any,
    ) -> MixedRecommender:
        return MixedRecommender(ids, text, network, states, mix or {}, **how)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, windows: Windows) -> Tensor:
        """[T]: the loss of every position that is a target.

        The dense head's, and the codes' by their weight; the codes' alone where there is no such head.
        """
        catalogue, start = self._catalogue(windows)
        history = (windows.history + start[:, None]).clamp(min=0)
        states, place = self.network.states(catalogue, history, windows.length)
        taken = windows.counted.flatten()[place]
        states, place = states[taken], place[taken]
        target, owner = windows.next_items.flatten()[place], place // windows.history.shape[1]
        domain, seen = windows.domain[owner], self._seen(windows, owner, place % windows.history.shape[1] + 1)
        found = prefix_aware_loss(
            self._code_log_probs(states, target, domain, seen, self.itemwise.train_softmax),
            self.prefix.beta,
            self.prefix.eta,
        )
        if self.itemwise.dense:
            found = self.learning.codes * found
            for name, rows in self.by_domain(domain):
                span = self.items.rows(name)
                first = span.start + int(start[owner[rows[0]]])
                items = catalogue[first : first + span.stop - span.start]
                logits = self._dense_logits(states[rows], items, name, None if seen is None else seen.select(rows))
                found = found.index_add(0, rows, dense_loss(logits, target[rows] - span.start))
        return found

    def _catalogue(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """The items of the domains that a batch holds, [n, d], and what to add to each window's rows [B] to find them.

        Made once a step: histories and dense head read them.
        """
        names = [self.items.domains[number] for number in windows.domain.unique().tolist()]
        parts, shift, begin = [], torch.zeros_like(windows.domain), 0
        for name in names:
            span = self.items.rows(name)
            text = None if self.text_rows is None else self.text_rows[span]
            parts.append(self.network.items(self.codes[span], text, span))
            shift[windows.domain == self.items.domains.index(name)] = begin - span.start
            begin += span.stop - span.start
        return torch.cat(parts), shift

    def _seen(self, rows: SequenceRows, owner: Tensor, length: Tensor) -> Seen | None:
        """The items that stand first in the histories of ``owner`` [T], as many as ``length`` [T] says."""
        if self.network.repeats is None:
            return None
        starts = torch.tensor([self.items.rows(name).start for name in self.items.domains], device=length.device)
        local = (rows.history - starts[rows.domain][:, None]).clamp(min=0)
        return Seen.of(local[owner], length)

    def _code_log_probs(self, states: Tensor, target: Tensor, domain: Tensor, seen: Seen | None, among: str) -> Tensor:
        """[T, L]: of the targets' codes, each ``among`` all of its level or those in the tree."""
        codes = self.codes[target]
        logits = self.network.level_logits(states, codes)
        allowed = None if among == "table" else torch.empty_like(logits, dtype=torch.bool)
        for name, rows in self.by_domain(domain) if among == "tree" or seen is not None else ():
            local = target[rows] - self.items.rows(name).start
            if allowed is not None:
                allowed[rows] = self._tree(name).allowed(local)
            if seen is not None:
                bias = self.network.repeats.of_codes(self.items.domains.index(name))
                added = bias * self._tree(name).seen(local, seen.select(rows))
                logits = logits.index_add(0, rows, added.to(logits.dtype))
        return code_log_probs(logits, codes, allowed)

    def _dense_logits(self, states: Tensor, items: Tensor, domain: str, seen: Seen | None) -> Tensor:
        """[T, n]: of the domain's items [n, d]."""
        logits = states @ items.T
        if seen is None:
            return logits
        return seen.added_to(logits, self.network.repeats.of_items(self.items.domains.index(domain)))

    def _tree(self, domain: str) -> CodeTree:
        if domain not in self._trees:
            self._trees[domain] = CodeTree(self.codes[self.items.rows(domain)], self.vocabulary.codebook_size)
        return self._trees[domain]

    def loss(self, windows: Windows) -> Tensor:
        """The mean over all targets."""
        return self.losses(windows).mean()

    def backward(self, windows: Windows, dtype: torch.dtype, chunk_tokens: int) -> Tensor:
        """Adds the gradient of ``loss`` to the parameters and returns its value.

        Args:
            windows: an i.i.d. batch; in training some of their items are left out (``item_drop_ratio``).
            dtype: fp32 or bf16, of products and activations.
            chunk_tokens: positions held at once; fewer need less memory, the gradient stays.
        """
        if self.training and self.learning.dropped:
            windows = windows.thinned(self.learning.dropped)
        targets, total = int(windows.fresh.sum()), torch.zeros((), device=self.codes.device)
        for part in _chunks(windows, chunk_tokens):
            with torch.autocast(self.codes.device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = self.losses(part).sum() / targets
            loss.backward()
            total += loss.detach()
        return total

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        rows = self._rows(interaction)
        return self.loss(Windows(**vars(rows), fresh=torch.ones_like(rows.length)))

    # ---- scores --------------------------------------------------------------------------------------------------

    def predict(self, interaction: Interaction) -> Tensor:
        """[B]: the exact score of each row's item, in its own domain."""
        rows = self._rows(interaction)
        scores = torch.empty(len(rows), device=rows.target.device)
        for domain, users in self.by_domain(rows.domain):
            if self.adapters is not None:
                self.adapters.activate(domain)
            span, weight = self.items.rows(domain), self.mix[domain]
            text = None if self.text_rows is None else self.text_rows[span]
            items = self.network.items(self.codes[span], text, span)
            history = (rows.history[users] - span.start).clamp(min=0)
            states = self.network.last_states(items, history, rows.length[users])
            target, seen = rows.target[users], self._seen(rows, users, rows.length[users])
            among = self.itemwise.rank_softmax
            found = self._code_log_probs(states, target, rows.domain[users], seen, among).sum(1)
            dense = -dense_loss(self._dense_logits(states, items, domain, seen), target - span.start)
            scores[users] = (1 - weight) * found + weight * dense
        return scores

    def _scored(
        self, recommender: MixedRecommender, domain: str, history: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every item of the domain, with its exact score."""
        return self.item_of_row[self.items.rows(domain)], recommender.scores(domain, history, length)


def _built(
    settings: ItemwiseSettings, vocabulary: Vocabulary, items: ItemIndex, text: TextEmbeddings | None, max_items: int
) -> ItemwiseNetwork:
    dim = 0 if text is None else text.dim
    return ItemwiseNetwork(settings, vocabulary, len(items), dim, max_items, len(items.domains))


def _chunks(windows: Windows, positions: int) -> Iterator[Windows]:
    """The windows in order, in parts of at most so many positions where one window alone has no more."""
    end = windows.length.cumsum(0)
    if int(end[-1]) <= positions:
        yield windows
        return
    first = 0
    while first < len(windows):
        before = int(end[first - 1]) if first else 0
        last = max(int(torch.searchsorted(end, before + positions, right=True)), first + 1)
        yield windows.select(torch.arange(first, last, device=end.device))
        first = last
