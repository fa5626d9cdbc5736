"""The item-wise decoder: a causal transformer over items whose codes are read out one after another.

An item takes one position, where a T5 over codes takes L, and every position of a sequence is a target in one pass
(as in SASRec, arXiv 1808.09781; the depth-wise read-out of codes as in RQ-Transformer, arXiv 2203.01941).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_gmc.errors import SettingError
from recbole_gmc.model.repeats import Repeats
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import key

INIT = 0.02  # standard deviation of all random weights


@dataclass(frozen=True)
class ItemwiseSettings:
    """The network, and what an item is made of."""

    width: int = key("hidden_size", 128, least=2)
    inner: int = key("inner_size", 256, least=1)
    layers: int = key("n_layers", 2, least=1)
    heads: int = key("n_heads", 2, least=1)
    dropout: float = key("hidden_dropout_prob", 0.5, least=0.0, most=0.9)
    attention_dropout: float = key("attn_dropout_prob", 0.5, least=0.0, most=0.9)
    readout: int = key("readout_size", 256, least=1)
    readout_dropout: float = key("readout_dropout_prob", 0.1, least=0.0, most=0.9)
    text: bool = key("text_input", True)
    vectors: bool = key("item_vectors", True)
    dense: bool = key("dense_head", True)
    repeats: bool = key("repeat_bias", True)
    train_softmax: str = key("train_softmax", "tree", choices=("table", "tree"))
    rank_softmax: str = key("rank_softmax", "tree", choices=("table", "tree"))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            mend = "Choose a multiple of n_heads"
            raise SettingError(f"{self.width} is not a multiple of n_heads {self.heads}", "hidden_size", mend)


class TextMap(nn.Module):
    """A linear map of text embeddings [..., D] that are centred and scaled to a mean squared length of 1."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width, bias=False)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, text: Tensor) -> None:
        """Takes mean and scale from the embeddings [n, D] of the catalogue."""
        self.mean.copy_(text.mean(0))
        length = (text - self.mean).square().sum(1).mean().sqrt()
        self.scale.copy_(length if length > 0 else 1.0)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear((text - self.mean) / self.scale)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer over positions without padding, each followed by its norm."""

    def __init__(self, settings: ItemwiseSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.attention_dropout = settings.heads, settings.attention_dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.wi, self.wo = nn.Linear(width, settings.inner), nn.Linear(settings.inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, hidden: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
        """[T, d] from [T, d]; position t stands at ``place[t]`` of the B x S grid ``shape``.

        Only attention sees the grid. It is padded at the ends, where causal attention does not look.
        """
        heads = []
        for part in (self.q, self.k, self.v):
            rows = part(hidden)
            grid = rows.new_zeros(shape[0] * shape[1], rows.shape[1]).index_copy(0, place, rows)
            heads.append(grid.view(*shape, self.heads, -1).transpose(1, 2))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(shape[0] * shape[1], -1).index_select(0, place)
        hidden = self.norm1(hidden + self.dropout(self.o(mixed)))
        return self.norm2(hidden + self.dropout(self.wo(F.gelu(self.wi(hidden)))))


class ReadOut(nn.Module):
    """What one level adds to the state, from the state and the codes chosen before: a multi-layer perceptron.

    Its first layer is linear in the sum of state and code vectors, so decoding computes either part once.
    """

    def __init__(self, settings: ItemwiseSettings) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(settings.width, settings.readout), nn.Linear(settings.readout, settings.width)
        self.dropout = nn.Dropout(settings.readout_dropout)

    def forward(self, rows: Tensor) -> Tensor:
        return self.wo(self.dropout(torch.relu(self.wi(rows))))


class ItemwiseNetwork(nn.Module):
    """Histories of items to states, states to codes level by level, and to items at once.

    Args:
        settings: sizes and switches.
        vocabulary: levels and codes a level.
        items: rows of the item table; without item vectors there is no table.
        text_dim: D of the text embeddings, 0 for none.
        max_items: S, the longest history.
        domains: how many there are.

    Weights are drawn from torch's global generator. Item vectors start at zero: an item is at first what its codes
    and its text say.
    """

    def __init__(
        self,
        settings: ItemwiseSettings,
        vocabulary: Vocabulary,
        items: int,
        text_dim: int,
        max_items: int,
        domains: int = 1,
    ) -> None:
        super().__init__()
        width, levels = settings.width, vocabulary.levels
        self.settings = settings
        self._made_of = (settings, vocabulary, items, text_dim, max_items, domains)
        self.tables = nn.Parameter(torch.empty(levels, vocabulary.codebook_size, width))
        self.position = nn.Embedding(max_items, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.readouts = nn.ModuleList(ReadOut(settings) for _ in range(levels))
        self.text = TextMap(text_dim, width) if settings.text and text_dim else None
        self.apply(self._start)
        nn.init.normal_(self.tables, std=INIT)
        self.vectors = nn.Parameter(torch.zeros(items, width)) if settings.vectors else None
        self.repeats = Repeats(domains) if settings.repeats else None

    def holding(self, state: Mapping[str, Tensor]) -> ItemwiseNetwork:
        """A network of the same shape, in evaluation mode, with a copy of these weights."""
        with torch.device("meta"):
            made = ItemwiseNetwork(*self._made_of)
        copies = {name: tensor.detach().clone() for name, tensor in state.items()}
        made.load_state_dict(copies, assign=True)
        return made.requires_grad_(False).eval()

    @staticmethod
    def _start(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=INIT)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def items(self, codes: Tensor, text: Tensor | None, rows: slice | None = None) -> Tensor:
        """[n, d]: what each item enters as, and what the dense head compares states with.

        Args:
            codes: int64 [n, L].
            text: [n, D], where the network reads text.
            rows: the items' places in the item table; items without one, new ones, have a zero vector.
        """
        levels, size, width = self.tables.shape
        offsets = size * torch.arange(levels, device=codes.device)
        found = F.embedding_bag(codes + offsets, self.tables.view(-1, width), mode="sum")
        if self.text is not None:
            found = found + self.text(text)
        if self.vectors is not None and rows is not None:
            found = found + self.vectors[rows]
        return found

    def states(self, items: Tensor, history: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """A state after every item of every history.

        Args:
            items: [n, d], the items' vectors.
            history: int64 [B, S], rows of ``items``, oldest first; anything past ``length``.
            length: int64 [B], at least 1.

        Returns:
            States [T, d] of all positions, history by history, and where each stands in the B x S grid, int64 [T].
        """
        longest = int(length.max())
        inside = torch.arange(longest, device=length.device) < length[:, None]
        place = inside.flatten().nonzero().squeeze(1)
        rows = history[:, :longest].flatten()[place]
        hidden = self.dropout(self.norm(items[rows] + self.position.weight[place % longest]))
        for block in self.blocks:
            hidden = block(hidden, place, (len(history), longest))
        return hidden, place // longest * history.shape[1] + place % longest

    def last_states(self, items: Tensor, history: Tensor, length: Tensor) -> Tensor:
        """[B, d]: the state after the whole history."""
        return self.states(items, history, length)[0][length.cumsum(0) - 1]

    def level_logits(self, states: Tensor, codes: Tensor) -> Tensor:
        """[T, L, N]: the logits of each level's codes after the codes before it, teacher-forced.

        Level l compares, with its code table, the state plus what its read-out makes of the state and the vectors of
        the codes of the levels before.

        Args:
            states: [T, d].
            codes: int64 [T, L]; the last level's are not looked at.
        """
        path, logits = states, []
        for level, (table, readout) in enumerate(zip(self.tables, self.readouts, strict=True)):
            logits.append((states + readout(path)) @ table.T)
            path = path + table[codes[:, level]]
        return torch.stack(logits, dim=1)
