"""Several RecBole datasets as one: ``GMCDataset``."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_gmc.data.interactions import (
    Columns,
    read_interactions,
    taken_apart,
    united,
    warn_of_rounding,
    with_text,
)
from recbole_gmc.data.text import (
    DomainText,
    ItemTexts,
    fields_of,
    item_attributes,
    item_texts,
    read_domain_text,
)
from recbole_gmc.errors import DataError
from recbole_gmc.files import safe_name
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import DataSettings, read

logger = getLogger("recbole_gmc.data")

FILTERS = "user_inter_num_interval, item_inter_num_interval and val_interval"


class GMCDataset(SequentialDataset):
    """The domains named under ``domains`` as one sequential dataset; without that key, the dataset itself is the one.

    A domain is a folder ``<data_path>/<D>`` with ``<D>.inter`` and ``<D>.item``. With two or more domains user and item
    tokens become ``<domain>/<token>``, so none clash and filtering is the same as in each domain alone. RecBole loads
    no item features: the text is read raw. Users, items, splits and histories equal those that RecBole's
    ``SequentialDataset`` makes of each domain.

    Attributes (shared by the split copies that ``build`` makes):
        domains: their names, in order.
        items: the catalogue: items with at least one interaction after filtering, by original token.
        item_rows: int64 [item_num], RecBole's item id -> row of ``items``; -1 for the padding id 0.
        item_ids: int64 [len(items)], row of ``items`` -> RecBole's item id.
        user_domains: int64 [user_num], RecBole's user id -> position in ``domains``; -1 for the padding id 0.

    Raises:
        DataError: a domain that is missing, malformed, emptied by the filters, or (from ``build``) without test users.
    """

    domains: tuple[str, ...]
    items: ItemIndex
    item_rows: np.ndarray
    item_ids: np.ndarray
    user_domains: np.ndarray

    def __init__(self, config: Config) -> None:
        self._data_settings = read(DataSettings, config)
        super().__init__(config)
        self._index_catalogue()
        self._describe()

    # ------------------------------------------------------------------ loading

    def _get_preset(self) -> None:
        super()._get_preset()
        self.domains = self._data_settings.domains or (safe_name(self.dataset_name, "dataset"),)

    def _load_data(self, token: str, dataset_path: str) -> None:
        self.user_feat = self.item_feat = None
        root, separator = Path(dataset_path).parent, self.config["field_separator"]
        fields = fields_of(self._data_settings.text_fields, self.domains)
        columns = Columns(self.uid_field, self.iid_field, self.time_field, self._filter_fields())
        self._tables: dict[str, DomainText] = {}
        self._named: dict[str, frozenset[str]] = {}
        frames = {}
        for domain in self.domains:
            folder = root / domain
            frame = read_interactions(folder / f"{domain}.inter", columns, separator)
            warn_of_rounding(frame, domain, columns)
            self._tables[domain] = read_domain_text(
                folder / f"{domain}.item",
                domain,
                fields[domain],
                item_field=self.iid_field,
                separator=separator,
            )
            self._named[domain] = frozenset(self._tables[domain].texts) | frozenset(frame[self.iid_field])
            if self._data_settings.missing_text == "drop":
                frame = with_text(frame, self._tables[domain], columns)
            frames[domain] = frame
        self.inter_feat = united(frames, columns)
        self._domain_of_line = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames.values()])
        self._declare_fields()

    def _filter_fields(self) -> dict[str, str]:
        """Columns that only ``val_interval`` needs (a rating, say), and their types: dropped after the filter."""
        kept = (self.uid_field, self.iid_field, self.time_field)
        wanted = self.config["val_interval"] or {}
        return {name: "float" if isinstance(wanted[name], str) else "token" for name in wanted if name not in kept}

    def _declare_fields(self) -> None:
        sources = {self.uid_field: FeatureSource.USER_ID, self.iid_field: FeatureSource.ITEM_ID}
        for field in self.inter_feat:
            kind = FeatureType.FLOAT if self.inter_feat[field].dtype == np.float64 else FeatureType.TOKEN
            self.set_field_property(field, kind, sources.get(field, FeatureSource.INTERACTION), 1)
            if kind == FeatureType.FLOAT:
                self.field2bucketnum[field] = 2

    # ------------------------------------------------------------------ filtering

    def _remove_duplication(self) -> None:
        if self.config["rm_dup_inter"] is not None:  # RecBole's own sort by time is not stable
            self.inter_feat.sort_values(by=self.time_field, kind="stable", inplace=True)
            pairs = [self.uid_field, self.iid_field]
            self.inter_feat.drop_duplicates(subset=pairs, keep=self.config["rm_dup_inter"], inplace=True)

    def _reset_index(self) -> None:
        left = np.bincount(self._domain_of_line[self.inter_feat.index], minlength=len(self.domains))
        if not left.all():
            domain = self.domains[int(left.argmin())]
            raise DataError("no interaction is left after filtering", f"domain {domain}", f"Loosen {FILTERS}")
        for field in self._filter_fields():
            self._del_col(self.inter_feat, field)
        del self._domain_of_line
        super()._reset_index()

    # ------------------------------------------------------------------ catalogue

    def _index_catalogue(self) -> None:
        self.user_domains, self._user_tokens = taken_apart(self.field2id_token[self.uid_field].tolist(), self.domains)
        item_domains, tokens = taken_apart(self.field2id_token[self.iid_field].tolist(), self.domains)
        by_domain = {d: tokens[item_domains == t].tolist() for t, d in enumerate(self.domains)}
        self.items = ItemIndex.of(by_domain, self._named)
        rows = [
            self.items.row_of[self.domains[t]][token] for t, token in zip(item_domains[1:], tokens[1:], strict=True)
        ]
        self.item_rows = np.array([-1, *rows], np.int64)
        self.item_ids = np.argsort(self.item_rows)[1:]

    def original_user_token(self, user_ids: np.ndarray | torch.Tensor | int) -> np.ndarray:
        """The users' tokens as their own domain's file has them."""
        ids = user_ids.cpu() if isinstance(user_ids, torch.Tensor) else user_ids
        return self._user_tokens[np.asarray(ids)]

    def texts(self) -> ItemTexts:
        """The text of every item of the catalogue, read raw; a missing one is a placeholder."""
        return item_texts(self.items, self._tables)

    def attributes(self) -> tuple[dict[str, str], ...]:
        """The text columns of every item of the catalogue by name, read raw; a missing text is a placeholder."""
        return item_attributes(self.items, self._tables)

    def _describe(self) -> None:
        users = self.inter_feat[self.uid_field].to_numpy()
        length = np.bincount(users, minlength=self.user_num)
        inters = np.bincount(self.user_domains[users], minlength=len(self.domains))
        for t, domain in enumerate(self.domains):
            tokens, table = self.items.tokens[domain], self._tables[domain]
            lengths = length[self.user_domains == t]
            logger.info(f"{domain}: {len(lengths)} users, {len(tokens)} items, {inters[t]} interactions")
            short = int((lengths < 3).sum())
            if short:
                logger.warning(f"{domain}: {short} users with fewer than 3 interactions serve training only")
            if other := len(table.texts.keys() - set(tokens)):
                logger.info(f"{domain}: {other} rows of {domain}.item have no interaction and are no candidates")
            self._count_missing(domain, table.missing(tokens))

    def _count_missing(self, domain: str, missing: list[str]) -> None:
        if not missing:
            return
        what = f"{len(missing)} items have no text"
        if self._data_settings.missing_text == "error":
            first, file = ", ".join(missing[:10]), Path(self.dataset_path).parent / domain / f"{domain}.item"
            raise DataError(f"{what}: {first}", str(file), "Add it, or set missing_text to placeholder or drop")
        logger.warning(f"{domain}: {what}; each gets a placeholder (missing_text)")

    # ------------------------------------------------------------------ rows

    def data_augmentation(self) -> None:
        """RecBole's prefixes (each interaction but a user's first, with what came before it) with no Python loop."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        user = self.inter_feat[self.uid_field]
        place = torch.arange(len(user))
        first = torch.ones(len(user), dtype=torch.bool)
        first[1:] = user[1:] != user[:-1]
        target = place[~first]
        start = torch.where(first, place, 0).cummax(0).values[target]
        length = (target - start).clamp(max=self.max_item_list_len)
        window = torch.arange(self.max_item_list_len)
        index, outside = (target - length)[:, None] + window, window >= length[:, None]
        index = index.masked_fill(outside, 0)
        rows = {self.item_list_length_field: length}
        for field in self.inter_feat:
            if field != self.uid_field:
                value = self.inter_feat[field]
                rows[getattr(self, f"{field}_list_field")] = value[index].masked_fill_(
                    outside.view(*outside.shape, *[1] * (value.dim() - 1)), 0
                )
        data = self.inter_feat[target]
        data.update(Interaction(rows))
        self.inter_feat = data

    def build(self) -> list[GMCDataset]:
        """RecBole's leave-one-out: train, valid and test copies.

        A user with fewer than 3 interactions is in train only; one with exactly 3 has no validation row.

        Raises:
            DataError: a domain without test users.
        """
        splits = super().build()
        for name, split in zip(("validation", "test"), splits[1:], strict=True):
            count = np.bincount(
                self.user_domains[split.inter_feat[self.uid_field].numpy()], minlength=len(self.domains)
            )
            for domain in (d for d, n in zip(self.domains, count, strict=True) if n == 0):
                need = 3 if name == "test" else 4
                what = f"no user has {need} interactions, so there are no {name} users"
                if name == "test":
                    raise DataError(what, f"domain {domain}", f"Add data, leave the domain out, or loosen {FILTERS}")
                logger.warning(f"{domain}: {what}")
        return splits
