"""Item text, read raw: RecBole would split a token_seq at spaces and replace the words by numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from logging import getLogger
from pathlib import Path

from recbole_gmc.data.atomic import AtomicFile, read_atomic
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.files import hash_of
from recbole_gmc.items import ItemIndex

logger = getLogger("recbole_gmc.data")


@dataclass(frozen=True)
class ItemTexts:
    """One text for each row of ``items``.

    Raises:
        DataError: another number of texts than items, or an empty text.
    """

    items: ItemIndex
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.items):
            raise DataError(f"{len(self.texts)} texts for {len(self.items)} items")
        if "" in self.texts:
            raise DataError("an item has an empty text", mend="Use placeholder() for it")

    @cached_property
    def fingerprint(self) -> str:
        return hash_of(self.items.fingerprint, list(self.texts))


@dataclass(frozen=True)
class DomainText:
    """The item table of one domain.

    Attributes:
        texts: item token -> text, ``""`` where every text column is empty.
        fields: the names of the text columns, in their order.
        values: item token -> the text of each of ``fields``, whitespace collapsed.
    """

    domain: str
    texts: Mapping[str, str]
    fields: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def missing(self, tokens: Sequence[str]) -> list[str]:
        """Those of ``tokens`` that have no text: no row, or nothing in its text columns."""
        return [token for token in tokens if not self.texts.get(token)]


def placeholder(domain: str, token: str) -> str:
    """What stands for a missing text: stable, true, and different for every item, so embeddings can differ."""
    return f"{domain} item {token}"


def item_texts(items: ItemIndex, tables: Mapping[str, DomainText]) -> ItemTexts:
    """The texts of a catalogue, with placeholders for the missing ones."""
    return ItemTexts(
        items,
        tuple(
            tables[domain].texts.get(token) or placeholder(domain, token)
            for domain, tokens in items.tokens.items()
            for token in tokens
        ),
    )


def item_attributes(items: ItemIndex, tables: Mapping[str, DomainText]) -> tuple[dict[str, str], ...]:
    """For each row of a catalogue its text columns by name; a missing text is a placeholder in the first of them."""
    rows = []
    for domain, tokens in items.tokens.items():
        table = tables[domain]
        for token in tokens:
            values = table.values.get(token) or ("",) * len(table.fields)
            if not any(values):
                values = (placeholder(domain, token), *values[1:])
            rows.append(dict(zip(table.fields, values, strict=True)))
    return tuple(rows)


def read_domain_text(
    path: str | Path, domain: str, fields: Sequence[str] | None, *, item_field: str = "item_id", separator: str = "\t"
) -> DomainText:
    """Reads a ``.item`` file: the text columns of each item, joined by single spaces, whitespace collapsed.

    Args:
        fields: columns that make the text, in this order; ``None`` means all token and token_seq columns.

    Raises:
        DataError: a file that ``read_atomic`` refuses, or two different rows of one item.
        SettingError: a field that the file does not have.
    """
    file = read_atomic(path, separator)
    chosen = _chosen(file, fields, item_field)
    tokens = file.tokens(item_field)
    first = _first_rows(file, tokens)
    columns = [file.columns[name] for name in chosen]
    values = {token: tuple(" ".join(column[row].split()) for column in columns) for token, row in first.items()}
    texts = {token: " ".join(filter(None, parts)) for token, parts in values.items()}
    if repeated := len(tokens) - len(first):
        logger.warning(f"{domain}: {repeated} item rows are identical to an earlier one and count once [{path}]")
    return DomainText(domain, texts, tuple(chosen), values)


def fields_of(text_fields: tuple | dict | None, domains: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
    """The ``text_fields`` setting for each domain.

    Raises:
        SettingError: an unknown domain, or a list that is empty or holds something else than names.
    """
    if not isinstance(text_fields, dict):
        text_fields = dict.fromkeys(domains, text_fields)
    for domain in text_fields:
        if domain not in domains:
            raise SettingError(f"{domain!r} is no domain", "text_fields", f"The domains are {', '.join(domains)}")
    result = {}
    for domain in domains:
        names = text_fields.get(domain)
        names = (names,) if isinstance(names, str) else names
        wrong = names is not None and (not isinstance(names, (list, tuple)) or not names)
        if wrong or any(not isinstance(name, str) for name in names or ()):
            raise SettingError(f"{names!r} is no list of column names", "text_fields", "For instance [title, brand]")
        result[domain] = None if names is None else tuple(names)
    return result


def _chosen(file: AtomicFile, fields: Sequence[str] | None, item_field: str) -> list[str]:
    if fields is None:
        return [name for name, kind in file.types.items() if kind in ("token", "token_seq") and name != item_field]
    for name in fields:
        if name not in file.types:
            near = get_close_matches(name, file.types, 1)
            hint = f"Is {near[0]!r} meant? " if near else ""
            columns = ", ".join(column for column in file.types if column != item_field)
            raise SettingError(f"{file.path} has no column {name!r}", "text_fields", f"{hint}It holds {columns}")
    return list(fields)


def _first_rows(file: AtomicFile, tokens: list[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for row, token in enumerate(tokens):
        before = first.setdefault(token, row)
        if before != row and any(column[before] != column[row] for column in file.columns.values()):
            what = f"item {token!r} differs from its row in line {before + 2}"
            raise DataError(what, file.where(row), "Keep one of the two rows")
    return first
