"""Which items there are: the one index that texts, embeddings and semantic IDs share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from recbole_gmc.files import hash_of


@dataclass(frozen=True)
class ItemIndex:
    """The items of all domains in one fixed order.

    Domains keep their given order; inside a domain the tokens are sorted, so the order of rows in a file never
    changes a result. A row number is only valid together with its index; tokens are what is stored.

    Attributes:
        named: domain -> all tokens that its files name. Some are no candidates: items that nobody took, or that a
            filter left out. ``None`` where the files are not at hand.

    Example:
        >>> items = ItemIndex.of({"A": ["x", "b"], "B": ["x"]})
        >>> items.tokens["A"], len(items), items.rows("B"), items.domain_of_row.tolist()
        (('b', 'x'), 3, slice(2, 3, None), [0, 0, 1])
    """

    tokens: Mapping[str, tuple[str, ...]]
    named: Mapping[str, frozenset[str]] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, tokens: Mapping[str, Iterable[str]], named: Mapping[str, frozenset[str]] | None = None) -> ItemIndex:
        return cls({domain: tuple(sorted(set(names))) for domain, names in tokens.items()}, named)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.tokens)

    def __len__(self) -> int:
        return sum(len(names) for names in self.tokens.values())

    @cached_property
    def _starts(self) -> dict[str, int]:
        starts, start = {}, 0
        for domain, names in self.tokens.items():
            starts[domain] = start
            start += len(names)
        return starts

    def rows(self, domain: str) -> slice:
        """The rows of one domain, as a slice."""
        start = self._starts[domain]
        return slice(start, start + len(self.tokens[domain]))

    @cached_property
    def row_of(self) -> dict[str, dict[str, int]]:
        """Domain -> item token -> row over all domains."""
        return {d: {token: self._starts[d] + i for i, token in enumerate(names)} for d, names in self.tokens.items()}

    @cached_property
    def domain_of_row(self) -> np.ndarray:
        """int64 [items]: the position of each row's domain in ``domains``."""
        return np.repeat(np.arange(len(self.tokens)), [len(names) for names in self.tokens.values()])

    @cached_property
    def fingerprint(self) -> str:
        return hash_of([[domain, list(names)] for domain, names in self.tokens.items()])
