"""Small domains on disk, and the Config that reads them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole.config import Config

INTER = "user_id:token\titem_id:token\ttimestamp:float"
ITEM = "item_id:token\ttitle:token_seq\tbrand:token\tprice:float"


def write_domain(root: Path, domain: str, rows: Iterable[tuple], items: Mapping[str, str] | None = None) -> Path:
    """A domain folder from (user, item, time) rows and item -> title; without ``items``, every item has a title."""
    rows = list(rows)
    if items is None:
        items = {item: f"title of {item}" for _, item, _ in rows}
    folder = root / domain
    folder.mkdir(parents=True)
    lines = [INTER, *("\t".join(map(str, row)) for row in rows)]
    (folder / f"{domain}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [ITEM, *(f"{token}\t{title}\tBrand\t1.5" for token, title in items.items())]
    (folder / f"{domain}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def chain(user: str, items: Iterable[str], start: int = 0) -> list[tuple[str, str, int]]:
    return [(user, item, start + i) for i, item in enumerate(items)]


def random_rows(seed: int, users: list[str], items: list[str], longest: int = 12) -> list[tuple[str, str, int]]:
    """Users of 1 to ``longest`` interactions, in no order of time, with ties in it and repeated items."""
    draw = random.Random(seed)
    rows = [(u, draw.choice(items), draw.randrange(6)) for u in users for _ in range(draw.randint(1, longest))]
    rows += [row for i, u in enumerate(users[:3]) for row in chain(u, items[i : i + 4], 3)]
    draw.shuffle(rows)
    return rows


def config_of(root: Path, dataset: str, **keys: Any) -> Config:
    """RecBole's own Config of SASRec on a folder, with any further keys set on it."""
    config = Config(
        model="SASRec",
        dataset=dataset,
        config_dict={
            "data_path": str(root),
            "train_neg_sample_args": None,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": 5,
        },
    )
    for key, value in keys.items():
        config[key] = value
    return config
