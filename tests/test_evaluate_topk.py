"""topk.tsv: the header, tokens as they are, missing places, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_gmc.errors import DataError
from recbole_gmc.evaluate import per_user, results
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex

ODD = ["NA", "null", "-1", '"quoted', "it's", "two words", "日本 é", "nan", "\u2028line", "a,b", "\x85next", "#"]


def table(tokens, users, width=3, seed=0) -> TopKTable:
    draw = np.random.default_rng(seed)
    items = ItemIndex.of(tokens)
    domain = np.sort(draw.integers(0, len(tokens), len(users)))
    ranked = np.full((len(users), width), -1)
    target = np.full(len(users), -1)
    for i, position in enumerate(domain):
        rows = items.rows(items.domains[position])
        best = draw.permutation(np.arange(rows.start, rows.stop))
        ranked[i, : min(width, len(best))] = best[:width]
        known = "-1" in items.row_of[items.domains[position]]  # then -1 as a target would be this item
        target[i] = -1 if draw.random() < 0.2 and not known else draw.choice(best)
    scores = np.where(ranked >= 0, -np.sort(draw.random(ranked.shape) * 30), -np.inf).astype(np.float32)
    return TopKTable(items, domain, tuple(users), target, ranked, scores, draw.random(len(users)) < 0.5)


def same(a: TopKTable, b: TopKTable) -> bool:
    exact = all((getattr(a, name) == getattr(b, name)).all() for name in ("domain", "target", "ranked", "rank"))
    return exact and a.user == b.user and np.allclose(a.scores, b.scores, atol=1e-6, rtol=0)


def test_the_file_is_as_documented(tmp_path):
    items = ItemIndex.of({"Books": ["NA", "b 2"], "Films": ['"x"', "y", "z"]})
    made = TopKTable(
        items,
        np.array([0, 1]),
        ("7", "null"),
        np.array([1, -1]),
        np.array([[0, 1, -1], [4, 2, 3]]),
        np.array([[-0.5, -1.25, -np.inf], [-1, -2, -3]], np.float32),
        np.array([True, False]),
    )
    made.write(tmp_path / "topk.tsv")
    assert (tmp_path / "topk.tsv").read_bytes().decode() == (
        "domain\tuser_id\ttarget_item\trank\titem_1\tscore_1\titem_2\tscore_2\titem_3\tscore_3\n"
        "Books\t7\tb 2\t1\tNA\t-0.500000\tb 2\t-1.250000\t-1\t\n"
        'Films\tnull\t-1\t-1\tz\t-1.000000\t"x"\t-2.000000\ty\t-3.000000\n'
    )


def test_odd_tokens_come_back(tmp_path):
    made = table({"A": ODD, "B": ODD[3:5]}, ODD * 3, width=5)
    assert (made.ranked == -1).any() and (made.target == -1).any()
    made.write(tmp_path / "t.tsv")
    back = TopKTable.read(tmp_path / "t.tsv", made.items)
    assert same(made, back) and not back.certified.any()
    for position, name in enumerate(made.items.domains):
        part = back.of_domain(position)
        assert len(part) == (made.domain == position).sum() and (part.domain == position).all(), name


token = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.sets(token, min_size=1, max_size=8), st.lists(token, max_size=5), st.integers(1, 9), st.integers(0, 99))
def test_any_table_comes_back(tmp_path_factory, tokens, users, width, seed):
    made = table({"A": tokens, "B": ["x"]}, users, width, seed)
    path = tmp_path_factory.mktemp("table") / "t.tsv"
    made.write(path)
    assert same(made, TopKTable.read(path, made.items))


def test_minus_one_as_a_token_is_not_taken_for_a_missing_item(tmp_path):
    """Its score tells it from a place past the catalogue, its rank from a target outside it."""
    items = ItemIndex.of({"A": ["-1", "x", "y"]})
    minus, x, y = 0, 1, 2
    rows = [  # target, list, hit
        (minus, [x, minus, y, -1], True),
        (-1, [minus, x, y, -1], False),  # a target outside the catalogue, though the list has the item -1
        (x, [minus, x, y, -1], True),
        (minus, [x, y, -1, -1], False),
        (-1, [x, y, -1, -1], False),
    ]
    target, ranked = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scores = np.where(ranked >= 0, -np.arange(1.0, 5.0), -np.inf).astype(np.float32)
    made = TopKTable(items, np.zeros(5, np.int64), tuple("abcde"), target, ranked, scores, np.zeros(5, bool))
    made.write(tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text().splitlines()[
        2
    ] == "A\tb\t-1\t-1\t-1\t-1.000000\tx\t-2.000000\ty\t-3.000000\t-1\t"
    back = TopKTable.read(tmp_path / "t.tsv", items)
    assert back.ranked.tolist() == ranked.tolist() and back.rank.tolist() == [1, -1, 1, -1, -1]
    assert back.target.tolist()[:4] == target.tolist()[:4]
    for metric in (per_user.recall, per_user.ndcg):
        assert metric(back.rank, 3).tolist() == metric(made.rank, 3).tolist()
    assert per_user.recall(back.rank, 3).astype(bool).tolist() == [row[2] for row in rows]


def test_a_rank_that_is_not_the_target_s_is_refused(tmp_path):
    made = table({"A": ["x", "y"]}, ["u"], width=2)
    made.write(tmp_path / "t.tsv")
    head, line = (tmp_path / "t.tsv").read_text().splitlines()
    fields = line.split("\t")
    for rank in ("-1", "1", "0", "7", "", "1.5"):
        (tmp_path / "t.tsv").write_text("\n".join([head, "\t".join(["A", "u", fields[4], rank, *fields[4:]])]) + "\n")
        if rank == "0":
            assert TopKTable.read(tmp_path / "t.tsv", made.items).rank.tolist() == [0]
            continue
        with pytest.raises(DataError, match=r"t\.tsv:2: not a line of a top-k table"):
            TopKTable.read(tmp_path / "t.tsv", made.items)


def test_lines_that_are_none_are_refused_with_their_number(tmp_path):
    made = table({"A": ["x", "y"]}, ["u", "v"], width=2)
    path = tmp_path / "t.tsv"
    made.write(path)
    good = path.read_text()
    for bad in ("A\tu\tx\t0\tx\n", "C" + good.splitlines()[1][1:] + "\n", "A\tu\tx\t0\tunknown\t-1.0\ty\t-2.0\n"):
        path.write_text(good + bad)
        with pytest.raises(DataError, match=r"t\.tsv:4"):
            TopKTable.read(path, made.items)


def test_hashes_follow_what_they_name(tmp_path):
    made = table({"A": ["x", "y", "z"]}, ["u", "v", "w"])
    first = results.hashes(made)
    shuffled = TopKTable(
        made.items,
        *(getattr(made, name)[::-1] for name in ("domain", "user", "target", "ranked", "scores", "certified")),
    )
    other = results.hashes(shuffled)
    assert other["targets"] == first["targets"] and other["lists"] != first["lists"], "rows in another order"
    moved = table({"A": ["x", "y", "zz"]}, ["u", "v", "w"])
    assert results.hashes(moved)["candidates"] != first["candidates"]
