"""Items and histories as RecFormer's tokens: the name and the value of each attribute, newest item first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

START, KEY, VALUE, PADDING = range(4)  # kinds of tokens
IDS, KINDS, WORDS = range(3)  # planes of an item's tokens


@dataclass(frozen=True)
class Specials:
    """Ids of the tokens that are no words; ``first`` is the lowest id that is one."""

    start: int
    pad: int
    mask: int
    first: int
    size: int


# Gives the token ids of a text and, for each, the number of the word it belongs to.
Tokenize = Callable[[str], tuple[list[int], list[int]]]


def own_words(texts: Sequence[str], most: int) -> tuple[Tokenize, Specials]:
    """A tokenizer of whole words in lower case: the ``most`` frequent ones of the texts, one id for all others."""
    counts = Counter(word for text in texts for word in _words(text))
    unknown = 3
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    ids = {word: unknown + 1 + i for i, word in enumerate(kept)}

    def tokenize(text: str) -> tuple[list[int], list[int]]:
        found = [ids.get(word, unknown) for word in _words(text)]
        return found, list(range(len(found)))

    return tokenize, Specials(start=0, pad=1, mask=2, first=unknown, size=unknown + 1 + len(kept))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def pretrained_words(source: str) -> tuple[Tokenize, Specials]:
    """The tokenizer of a transformers checkpoint."""
    from transformers import AutoTokenizer

    inner: Any = AutoTokenizer.from_pretrained(source, use_fast=True)

    def tokenize(text: str) -> tuple[list[int], list[int]]:
        found = inner(text, add_special_tokens=False)
        return found["input_ids"], [word or 0 for word in found.word_ids()]

    start = inner.bos_token_id if inner.bos_token_id is not None else inner.cls_token_id
    return tokenize, Specials(start, inner.pad_token_id, inner.mask_token_id, 0, len(inner))


def item_tokens(
    attributes: Sequence[dict[str, str]], tokenize: Tokenize, pad: int, most_attributes: int, most_tokens: int
) -> Tensor:
    """int32 [items, 3, T]: token ids, kinds and words (a number within the item, -1 for padding).

    Args:
        attributes: name -> value, for every item; the first ``most_attributes`` of them count. One with an empty value
            still gives its name.
        most_tokens: of one attribute, its name included.
    """
    names: dict[str, tuple[list[int], list[int]]] = {}
    rows = []
    for attribute in attributes:
        ids, kinds, words = [], [], []
        for name, value in list(attribute.items())[:most_attributes]:
            for kind, (found, word) in ((KEY, names.setdefault(name, tokenize(name))), (VALUE, tokenize(value))):
                room = most_tokens - (len(names[name][0]) if kind == VALUE else 0)
                after = words[-1] + 1 if words else 0
                ids += found[: max(0, room)]
                kinds += [kind] * len(found[: max(0, room)])
                words += [after + w for w in word[: max(0, room)]]
        rows.append((ids, kinds, words))
    longest = max(1, max(len(row[0]) for row in rows))
    tokens = torch.empty(len(rows), 3, longest, dtype=torch.int32)
    for plane, value in ((IDS, pad), (KINDS, PADDING), (WORDS, -1)):
        tokens[:, plane] = value
    for row, planes in enumerate(rows):
        for plane, values in enumerate(planes):
            tokens[row, plane, : len(values)] = torch.tensor(values, dtype=torch.int32)
    return tokens


@dataclass(frozen=True)
class Sequences:
    """B token sequences, all int64 [B, N], N a multiple of the attention window.

    Attributes:
        ids: token ids.
        kinds: START, KEY, VALUE or PADDING.
        items: 0 for the start, 1 for the newest item, 2 for the one before it, ...
        words: a number within the sequence, equal for the tokens of one word; -1 where there is none.
    """

    ids: Tensor
    kinds: Tensor
    items: Tensor
    words: Tensor

    @property
    def inside(self) -> Tensor:
        """bool [B, N]: no padding."""
        return self.kinds != PADDING


def sequences(
    tokens: Tensor, history: Tensor, length: Tensor, start: int, pad: int, most_tokens: int, window: int
) -> Sequences:
    """Histories as one sequence each: the start token, then the items' tokens, newest first, cut at ``most_tokens``.

    Args:
        tokens: int [n, 3, T], as ``item_tokens`` gives them.
        history: int64 [B, S], rows of ``tokens``, oldest first; anything past ``length``.
    """
    size, width = history.shape
    place = torch.arange(width, device=history.device)
    rows = history.gather(1, (length[:, None] - 1 - place).clamp(min=0))
    picked = tokens[rows].long()  # [B, S, 3, T]
    count = picked.shape[-1]
    inside = (picked[:, :, KINDS] != PADDING) & (place < length[:, None])[..., None]
    offset = place[:, None] * count
    planes = {
        "ids": torch.where(inside, picked[:, :, IDS], pad),
        "kinds": torch.where(inside, picked[:, :, KINDS], PADDING),
        "items": torch.where(inside, place[:, None] + 1, 0),
        "words": torch.where(inside, picked[:, :, WORDS] + offset, -1),
    }
    order = torch.argsort((~inside).flatten(1).to(torch.uint8), dim=1, stable=True)
    longest = min(most_tokens, 1 + int(inside.flatten(1).sum(1).max()))
    after = -longest % window
    made = {}
    for name, first, value in (("ids", start, pad), ("kinds", START, PADDING), ("items", 0, 0), ("words", -1, -1)):
        body = planes[name].flatten(1).gather(1, order)[:, : longest - 1]
        made[name] = F.pad(F.pad(body, (1, 0), value=first), (0, after), value=value)
    return Sequences(**made)


def mask_words(found: Sequences, specials: Specials, ratio: float) -> tuple[Tensor, Tensor]:
    """Whole words chosen with probability ``ratio``: 80% become the mask token, 10% a random one, 10% stay.

    Returns:
        The ids [B, N] after masking, and bool [B, N]: the tokens to guess.
    """
    size, width = found.ids.shape
    count = int(found.words.max()) + 2
    draw = torch.rand(size, count, device=found.ids.device)
    chosen = (draw.gather(1, found.words.clamp(min=0)) < ratio) & (found.words >= 0)
    how = torch.rand(found.ids.shape, device=found.ids.device)
    other = torch.randint_like(found.ids, specials.first, specials.size)
    changed = torch.where(how < 0.8, specials.mask, torch.where(how < 0.9, other, found.ids))
    return torch.where(chosen, changed, found.ids), chosen
