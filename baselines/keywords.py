"""Texts of a few words as item IDs: which words, and how each item gets a text that no other has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_gmc.items import ItemIndex
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

Words = tuple[str, ...]
RARE_WORDS_FROM = 1000  # texts from which a word must stand in two of them
LETTERS = r"(?u)\b\w*[^\W\d_]\w+\b|\b\w+[^\W\d_]\w*\b"  # two characters or more, a letter among them
NOTHING = ("item",)  # what an item is called whose text has no word


def keywords(texts: Sequence[str], most: int) -> tuple[list[Words], dict[str, int]]:
    """The words of each text with the greatest TF-IDF weights, at most ``most``, the greatest first; and how many texts
    each word stands in.

    Ties are broken by the alphabet. Catalogues of 1,000 texts or more leave out words of a single text, which would be
    the number of an item in disguise.
    """
    vectorizer = TfidfVectorizer(
        token_pattern=LETTERS, sublinear_tf=True, min_df=2 if len(texts) >= RARE_WORDS_FROM else 1
    )
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's answer to texts without any such word
        return [()] * len(texts), {}
    names = vectorizer.get_feature_names_out()  # in the order of the alphabet
    found = []
    for row in matrix:
        order = row.indices[np.lexsort((row.indices, -row.data))][:most]
        found.append(tuple(names[order].tolist()))
    return found, dict(zip(names.tolist(), matrix.getnnz(axis=0).tolist(), strict=True))


def keyword_candidates(ranked: Words, least: int, most: int, frequency: Callable[[str], int]) -> Iterator[Words]:
    """Texts for one item, the best first: its ``least`` best words, then others in place of the last, then longer ones.

    Words that stand in many items come first in a text, so that items with much in common share their beginnings.
    """
    for size in range(min(least, len(ranked)), min(most, len(ranked)) + 1):
        for last in range(max(0, size - 1), len(ranked)):
            chosen = (*ranked[: max(0, size - 1)], ranked[last])
            yield tuple(sorted(chosen, key=lambda word: (-frequency(word), word)))


def unique_texts(
    items: ItemIndex, candidates: Callable[[int], Iterable[Words]], most: int
) -> tuple[dict[int, Words], int]:
    """Gives every item the first of its candidates that no earlier item of its domain has.

    Items are asked one by one in the order of their tokens. When none is free, the first candidate is numbered.

    Args:
        candidates: item row -> its texts, lazily.
        most: words of a text at most; longer candidates are cut.

    Returns:
        Item row -> words, and how many items could not have their first candidate.
    """
    texts: dict[int, Words] = {}
    late = 0
    for domain in items.domains:
        used: set[Words] = set()
        rows = items.rows(domain)
        for row in range(rows.start, rows.stop):
            tried: list[Words] = []
            for words in chain(candidates(row), _numbered(tried, most)):
                words = words[:most]
                tried.append(words)
                if words and words not in used:
                    break
            late += len(tried) > 1
            used.add(words)
            texts[row] = words
    return texts, late


def _numbered(tried: list[Words], most: int) -> Iterator[Words]:
    first = next(filter(None, tried), NOTHING)
    if first is NOTHING:
        yield NOTHING
    for number in count(2):
        yield (*first[: most - 1], str(number))


def text_ids(items: ItemIndex, texts: dict[int, Words]) -> SemanticIds:
    """The texts as codes: code 0 ends a short text, every other one is a word wherever it stands."""
    words = ("", *sorted({word for text in texts.values() for word in text}))
    code = {word: number for number, word in enumerate(words)}
    codes = np.zeros((len(items), max(map(len, texts.values()))), dtype=np.int32)
    for row, text in texts.items():
        codes[row, : len(text)] = [code[word] for word in text]
    return SemanticIds(items, codes, len(words), words)
