from __future__ import annotations

import numpy as np
import pytest
import torch
from data_help import chain, config_of, random_rows, write_domain
from recbole.data.dataset import SequentialDataset

import recbole_gmc  # noqa: F401  (RecBole's reader keeps NA, null and quotes from here on)
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.text import placeholder
from recbole_gmc.errors import DataError, GMCError, SettingError

USERS = [*"abcdefghijkl", "NA", "null", 'q"uote', "x/y"]
ITEMS = [*"abcdefgh", "NA", "null", "nan", '"quoted"', "x/y", "ü ñ"]


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])


@pytest.fixture
def root(tmp_path):
    for seed, domain in enumerate(("One", "Two")):
        write_domain(tmp_path, domain, random_rows(seed, USERS[seed:], ITEMS[: len(ITEMS) - seed]))
    return tmp_path


def union(root, **keys):
    return GMCDataset(config_of(root, "both", domains=["One", "Two"], **keys))


def alone(root, domain, **keys):
    return SequentialDataset(config_of(root, domain, **keys))


def rows_of(split, domain_of=None):
    """(user, history, target) by original token, in the order of the split."""
    data = split.inter_feat
    user, item = split.field2id_token["user_id"], split.field2id_token["item_id"]
    lengths = data["item_length"].tolist()
    return [
        (user[u], tuple(item[h[:n].numpy()]), item[t])
        for u, h, n, t in zip(data["user_id"], data["item_id_list"], lengths, data["item_id"], strict=True)
    ]


@pytest.mark.parametrize("interval", [None, "[3,inf)"])
def test_union_equals_each_domain_alone_with_recboles_own_path_target_by_target(root, interval):
    keys = {"user_inter_num_interval": interval, "item_inter_num_interval": interval}
    dataset = union(root, **keys)
    parts = {domain: alone(root, domain, **keys) for domain in ("One", "Two")}
    assert dataset.user_num - 1 == sum(part.user_num - 1 for part in parts.values())
    assert dataset.item_num - 1 == sum(part.item_num - 1 for part in parts.values()) == len(dataset.items)
    splits = dataset.build()
    built = {domain: part.build() for domain, part in parts.items()}
    for i, split in enumerate(splits):
        rows = rows_of(split)
        for domain, (train_valid_test) in built.items():
            cut = len(domain) + 1
            own = [
                (u[cut:], tuple(h[cut:] for h in history), t[cut:])
                for u, history, t in rows
                if u.startswith(f"{domain}/")
            ]
            assert own == rows_of(train_valid_test[i])
        assert len(rows) == sum(len(parts[i].inter_feat) for parts in built.values())


def test_prefixes_equal_recboles_loop_tensor_by_tensor(root):
    fast, slow = union(root), union(root)
    fast._change_feat_format()
    slow.data_augmentation = lambda: SequentialDataset.data_augmentation(slow)
    slow._change_feat_format()
    assert list(fast.inter_feat.interaction) == list(slow.inter_feat.interaction)
    for field, value in slow.inter_feat.interaction.items():
        assert value.dtype == fast.inter_feat[field].dtype and torch.equal(value, fast.inter_feat[field]), field


def test_rows_of_a_hand_made_domain(tmp_path):
    write_domain(tmp_path, "D", [*chain("u", "cabab"), *chain("v", "dcb"), *chain("w", "ad"), *chain("x", "a")])
    dataset = GMCDataset(config_of(tmp_path, "D"))
    assert dataset.items.tokens == {"D": tuple("abcd")}
    train, valid, test = (SequenceRows.of(split) for split in dataset.build())
    as_text = ["".join("abcd"[i] for i in h if i >= 0) for h in train.history.tolist()]
    users = dataset.original_user_token(train.user).tolist()
    targets = ["abcd"[i] for i in train.target.tolist()]
    found = sorted(zip(users, as_text, targets, strict=True))
    assert found == [("u", "c", "a"), ("u", "ca", "b"), ("v", "d", "c"), ("w", "a", "d")]
    assert train.history.shape == (4, 5) and train.length.tolist() == [len(t) for t in as_text]
    assert [(dataset.original_user_token(v.user).tolist(), v.target.tolist()) for v in (valid, test)] == [
        (["u"], [0]),
        (["u", "v"], [1, 1]),
    ]
    assert train.of_domain(0).target.tolist() == train.target.tolist() and len(train.of_domain(1)) == 0


