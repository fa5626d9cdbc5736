"""Domains without a download: MovieLens-100k, which RecBole carries, as one ordinary dataset folder a genre."""

from __future__ import annotations

from collections import Counter
from logging import getLogger
from pathlib import Path

import numpy as np
import recbole

from recbole_gmc.cache import Cache
from recbole_gmc.data.atomic import AtomicFile, read_atomic
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_file, hash_of, new_file

logger = getLogger("recbole_gmc.data")

FORMAT = 1
CORE = 5
# A film belongs to the first domain that shares a genre with it; Drama takes what is left (most of it dramas).
GENRES: dict[str, tuple[str, ...]] = {
    "Action": tuple("Action Adventure Sci-Fi War Western Thriller Crime Mystery Film-Noir Horror".split()),
    "Comedy": tuple("Comedy Children's Animation Musical".split()),
    "Drama": (),
}

Interactions = list[tuple[str, str]]


def prepare(name: str, cache_dir: str | Path) -> Path:
    """Makes the embedded domains once and gives the folder that holds them, to be used as ``data_path``.

    Each domain is 5-core by itself; ``timestamp`` is the position in the user's sequence (by time, ties in file order),
    because RecBole's single precision would turn Unix seconds into ties.

    Args:
        name: ``ml-100k``.
        cache_dir: the folder is ``<cache_dir>/quick_start/<hash of source and rules>``; a damaged one is made anew.

    Raises:
        SettingError: another name.
        RunError: the cache cannot be written.
    """
    if name != "ml-100k":
        raise SettingError(f"{name!r} is not embedded", "embedded_data", "Only ml-100k is")
    source = Path(recbole.__file__).parent / "dataset_example" / name
    inter, item = source / f"{name}.inter", source / f"{name}.item"
    key = hash_of(FORMAT, CORE, list(GENRES.items()), [hash_file(inter), hash_file(item)])[:16]
    cache = Cache(cache_dir)
    folder = cache.get("quick_start", key)
    if folder is not None:
        logger.info(f"reusing the embedded domains in {folder}")
        return folder
    with cache.put("quick_start", key) as work:
        _write(work, read_atomic(inter), read_atomic(item))
    folder = cache.folder("quick_start", key)
    logger.info(f"wrote the embedded domains {', '.join(GENRES)} to {folder}")
    return folder


def domain_of(genres: str) -> str:
    """The one domain of a film with these genres (a space-separated list)."""
    own = set(genres.split())
    return next((domain for domain, names in GENRES.items() if own & set(names)), "Drama")


def core(interactions: Interactions, k: int) -> Interactions:
    """The k-core: drops users and items with fewer than ``k`` interactions until none is left."""
    while True:
        users = Counter(user for user, _ in interactions)
        items = Counter(item for _, item in interactions)
        kept = [(user, item) for user, item in interactions if users[user] >= k and items[item] >= k]
        if len(kept) == len(interactions):
            return kept
        interactions = kept


def _write(folder: Path, inter: AtomicFile, item: AtomicFile) -> None:
    users, items = inter.tokens("user_id"), inter.tokens("item_id")
    order = np.argsort(inter.numbers("timestamp"), kind="stable").tolist()
    domains = dict(zip(item.tokens("item_id"), map(domain_of, item.column("class", "token_seq")), strict=True))
    for domain in GENRES:
        pairs = core([(users[i], items[i]) for i in order if domains.get(items[i]) == domain], CORE)
        target = folder / domain
        target.mkdir()
        _write_interactions(target / f"{domain}.inter", pairs)
        _write_items(target / f"{domain}.item", item, {token for _, token in pairs})


def _write_interactions(path: Path, pairs: Interactions) -> None:
    position: Counter[str] = Counter()
    with new_file(path) as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, item in sorted(pairs, key=lambda pair: int(pair[0])):  # stable: time order inside a user
            file.write(f"{user}\t{item}\t{position[user]}\n")
            position[user] += 1


def _write_items(path: Path, item: AtomicFile, kept: set[str]) -> None:
    with new_file(path) as file:
        file.write("\t".join(f"{name}:{kind}" for name, kind in item.types.items()) + "\n")
        for token, *texts in zip(*item.columns.values(), strict=True):
            if token in kept:
                file.write("\t".join([token, *texts]) + "\n")
