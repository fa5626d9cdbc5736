"""Text embeddings from files that another program made: ``<file>.npy`` with the tokens in ``<file>.ids``."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

import numpy as np

from recbole_gmc.embed.embeddings import first_tokens, refuse_unusable
from recbole_gmc.embed.mapped import LazyVectors, MappedFile, stacked
from recbole_gmc.errors import EmbeddingError, SettingError
from recbole_gmc.items import ItemIndex

KEY = "text_embedding_path"

logger = getLogger("recbole_gmc.embed")


def read_all(items: ItemIndex, paths: Mapping[str, str]) -> LazyVectors:
    """One file a domain in the catalogue's row order: float32 [items, D], checked, read when asked for.

    Args:
        items: the catalogue. Rows of items that only its files name are counted aloud and left out, as ``.item`` rows
            without interactions are no candidates.
        paths: domain -> ``.npy`` file, float16, float32 or float64 [rows, D]; relative to the working directory.

    Raises:
        SettingError: a domain without a file.
        EmbeddingError: a file that is missing, holds objects, has a wrong shape, NaN or zero rows, repeated
            tokens, lacks catalogue items or has some that no file of the domain names (the first ten are told); or
            domains of different D.
    """
    if missing := [domain for domain in items.domains if domain not in paths]:
        mend = "Give one .npy file a domain, as {<domain>: <file>.npy}"
        raise SettingError(f"no embedding file for {', '.join(missing)}", KEY, mend)
    if foreign := [str(domain) for domain in paths if domain not in items.domains]:
        logger.info("%s: not used, as these domains are not in this run: %s", KEY, ", ".join(foreign))
    parts = {domain: _read_domain(items, domain, paths[domain]) for domain in items.domains}
    widths = {domain: file.table.shape[1] for domain, (file, _) in parts.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{domain} {width}" for domain, width in widths.items())
        raise EmbeddingError(f"domains differ in dimension: {found}", KEY, "Embed every domain with one encoder")
    vectors = stacked(list(parts.values()))
    refuse_unusable(items, vectors, KEY)
    return vectors


def _read_domain(items: ItemIndex, domain: str, path: str) -> tuple[MappedFile, np.ndarray]:
    """The domain's file, and the positions of its items there."""
    if not isinstance(path, (str, Path)) or Path(path).suffix != ".npy":
        raise SettingError(f"{path!r} of domain {domain} is no .npy file", KEY, "Give the path of a .npy file")
    file = Path(path).expanduser()
    table = _read_npy(file)
    ids = file.with_suffix(".ids")
    tokens = read_ids(ids)
    if len(tokens) != len(table.table):
        what = f"{len(table.table)} rows, but {ids.name} names {len(tokens)} items"
        raise EmbeddingError(what, str(file), "Write both files from one list of items")
    position = {token: row for row, token in enumerate(tokens)}
    wanted = items.tokens[domain]
    if missing := [token for token in wanted if token not in position]:
        what = f"{len(missing)} items of {domain} have no embedding: {first_tokens(missing)}"
        raise EmbeddingError(what, str(ids), "Embed every item that has an interaction")
    if unknown := [token for token in tokens if items.named and token not in items.named[domain]]:
        what = f"{len(unknown)} items that no file of {domain} names: {first_tokens(unknown)}"
        raise EmbeddingError(what, str(ids), f"Take the file that was made for {domain}, or leave these rows out")
    if extra := len(position) - len(wanted):
        logger.info("%s: %d of %d rows are not in the catalogue and are left out", file, extra, len(tokens))
    return table, np.fromiter((position[token] for token in wanted), dtype=np.int64, count=len(wanted))


def _read_npy(file: Path) -> MappedFile:
    mend = "Save a plain float array with numpy.save(file, array, allow_pickle=False)"
    if not file.is_file():
        raise EmbeddingError("no such file", str(file), f"Set {KEY} to an existing .npy file (tried {file.absolute()})")
    try:
        mapped = MappedFile(file)
    except (ValueError, OSError, EOFError) as error:
        raise EmbeddingError(f"not a readable .npy file of numbers ({error})", str(file), mend) from error
    table = mapped.table
    if not isinstance(table, np.ndarray):  # a renamed .npz
        table.close()
        raise EmbeddingError("an archive of arrays, not one array", str(file), mend)
    if table.dtype.kind != "f" or table.ndim != 2 or table.shape[1] == 0:
        raise EmbeddingError(f"an array of {table.dtype} {list(table.shape)}, not float [items, D]", str(file), mend)
    return mapped


def read_ids(file: Path) -> list[str]:
    """The item tokens of an ``.ids`` file, one a line, in the order of the rows.

    Raises:
        EmbeddingError: no such file, not UTF-8, an empty line or a repeated token.
    """
    if not file.is_file():
        raise EmbeddingError("no such file", str(file), "Put the item tokens there, one a line, in row order")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EmbeddingError(f"byte {error.start} is not UTF-8", str(file), "Save the file as UTF-8") from error
    lines = text.split("\n")
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        if not token:
            raise EmbeddingError("an empty line", f"{file}:{number}", "Write one item token a line")
        if token in seen:
            what = f"item {token!r} is already on line {seen[token]}"
            raise EmbeddingError(what, f"{file}:{number}", "Name each item once")
        seen[token] = number
    return tokens