def test_properties_map_ids_to_the_index_and_back_also_on_the_splits(root):
    dataset = union(root)
    for split in (dataset, *dataset.build()):
        assert split.items is dataset.items and split.domains == ("One", "Two")
        assert split.item_rows[0] == split.user_domains[0] == -1
        np.testing.assert_array_equal(split.item_rows[split.item_ids], np.arange(len(split.items)))
    for domain in dataset.domains:
        for token, row in dataset.items.row_of[domain].items():
            assert dataset.field2id_token["item_id"][dataset.item_ids[row]] == f"{domain}/{token}"
    users = np.arange(1, dataset.user_num)
    names = [dataset.domains[dataset.user_domains[u]] + "/" + dataset.original_user_token(u) for u in users]
    assert names == dataset.field2id_token["user_id"][1:].tolist()


def test_last_prefixes_keeps_the_end_of_each_user(root):
    train = SequenceRows.of(union(root).build()[0])
    kept = train.last_prefixes(2)
    for user in train.user.unique().tolist():
        mine, left = train.select(train.user == user), kept.select(kept.user == user)
        assert left.target.tolist() == mine.target.tolist()[-2:]
        assert left.history.tolist() == mine.history.tolist()[-2:]
    assert len(train.last_prefixes(100)) == len(train) > len(kept) > 0


def test_fault_03_items_without_text_keep_their_interactions(tmp_path, caplog):
    rows = [*chain("u", "abcd"), *chain("v", "abcab"), *chain("w", "bcabc")]
    write_domain(tmp_path, "D", rows, {"a": "apple", "b": "  ", "c": "cherry"})
    file = tmp_path / "D" / "D.item"
    file.write_text(file.read_text().replace("  \tBrand", "  \t "))
    dataset = GMCDataset(config_of(tmp_path, "D"))
    assert dataset.inter_num == 14 and "2 items have no text" in caplog.text
    texts = dataset.texts().texts
    assert texts == ("apple Brand", placeholder("D", "b"), "cherry Brand", placeholder("D", "d"))
    assert texts[1] != texts[3]
    with pytest.raises(DataError, match=r"D/D\.item: 2 items have no text: b, d"):
        GMCDataset(config_of(tmp_path, "D", missing_text="error"))
    caplog.clear()
    dropped = GMCDataset(config_of(tmp_path, "D", missing_text="drop"))
    assert dropped.items.tokens["D"] == ("a", "c") and dropped.inter_num == 8
    assert "2 items without text and 6 interactions go" in caplog.text


def test_fault_04_duplicate_item_rows(tmp_path, caplog):
    folder = write_domain(tmp_path, "D", chain("u", "abcd"))
    whole = (folder / "D.item").read_text()
    (folder / "D.item").write_text(whole + whole.splitlines()[1] + "\n")
    assert len(GMCDataset(config_of(tmp_path, "D")).texts().texts) == 4
    assert "1 item rows are identical" in caplog.text
    (folder / "D.item").write_text(whole + "a\tother\tBrand\t1.5\n")
    with pytest.raises(DataError, match=r"D\.item:6: item 'a' differs from its row in line 2"):
        GMCDataset(config_of(tmp_path, "D"))


def test_fault_05_users_with_fewer_than_three_interactions_train_only(tmp_path, caplog):
    write_domain(tmp_path, "One", [*chain("u", "abcd"), *chain("v", "ab"), *chain("w", "c"), *chain("x", "abc")])
    write_domain(tmp_path, "Two", [*chain("u", "abcd"), *chain("v", "ab")])
    dataset = union(tmp_path)
    assert "One: 2 users with fewer than 3" in caplog.text and "Two: 1 users with fewer than 3" in caplog.text
    rows = [SequenceRows.of(split) for split in dataset.build()]
    users = [sorted(zip(r.domain.tolist(), dataset.original_user_token(r.user), strict=True)) for r in rows]
    assert users[0] == [(0, "u"), (0, "v"), (0, "x"), (1, "u"), (1, "v")]
    assert users[1] == [(0, "u"), (1, "u")]
    assert users[2] == [(0, "u"), (0, "x"), (1, "u")]


def test_fault_06_the_same_token_in_two_domains_is_two_items_and_two_users(tmp_path):
    write_domain(tmp_path, "One", chain("u", "abcd"), dict.fromkeys("abcd", "first"))
    write_domain(tmp_path, "Two", chain("u", "abcd"), dict.fromkeys("abcd", "second"))
    dataset = union(tmp_path)
    assert dataset.user_num == 3 and dataset.item_num == 9
    assert dataset.original_user_token([1, 2]).tolist() == ["u", "u"] and dataset.user_domains.tolist() == [-1, 0, 1]
    assert dataset.texts().texts == ("first Brand",) * 4 + ("second Brand",) * 4


def test_fault_07_a_domain_without_test_users_is_refused(tmp_path):
    write_domain(tmp_path, "One", chain("u", "abcd"))
    write_domain(tmp_path, "Two", [*chain("u", "ab"), *chain("v", "cd")])
    with pytest.raises(DataError, match="domain Two: no user has 3 interactions, so there are no test users"):
        union(tmp_path).build()
    with pytest.raises(DataError, match="domain Two: no interaction is left after filtering"):
        union(tmp_path, user_inter_num_interval="[3,inf)")


