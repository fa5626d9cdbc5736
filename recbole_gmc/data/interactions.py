"""The interactions of several domains as one table, read raw; tokens that never clash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.data.text import DomainText

logger = getLogger("recbole_gmc.data")

JOINT = "/"  # never part of a domain's name, so <domain>/<token> can be taken apart again


@dataclass(frozen=True)
class Columns:
    """The columns of ``.inter`` that are read.

    Attributes:
        filters: name -> type (``float`` or ``token``) of those that only a filter needs, a rating, say.
    """

    user: str
    item: str
    time: str
    filters: Mapping[str, str] = field(default_factory=dict)


def read_interactions(path: Path, columns: Columns, separator: str) -> pd.DataFrame:
    """A row a line of the file: tokens as text, times (and filters of that type) as float64.

    Raises:
        DataError: a file or column that ``AtomicFile`` refuses.
    """
    file = read_atomic(path, separator)
    found = {
        columns.user: pd.Series(file.tokens(columns.user), dtype=object),
        columns.item: pd.Series(file.tokens(columns.item), dtype=object),
        columns.time: file.numbers(columns.time),
    }
    for name, kind in columns.filters.items():
        found[name] = file.numbers(name) if kind == "float" else pd.Series(file.column(name, kind), dtype=object)
    return pd.DataFrame(found)


def warn_of_rounding(frame: pd.DataFrame, domain: str, columns: Columns) -> None:
    """RecBole sorts by float32 times: Unix seconds apart by less than a minute or two become ties there."""
    time = frame[columns.time].to_numpy()
    user = pd.factorize(frame[columns.user])[0]
    exact, rounded = np.lexsort((time, user)), np.lexsort((time.astype(np.float32), user))
    if count := len(np.unique(user[exact[exact != rounded]])):
        logger.warning(
            f"{domain}: {count} users have times that are equal in RecBole's single precision, and file order "
            f"breaks such ties; sort {domain}.inter by {columns.time} to keep the exact order"
        )


def with_text(frame: pd.DataFrame, table: DomainText, columns: Columns) -> pd.DataFrame:
    """The interactions with items that have a text (``missing_text: drop``)."""
    missing = set(table.missing(frame[columns.item].unique().tolist()))
    kept = frame[~frame[columns.item].isin(missing)].reset_index(drop=True)
    if missing:
        lost = len(frame) - len(kept)
        logger.warning(
            f"{table.domain}: missing_text is drop: {len(missing)} items without text and {lost} interactions go"
        )
    return kept


def united(frames: Mapping[str, pd.DataFrame], columns: Columns) -> pd.DataFrame:
    """The tables of all domains one below the other; with two or more, tokens become ``<domain>/<token>``."""
    if len(frames) > 1:
        for domain, frame in frames.items():
            for name in (columns.user, columns.item):
                frame[name] = pd.Series([f"{domain}{JOINT}{token}" for token in frame[name]], frame.index, dtype=object)
    return pd.concat(list(frames.values()), ignore_index=True)


def taken_apart(tokens: Sequence[str], domains: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What ``united`` joined, for RecBole's list of tokens, whose first is the padding.

    Returns:
        Position of each token's domain int64 [tokens], -1 for the padding; the token in its own domain [tokens].
    """
    if len(domains) == 1:
        return np.array([-1, *[0] * (len(tokens) - 1)], np.int64), np.array(tokens, dtype=object)
    position = {domain: t for t, domain in enumerate(domains)}
    parts = [token.split(JOINT, 1) for token in tokens[1:]]
    own = np.array([-1, *(position[domain] for domain, _ in parts)], np.int64)
    return own, np.array([tokens[0], *(token for _, token in parts)], dtype=object)
