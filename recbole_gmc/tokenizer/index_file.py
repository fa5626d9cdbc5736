"""The index.json format of LC-Rec and LETTER: item token -> ["<a_12>", "<b_7>", "<c_255>", "<d_3>"]."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_gmc.errors import TokenizerError
from recbole_gmc.files import new_file, safe_name
from recbole_gmc.items import ItemIndex

MOST = 10**6  # codes of a level that the format can name
LETTERS = "abcdefghijklmnop"
CODE = re.compile(r"<([a-p])_(0|[1-9][0-9]{0,5})>")


def name_of(domain: str) -> str:
    return f"{safe_name(domain, 'Domain')}.index.json"


def write(path: str | Path, tokens: Sequence[str], codes: np.ndarray) -> None:
    """Writes one domain, one item a line: ``codes`` is [n, L] in the order of ``tokens``."""
    lines = []
    for token, row in zip(tokens, codes.tolist(), strict=True):
        words = ", ".join(f'"<{LETTERS[level]}_{code}>"' for level, code in enumerate(row))
        lines.append(f"  {json.dumps(token, ensure_ascii=False)}: [{words}]")
    with new_file(path) as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: str | Path, codebook_size: int = MOST, levels: int | None = None) -> dict[str, list[int]]:
    """Reads one file: item token -> L codes, every one checked; ``None`` for L takes that of the first item.

    Raises:
        TokenizerError: no JSON object, an item twice, unequal lengths, a code of the wrong form, letter or range.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file, object_pairs_hook=lambda pairs: _without_repeats(pairs, path))
    except OSError as error:
        raise TokenizerError(
            f"Cannot read the file ({error.strerror})", where=str(path), mend="Check semantic_ids_path"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"Not a JSON file: {error}", where=str(path)) from error
    if not isinstance(table, dict):
        raise TokenizerError(
            "The file must hold one object", where=str(path), mend='Write {"item": ["<a_1>", "<b_2>", ...]}'
        )
    if levels is None:
        levels = next((len(words) for words in table.values() if isinstance(words, list)), 0)
    return {token: _codes(token, words, codebook_size, levels, path) for token, words in table.items()}


def read_catalogue(path: str | Path, items: ItemIndex, codebook_size: int, levels: int) -> np.ndarray:
    """Reads the files of all domains into codes int32 [items, L]; every item exactly once.

    Raises:
        TokenizerError: as ``read``; or an item is missing or unknown (the first ten are named).
    """
    path = Path(path)
    if path.is_dir():
        paths = {domain: path / name_of(domain) for domain in items.domains}
    elif len(items.domains) == 1:
        paths = {items.domains[0]: path}
    else:
        raise TokenizerError(
            f"Not a folder, but there are {len(items.domains)} domains",
            where=str(path),
            mend="Give semantic_ids_path a folder with <domain>.index.json for every domain",
        )
    codes = np.zeros((len(items), levels), dtype=np.int32)
    for domain, file in paths.items():
        table, tokens = read(file, codebook_size, levels), items.tokens[domain]
        for what, wrong in (
            ("has no semantic ID for", [token for token in tokens if token not in table]),
            ("has semantic IDs for unknown items:", sorted(table.keys() - set(tokens))),
        ):
            if wrong:
                named = ", ".join(map(repr, wrong[:10]))
                raise TokenizerError(
                    f"Domain {domain!r} {what} {named} ({len(wrong)} in all)",
                    where=str(file),
                    mend="The file must name exactly the items that have interactions after filtering",
                )
        if tokens:
            codes[items.rows(domain)] = [table[token] for token in tokens]
    return codes


def _without_repeats(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for token, value in pairs:
        if token in table:
            raise TokenizerError(f"Item {token!r} stands there twice", where=str(path), mend="Keep one of the two")
        table[token] = value
    return table


def _codes(token: str, words: Any, codebook_size: int, levels: int, path: Path) -> list[int]:
    if not isinstance(words, list) or len(words) != levels:
        count = f"{len(words)} codes" if isinstance(words, list) else f"{words!r} instead of a list"
        raise TokenizerError(
            f"Item {token!r} has {count}; code_levels is {levels}",
            where=str(path),
            mend="Give every item the same number of codes and set code_levels to it",
        )
    row = []
    for level, word in enumerate(words):
        match = CODE.fullmatch(word) if isinstance(word, str) else None
        if not match or match[1] != LETTERS[level] or int(match[2]) >= codebook_size:
            raise TokenizerError(
                f"Item {token!r} has the bad code {word!r} at level {level + 1}",
                where=str(path),
                mend=f"Codes there run from <{LETTERS[level]}_0> to <{LETTERS[level]}_{codebook_size - 1}>",
            )
        row.append(int(match[2]))
    return row
