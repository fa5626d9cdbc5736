"""Semantic IDs as a value: one row of codes an item, unique inside each domain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from recbole_gmc.errors import CheckpointError, GMCError, TokenizerError
from recbole_gmc.files import hash_of, new_folder, read_json, safe_name, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.tokenizer import index_file
from recbole_gmc.tokenizer.assign import repair_codes
from recbole_gmc.tokenizer.prefixes import duplicate_rows

FORMAT = "recbole_gmc.semantic_ids/1"
MANIFEST = "manifest.json"
WORDS = "words.json"


@dataclass(frozen=True)
class SemanticIds:
    """``codes`` is int32 [items, L], row-aligned with ``items``; a code is in ``[0, codebook_size)``.

    The same codes may stand for two items of different domains (each domain has its own prefix tree), never for two
    items of one domain. Each level has codes of its own, unless IDs are texts: then ``words`` says what a code stands
    for at every level, and an empty word ends a short text.

    Raises:
        TokenizerError: wrong shape, a code out of range, two items of one domain with equal codes, or another number
            of words than codes.
    """

    items: ItemIndex
    codes: np.ndarray
    codebook_size: int
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if codes.ndim != 2 or len(codes) != len(self.items) or codes.shape[1] < 1 or codes.dtype.kind not in "iu":
            raise TokenizerError(
                f"Semantic IDs of shape {codes.shape} and type {codes.dtype} do not fit {len(self.items)} items",
                mend="Give whole numbers, one row of codes an item",
            )
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise TokenizerError(f"A code lies outside 0..{self.codebook_size - 1}", where="codebook_size")
        if self.words is not None and len(self.words) != self.codebook_size:
            raise TokenizerError(f"{len(self.words)} words for {self.codebook_size} codes")
        codes = np.array(codes, dtype=np.int32, order="C")
        codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)
        for domain in self.items.domains:
            rows = duplicate_rows(self.for_domain(domain))
            if len(rows):
                named = ", ".join(repr(self.items.tokens[domain][row]) for row in rows[:10])
                raise TokenizerError(
                    f"{len(rows)} items share their semantic ID with an earlier item of domain {domain!r}: {named}",
                    mend="Set semantic_ids_repair: True to make imported IDs unique",
                )

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        more = [] if self.words is None else [list(self.words)]
        return hash_of(self.items.fingerprint, self.codes, self.codebook_size, *more)

    def for_domain(self, domain: str) -> np.ndarray:
        """Codes [n, L] of one domain, in the order of its tokens."""
        return self.codes[self.items.rows(domain)]

    def text(self, row: int) -> str:
        """The words of one item's ID, joined by blanks; needs ``words``."""
        return " ".join(filter(None, (self.words[code] for code in self.codes[row])))  # type: ignore[index]

    def export(self, folder: str | Path) -> list[Path]:
        """Writes ``<D>.index.json`` for every domain into ``folder`` and returns the paths.

        Where IDs are texts, ``<D>.text.json`` beside it has them in words.
        """
        paths = []
        for domain in self.items.domains:
            path = Path(folder) / index_file.name_of(domain)
            index_file.write(path, self.items.tokens[domain], self.for_domain(domain))
            paths.append(path)
            if self.words is not None:
                rows = enumerate(self.items.tokens[domain], self.items.rows(domain).start)
                write_json(Path(folder) / f"{domain}.text.json", {token: self.text(row) for row, token in rows})
        return paths

    def save(self, folder: str | Path) -> None:
        """Writes the index files and a manifest; ``folder`` appears whole or not at all and replaces an older one."""
        for domain in self.items.domains:
            safe_name(domain, "Domain")
        with new_folder(folder) as work:
            self.export(work)
            manifest = {
                "format": FORMAT,
                "levels": self.levels,
                "codebook_size": self.codebook_size,
                "domains": list(self.items.domains),
                "items": self.items.fingerprint,
                "fingerprint": self.fingerprint,
            }
            write_json(work / MANIFEST, manifest)
            if self.words is not None:
                write_json(work / WORDS, list(self.words))

    @classmethod
    def load(cls, folder: str | Path) -> SemanticIds:
        """Reads what ``save`` wrote and checks it against its fingerprints.

        Raises:
            CheckpointError: a file is missing, damaged or was changed after saving.
        """
        folder, mend = Path(folder), "Train the tokenizer again, or import the files with semantic_ids_path"
        try:
            manifest = read_json(folder / MANIFEST)
            if manifest["format"] != FORMAT:
                raise CheckpointError(f"Format {manifest['format']!r} is not {FORMAT!r}", where=str(folder), mend=mend)
            size, levels = int(manifest["codebook_size"]), int(manifest["levels"])
            tokens, codes = {}, {}
            for domain in manifest["domains"]:
                path = folder / index_file.name_of(domain)
                codes[domain] = index_file.read(path, size, levels)
                tokens[domain] = codes[domain].keys()
            items = ItemIndex.of(tokens)
            rows = [codes[d][token] for d, names in items.tokens.items() for token in names]
            words = tuple(read_json(folder / WORDS)) if (folder / WORDS).is_file() else None
            ids = cls(items, np.array(rows, dtype=np.int32).reshape(len(items), levels), size, words)
            expected = manifest["items"], manifest["fingerprint"]
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"Semantic IDs cannot be read: {error}", where=str(folder), mend=mend) from error
        except (GMCError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"Semantic IDs are damaged: {error}", where=str(folder), mend=mend) from error
        if (ids.items.fingerprint, ids.fingerprint) != expected:
            raise CheckpointError("Semantic IDs were changed after they were saved", where=str(folder), mend=mend)
        return ids

    @classmethod
    def read_index(
        cls,
        path: str | Path,
        items: ItemIndex,
        codebook_size: int,
        levels: int,
        repair: bool = False,
        vectors: np.ndarray | None = None,
    ) -> SemanticIds:
        """Imports index files of the LC-Rec and LETTER form for exactly the items of ``items``.

        Args:
            path: a folder with ``<D>.index.json`` for every domain, or one file if there is one domain.
            repair: move items whose ID is taken (``assign.make_unique``) instead of refusing them.
            vectors: embeddings [items, D] that tell which free code is nearest; without them any free code is taken.

        Raises:
            TokenizerError: a damaged file, unknown or missing items, unequal lengths, bad codes, duplicate IDs.
        """
        codes = index_file.read_catalogue(path, items, codebook_size, levels)
        if repair:
            codes = repair_codes(items, codes, codebook_size, vectors).codes
        try:
            return cls(items, codes, codebook_size)
        except TokenizerError as error:
            raise TokenizerError(error.what, error.where or str(path), error.mend) from None
