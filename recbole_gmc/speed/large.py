"""Synthetic catalogues of millions of items, and what is measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recbole_gmc.decode.trie import Trie
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.speed.measure import clock
from recbole_gmc.speed.memory import resident
from recbole_gmc.tokenizer.assign import make_unique
from recbole_gmc.tokenizer.encoding import Encoded, encode_all
from recbole_gmc.tokenizer.fit import fit_rqvae
from recbole_gmc.tokenizer.prefixes import prefix_keys
from recbole_gmc.vectors import block_slices

LEVELS, CODES = 4, 256
DOMAIN = "synthetic"
CENTRES, NOISES = 1024, 8192
TRAINED_ITEMS = 131_072  # what an epoch of the tokenizer takes at most by default

# ---- the tree --------------------------------------------------------------------------------------------------------


def distinct_codes(items: int) -> np.ndarray:
    """uint8 [items, 4]: semantic IDs in random order, no two alike, spread over all of 256^4."""
    codes = np.empty((items, LEVELS), dtype=np.uint8)
    for rows in block_slices(items, LEVELS):
        key = np.arange(rows.start, rows.stop, dtype=np.uint32)
        # the end of MurmurHash3: every step can be undone, so different numbers stay different
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            key ^= key >> np.uint32(shift)
            key *= np.uint32(factor)
        codes[rows] = key.astype(">u4").view(np.uint8).reshape(-1, LEVELS)
    return codes


@dataclass(frozen=True)
class Build:
    """Building one tree: ``seconds`` of CPU, ``bytes`` it took at most beside the codes, and whether it is right."""

    items: int
    nodes: int
    seconds: float
    bytes: int
    given_bytes: int
    same: bool


def build(items: int) -> Build:
    """Builds the tree of ``items`` items; to be run in a process of its own."""
    _ = Trie.build(distinct_codes(100), CODES)  # first calls load libraries
    codes = distinct_codes(items)
    before, _ = resident()
    begin = clock("cpu")
    trie = Trie.build(codes, CODES)
    seconds = clock("cpu") - begin
    _, most = resident()
    return Build(items, len(trie.code), seconds, most - before, codes.nbytes, _leaves_are(trie, codes))


def _leaves_are(trie: Trie, codes: np.ndarray) -> bool:
    """Whether the leaves are all items once, in the order of their IDs, and carry their last codes."""
    ordered = codes[trie.items.numpy()]
    keys = ordered.view(">u4").reshape(-1)
    last = trie.code[trie.start[-2] :].numpy()
    return bool(len(keys) == len(codes) and (keys[1:] > keys[:-1]).all() and (ordered[:, -1] == last).all())


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


class Clusters:
    """Vectors float32 [n, D] around centres, made when they are asked for: a centre and two noises a row."""

    def __init__(self, count: int, width: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.shape = count, width
        self._centres = draw.standard_normal((CENTRES, width), dtype=np.float32)
        self._noises = 0.3 * draw.standard_normal((2, NOISES, width), dtype=np.float32)
        self._picks = draw.integers(1, 2**31, size=3, dtype=np.uint64) * 2 + 1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        centre, *noises = ((numbers.astype(np.uint64) + np.uint64(1)) * pick >> np.uint64(20) for pick in self._picks)
        found = self._centres[centre % CENTRES]
        for noise, table in zip(noises, self._noises, strict=True):
            found += table[noise % NOISES]
        return found


@dataclass(frozen=True)
class Tokenized:
    """Codes of ``items`` given vectors of ``dimensions``.

    Attributes:
        seconds: of CPU for the codes of all items, the making of the vectors included.
        repair_seconds: of CPU to make them unique.
        bytes: what the whole process took at most, Python and its libraries included.
        collisions: 1 - distinct IDs / items before the repair.
        unique: whether no two items share an ID after it.
    """

    items: int
    dimensions: int
    seconds: float
    repair_seconds: float
    bytes: int
    collisions: float
    unique: bool


def tokenize_vectors(items: int, width: int, seed: int, settings: TokenizerSettings) -> Tokenized:
    """Learns a tokenizer from some of the vectors, then gives all of them unique codes; for a process of its own."""
    vectors = Clusters(items, width, seed)
    encoded = _learned(vectors, seed, settings)
    begin = clock("cpu")
    found = encode_all(encoded, np.arange(items), np.zeros(items, dtype=np.int8))
    seconds = clock("cpu") - begin
    codebooks = encoded.model.quantizer.codebooks.detach().numpy()
    begin = clock("cpu")
    made = make_unique(_Numbered(items), found.codes, encoded, codebooks)
    repair_seconds = clock("cpu") - begin
    _, most = resident()
    keys = np.sort(prefix_keys(made.codes))
    unique = bool((keys[1:] > keys[:-1]).all())
    return Tokenized(items, width, seconds, repair_seconds, most, found.collision_rate, unique)


def _learned(vectors: Clusters, seed: int, settings: TokenizerSettings) -> Encoded:
    """All vectors behind a network that has seen the first of them."""
    count = min(len(vectors), TRAINED_ITEMS)
    shown = vectors[slice(0, count)]
    items = ItemIndex.of({DOMAIN: [f"{number:06d}" for number in range(count)]})
    latents = fit_rqvae(items, shown, settings, seed=seed, progress=False).latents
    return latents.of(vectors)


@dataclass(frozen=True)
class _Numbered:
    """An item index as the repair needs it, without ten million names."""

    count: int
    domains: tuple[str, ...] = (DOMAIN,)

    def rows(self, domain: str) -> slice:
        return slice(0, self.count)
