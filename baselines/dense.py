"""What the dense baselines share: item vectors, a vector a history, their cosine as score, exact lists from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder, TransformerLayer
from torch import Tensor, nn

from recbole_gmc.decode.beam import best
from recbole_gmc.decode.soundness import refuse_broken
from recbole_gmc.errors import SettingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.recommender import ListRecommender, Ranking
from recbole_gmc.settings import DecodeSettings, key


@dataclass(frozen=True)
class EncoderSettings:
    """The sequence encoder: the blocks of SASRec."""

    hidden_size: int = key("hidden_size", 300, least=2)
    inner_size: int = key("inner_size", 256, least=1)
    layers: int = key("n_layers", 2, least=1)
    heads: int = key("n_heads", 2, least=1)
    hidden_dropout: float = key("hidden_dropout_prob", 0.5, least=0.0, most=0.9)
    attention_dropout: float = key("attn_dropout_prob", 0.5, least=0.0, most=0.9)
    activation: str = key("hidden_act", "gelu", choices=("gelu", "relu", "swish", "tanh", "sigmoid"))
    eps: float = key("layer_norm_eps", 1e-12, above=0.0)
    init: float = key("initializer_range", 0.02, above=0.0)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            mend = "Choose a multiple of n_heads"
            raise SettingError(f"{self.hidden_size} is not a multiple of n_heads {self.heads}", "hidden_size", mend)


class SequenceEncoder(nn.Module):
    """Item vectors of a history, oldest first, to one vector: position embedding, LayerNorm, causal blocks."""

    def __init__(self, settings: EncoderSettings, max_items: int) -> None:
        super().__init__()
        self.position = nn.Embedding(max_items, settings.hidden_size)
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.eps)
        self.dropout = nn.Dropout(settings.hidden_dropout)
        self.blocks = TransformerEncoder(
            n_layers=settings.layers,
            n_heads=settings.heads,
            hidden_size=settings.hidden_size,
            inner_size=settings.inner_size,
            hidden_dropout_prob=settings.hidden_dropout,
            attn_dropout_prob=settings.attention_dropout,
            hidden_act=settings.activation,
            layer_norm_eps=settings.eps,
        )
        self.init = settings.init
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.init)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, vectors: Tensor, length: Tensor) -> Tensor:
        """[B, d] from ``vectors`` [B, S, d], of which the first ``length`` [B] of each row count.

        Rows of one length pass together, so no padding is computed: most histories are much shorter than S.
        """
        order = torch.argsort(length, stable=True)
        ordered = length[order]
        lengths, counts = torch.unique_consecutive(ordered, return_counts=True)
        # All tokens by one index: one a group would have a gradient as large as `vectors` for each of them.
        inside = torch.arange(vectors.shape[1], device=vectors.device) < ordered[:, None]
        row, place = inside.nonzero().unbind(1)
        tokens = vectors.flatten(0, 1).index_select(0, order[row] * vectors.shape[1] + place)
        groups = zip(tokens.split((lengths * counts).tolist()), lengths.tolist(), strict=True)
        last = torch.cat([self._last(group.view(-1, count, group.shape[1])) for group, count in groups])
        return last[torch.argsort(order)]

    def _last(self, vectors: Tensor) -> Tensor:
        """[b, d]: the last output for full histories [b, S, d]."""
        size = vectors.shape[1]
        hidden = self.dropout(self.norm(vectors + self.position.weight[:size]))
        later = torch.ones(size, size, dtype=torch.bool, device=vectors.device).triu(1)
        mask = torch.zeros(later.shape, dtype=hidden.dtype, device=vectors.device).masked_fill(later, -10000.0)
        *first, last = self.blocks.layer
        for block in first:
            hidden = block(hidden, mask)
        return last_output(last, hidden)


def last_output(block: TransformerLayer, hidden: Tensor) -> Tensor:
    """[b, d]: what a block of RecBole puts out at the last place of ``hidden`` [b, S, d], which sees all of them.

    Of the last block nobody reads the other places; computing them would cost about a quarter of the encoder.
    """
    attention = block.multi_head_attention
    query, key, value = (
        attention.transpose_for_scores(product(part)).transpose(1, 2)
        for product, part in (
            (attention.query, hidden[:, -1:]),
            (attention.key, hidden),
            (attention.value, hidden),
        )
    )
    scores = query @ key.transpose(2, 3) / attention.sqrt_attention_head_size
    mixed = attention.attn_dropout(attention.softmax(scores)) @ value
    out = attention.out_dropout(attention.dense(mixed.transpose(1, 2).flatten(2)))
    return block.feed_forward(attention.LayerNorm(out + hidden[:, -1:])).squeeze(1)


class DenseNetwork(nn.Module, ABC):
    """Scores an item for a history by the cosine of two vectors, divided by ``temperature``.

    ``features`` [n, ...] is what the network knows of n items (text vectors, codes, tokens), always those of one
    catalogue in its order; histories are rows of it.
    """

    temperature: float

    @abstractmethod
    def item_vectors(self, features: Tensor) -> Tensor:
        """[n, d], not normalised."""

    @abstractmethod
    def history_vectors(self, features: Tensor, vectors: Tensor, history: Tensor, length: Tensor) -> Tensor:
        """[B, d], not normalised.

        Args:
            vectors: [n, d], the ``item_vectors`` of ``features``.
            history: int64 [B, S], rows of ``features``, oldest first; anything past ``length``.
            length: int64 [B], at least 1.
        """

    def logits(self, histories: Tensor, vectors: Tensor) -> Tensor:
        """[B, n], cosines divided by the temperature."""
        return F.normalize(histories, dim=-1) @ F.normalize(vectors, dim=-1).T / self.temperature


def contrast(
    anchor: Tensor,
    positive: Tensor,
    temperature: float,
    *,
    target: Tensor | None = None,
    negatives: str = "exclude",
    extra: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of -log exp(<a_i, p_i>/tau) / sum_j exp(<a_i, p_j>/tau), all vectors [B, d] normalised.

    Args:
        target: int64 [B]. Other rows with the same target are no negatives.
        negatives: ``exclude`` leaves such rows out of the sum. ``zero`` does what the published code of UniSRec and
            VQRec does: their logit becomes 0, so each adds exp(0) = 1.
        extra: [B, d], one more negative for each row.
    """
    anchor, positive = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
    logits = anchor @ positive.T / temperature
    own = logits.diagonal()
    if target is not None:
        same = (target[:, None] == target) & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
        logits = logits.masked_fill(same, -torch.inf if negatives == "exclude" else 0.0)
    if extra is not None:
        more = (anchor * F.normalize(extra, dim=-1)).sum(-1, keepdim=True) / temperature
        logits = torch.cat([logits, more], dim=1)
    return (logits.logsumexp(dim=1) - own).mean()