def test_fault_08_order_of_item_rows_changes_nothing(root):
    before = union(root)
    file = root / "Two" / "Two.item"
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([head, *reversed(lines)]) + "\n", encoding="utf-8")
    after = union(root)
    assert before.texts() == after.texts() and before.texts().fingerprint == after.texts().fingerprint
    np.testing.assert_array_equal(before.item_rows, after.item_rows)


def test_fault_32_a_long_history_keeps_its_newest_items(tmp_path):
    write_domain(tmp_path, "D", chain("u", "abcdefghi"))
    train, valid, test = (SequenceRows.of(split) for split in GMCDataset(config_of(tmp_path, "D")).build())
    assert test.history.tolist() == [[3, 4, 5, 6, 7]] and test.target.tolist() == [8]
    assert valid.history.tolist() == [[2, 3, 4, 5, 6]] and valid.target.tolist() == [7]
    assert train.history[-1].tolist() == [1, 2, 3, 4, 5] and train.length.tolist() == [1, 2, 3, 4, 5, 5]


def test_item_rows_without_interactions_are_no_candidates(tmp_path, caplog):
    caplog.set_level("INFO")
    write_domain(tmp_path, "D", chain("u", "abcd"), dict.fromkeys("abcdef", "text"))
    assert GMCDataset(config_of(tmp_path, "D")).items.tokens["D"] == tuple("abcd")
    assert "D: 2 rows of D.item have no interaction" in caplog.text


@pytest.mark.parametrize(
    ("text_fields", "text"),
    [
        (None, "t of a Brand"),
        (["brand", "title"], "Brand t of a"),
        (["price"], "1.5"),
        ({"D": ["title"]}, "t of a"),
        ({"D": "brand"}, "Brand"),
    ],
)
def test_text_fields(tmp_path, text_fields, text):
    write_domain(tmp_path, "D", chain("u", "aaaa"), {"a": "  t   of a "})
    assert GMCDataset(config_of(tmp_path, "D", text_fields=text_fields)).texts().texts == (text,)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text_fields": ["tilte"]}, "text_fields: .*no column 'tilte'. Is 'title' meant"),
        ({"text_fields": []}, "text_fields"),
        ({"text_fields": {"E": ["title"]}}, "'E' is no domain"),
        ({"domains": ["D", "D"]}, "twice"),
        ({"domains": []}, "empty"),
        ({"domains": ["../D"]}, "folder name"),
        ({"domains": 5}, "domains: 5 is not of type list"),
        ({"missing_text": "ignore"}, "missing_text: 'ignore' is unknown"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(tmp_path, keys, message):
    write_domain(tmp_path, "D", chain("u", "abcd"))
    with pytest.raises(SettingError, match=message):
        GMCDataset(config_of(tmp_path, "D", **keys))


def test_value_filter_on_a_column_that_the_model_does_not_need(tmp_path):
    folder = write_domain(tmp_path, "D", chain("u", "abcd"))
    rows = [f"u\t{item}\t{i}\t{1 + i}" for i, item in enumerate("abcd")]
    head = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
    (folder / "D.inter").write_text("\n".join([head, *rows]) + "\n")
    dataset = GMCDataset(config_of(tmp_path, "D", val_interval={"rating": "[2,inf)"}))
    assert dataset.items.tokens["D"] == tuple("bcd") and list(dataset.inter_feat) == ["user_id", "item_id", "timestamp"]
    with pytest.raises(GMCError, match="'stars'"):
        GMCDataset(config_of(tmp_path, "D", val_interval={"stars": "[2,inf)"}))


def test_rm_dup_inter_keeps_the_first_in_time_and_file_order(tmp_path):
    rows = [("u", "a", 5), ("u", "b", 5), ("u", "c", 1), ("u", "a", 5), ("u", "d", 6), ("u", "c", 7)]
    write_domain(tmp_path, "D", rows)
    dataset = GMCDataset(config_of(tmp_path, "D", rm_dup_inter="first"))
    test = SequenceRows.of(dataset.build()[2])
    assert test.history[0].tolist() == [2, 0, 1, -1, -1] and test.target.tolist() == [3]


def test_times_that_single_precision_cannot_tell_apart_are_said_aloud(tmp_path, caplog):
    first = 1_600_000_000
    write_domain(
        tmp_path, "D", [("u", "a", first + 1), ("u", "b", first), ("u", "c", first + 999), *chain("v", "abcd")]
    )
    GMCDataset(config_of(tmp_path, "D"))
    assert "D: 1 users have times that are equal in RecBole's single precision" in caplog.text
