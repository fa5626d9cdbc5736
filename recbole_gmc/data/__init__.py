"""Domains as one dataset, item text, and the rows that models learn from."""

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.text import ItemTexts

__all__ = ["GMCDataset", "ItemTexts", "SequenceRows"]