def distinct_rows(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each group of equal rows int64 [u], and for every row [n] its group."""
    groups: dict[bytes, int] = {}
    place = [groups.setdefault(row.tobytes(), len(groups)) for row in vectors.cpu().numpy()]
    group = torch.tensor(place, device=vectors.device)
    first = torch.full((len(groups),), len(place), device=vectors.device)
    return first.scatter_reduce(0, group, torch.arange(len(place), device=vectors.device), "amin"), group


class DenseRecommender(ListRecommender):
    """Ranks the items of a domain by exact dense scores.

    Args:
        networks: domain -> its network in ``eval`` mode and the features of its items.
    """

    def __init__(
        self,
        items: ItemIndex,
        networks: Mapping[str, tuple[DenseNetwork, Tensor]],
        *,
        max_items: int,
        decode: DecodeSettings,
    ) -> None:
        self.items, self.max_items, self.decode = items, max_items, decode
        self._networks = networks
        with torch.inference_mode():
            self._vectors = {d: network.item_vectors(features) for d, (network, features) in networks.items()}
            self._distinct = {domain: distinct_rows(vectors) for domain, vectors in self._vectors.items()}

    @torch.inference_mode()
    def scores(self, domain: str, history: Tensor, length: Tensor) -> Tensor:
        """[B, items of the domain]; arguments as for ``rank``.

        Raises:
            GMCError: the network's output is not a number.
        """
        network, features = self._networks[domain]
        history = (history - self.items.rows(domain).start).clamp(min=0).to(features.device)
        vectors = self._vectors[domain]
        histories = network.history_vectors(features, vectors, history, length.to(features.device))
        # Equal vectors are scored once: two columns of one product may differ in the last bit, and equals are ties.
        first, place = self._distinct[domain]
        logits = network.logits(histories, vectors[first]).float()
        refuse_broken(logits.isnan())
        return logits[:, place]

    @torch.inference_mode()
    def rank(self, domain: str, history: Tensor, length: Tensor) -> Ranking:
        width, start = self.decode.beam_size, self.items.rows(domain).start
        ranked = torch.full((len(history), width), -1, dtype=torch.int64)
        scores = torch.full(ranked.shape, -torch.inf)

        def search_for(users: Tensor) -> None:
            there = users.to(history.device)
            found = self.scores(domain, history[there], length[there])
            columns = best(found, width)[0]
            ranked[users, : columns.shape[1]] = columns.cpu() + start
            scores[users, : columns.shape[1]] = found.gather(1, columns).cpu()

        for users in torch.arange(len(history)).split(self.decode.batch_users):
            self.each_part(users, search_for)
        return Ranking(ranked.numpy(), scores.numpy(), torch.ones(len(history), dtype=torch.bool).numpy())
