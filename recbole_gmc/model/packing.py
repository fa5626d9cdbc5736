"""Several short sequences in one row of fixed width, so that little padding is multiplied (Krell et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LANES = 32  # softmax over rows of another length takes up to twice as long on CPUs with vectors of 512 bits


@dataclass(frozen=True)
class Bins:
    """Sequences packed into ``count`` rows of ``width`` tokens.

    Attributes:
        width: tokens a bin, a multiple of ``LANES``.
        sequences: for every bin the numbers of its sequences.
    """

    width: int
    sequences: list[list[int]]

    @property
    def count(self) -> int:
        return len(self.sequences)

    @property
    def slots(self) -> int:
        return self.count * self.width


def pack(sizes: Sequence[int], most_tokens: int | None = None) -> list[list[Bins]]:
    """Puts every sequence into a bin: the longest left opens one, the longest that still fit fill it.

    Args:
        sizes: tokens of each sequence, at least 1.
        most_tokens: how many tokens, padding included, one chunk may hold; a wider bin is a chunk of its own.

    Returns:
        chunks; each is a list of ``Bins`` of different width, widest first.

    Example:
        >>> [[(bins.width, bins.sequences) for bins in chunk] for chunk in pack([5, 29, 40, 20, 9])]
        [[(64, [[2, 3]]), (32, [[1], [4, 0]])]]
    """
    left: dict[int, list[int]] = {}
    for number, size in enumerate(sizes):
        left.setdefault(size, []).append(number)
    order = sorted(left, reverse=True)
    chunks: list[dict[int, list[list[int]]]] = []
    held = 0
    while order:
        width = room = -(-order[0] // LANES) * LANES
        inside: list[int] = []
        for size in order:
            numbers = left[size]
            while numbers and size <= room:
                inside.append(numbers.pop())
                room -= size
        order = [size for size in order if left[size]]
        if not chunks or (most_tokens is not None and held + width > most_tokens):
            chunks.append({})
            held = 0
        chunks[-1].setdefault(width, []).append(inside)
        held += width
    return [[Bins(width, sequences) for width, sequences in chunk.items()] for chunk in chunks]


@dataclass(frozen=True)
class Block:
    """One width of a chunk, as the attention needs it.

    Attributes:
        start: the first of its tokens in the chunk.
        count, width: bins, and tokens a bin.
        segment: int64 [count, width], the number of the sequence in the chunk, -1 on padding.
        rows: int64 [count * most], the sequences of each bin, 0 where a bin holds fewer.
        places: int64 [sequences], where in ``rows`` each of its sequences stands.
        first: the first of its sequences in the chunk.
    """

    start: int
    count: int
    width: int
    segment: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    first: int

    @property
    def most(self) -> int:
        return len(self.rows) // self.count

    @property
    def stop(self) -> int:
        return self.start + self.count * self.width

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """[count, 1, width, width]: 0 within a sequence, very low between two."""
        same = self.segment[:, None, :, None] == self.segment[:, None, None, :]
        return barrier(same, dtype)

    def cross_mask(self, dtype: torch.dtype, length: int) -> torch.Tensor:
        """[count, 1, most * length, width]: what the ``length`` queries of each sequence see."""
        number = torch.full_like(self.rows, -1)
        number[self.places] = torch.arange(self.first, self.first + len(self.places), device=number.device)
        owner = number.view(self.count, self.most).repeat_interleave(length, 1)
        return barrier(owner[:, None, :, None] == self.segment[:, None, None, :], dtype)


def barrier(open: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where ``open``, elsewhere low enough that softmax gives 0; finite, so rows that see nothing stay finite."""
    return torch.zeros(open.shape, dtype=dtype, device=open.device).masked_fill_(~open, -1e9)


@dataclass(frozen=True)
class Chunk:
    """Packed histories with their labels.

    Attributes:
        order: int64 [N], the batch's rows in the order of the chunk.
        tokens: int64 [T], encoder tokens, bin after bin, padding included.
        blocks: one a width.
    """

    order: torch.Tensor
    tokens: torch.Tensor
    blocks: list[Block]

    @classmethod
    def of(cls, chunk: list[Bins], input_ids: torch.Tensor, sizes: torch.Tensor, pad: int) -> Chunk:
        """Lays out the rows of ``input_ids`` int64 [B, S], of which the first ``sizes`` [B] tokens count."""
        device = input_ids.device
        rows = [row for bins in chunk for inside in bins.sequences for row in inside]
        order = torch.tensor(rows)
        size = sizes.cpu()[order]
        starts, begins, begin = [], [], 0
        for bins in chunk:
            begins.append(begin)
            for number, inside in enumerate(bins.sequences):
                starts.append((begin + number * bins.width, len(inside)))
            begin += bins.slots
        bin_start, held = (torch.tensor(column) for column in zip(*starts, strict=True))
        ends = size.cumsum(0)
        first = torch.cat([held.new_zeros(1), held.cumsum(0)[:-1]])
        # The start of a sequence is that of its bin and what stands before it there.
        before = (ends - size) - (ends - size)[first].repeat_interleave(held)
        start = bin_start.repeat_interleave(held) + before
        total = int(ends[-1])
        sequence = torch.arange(len(rows)).repeat_interleave(size)
        position = torch.arange(total) - (ends - size)[sequence]
        slot = start[sequence] + position
        source = order[sequence] * input_ids.shape[1] + position
        tokens = torch.full((begin,), pad, device=device)
        tokens[slot.to(device)] = input_ids.flatten()[source.to(device)]
        segment = torch.full((begin,), -1)
        segment[slot] = sequence
        segment = segment.to(device)
        blocks, done = [], 0
        for bins, start_token in zip(chunk, begins, strict=True):
            most = max(map(len, bins.sequences))
            places = [b * most + i for b, inside in enumerate(bins.sequences) for i in range(len(inside))]
            places = torch.tensor(places)
            numbers = torch.zeros(bins.count * most, dtype=torch.int64)
            numbers[places] = torch.arange(done, done + len(places))
            span = segment[start_token : start_token + bins.slots].view(bins.count, bins.width)
            blocks.append(Block(start_token, bins.count, bins.width, span, numbers.to(device), places.to(device), done))
            done += len(places)
        return cls(order.to(device), tokens, blocks)


def pad_rows(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    """[N, ...] with zero rows added up to a multiple."""
    missing = -len(rows) % multiple
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)) if missing else rows
