from __future__ import annotations

from collections import Counter

import pytest
import yaml
from data_help import config_of

from recbole_gmc.data import quick_start
from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return quick_start.prepare("ml-100k", tmp_path_factory.mktemp("cache"))


def test_embedded_domains_share_no_film_and_are_5_core(folder):
    films: list[str] = []
    for domain in quick_start.GENRES:
        inter = read_atomic(folder / domain / f"{domain}.inter")
        users, items = inter.tokens("user_id"), inter.tokens("item_id")
        assert min(Counter(users).values()) >= 5 and min(Counter(items).values()) >= 5
        assert set(read_atomic(folder / domain / f"{domain}.item").tokens("item_id")) == set(items)
        films += set(items)
        place: Counter[str] = Counter()
        for user, time in zip(users, inter.columns["timestamp"], strict=True):
            assert int(time) == place[user]
            place[user] += 1
    assert len(quick_start.GENRES) >= 3 and len(films) == len(set(films))


def test_order_of_a_user_is_by_time_then_file(folder):
    source = read_atomic(
        quick_start.Path(quick_start.recbole.__file__).parent / "dataset_example/ml-100k/ml-100k.inter"
    )
    rows = list(zip(*source.columns.values(), strict=True))
    inter = read_atomic(folder / "Drama" / "Drama.inter")
    kept = list(zip(inter.columns["user_id"], inter.columns["item_id"], strict=True))
    films = set(inter.columns["item_id"])
    for user in ("1", "13", "405"):
        own = sorted((float(time), line, item) for line, (u, item, _, time) in enumerate(rows) if u == user)
        assert [item for u, item in kept if u == user] == [item for *_, item in own if item in films]


def test_packaged_dataset_reads_as_domains(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    file = quick_start.Path(__file__).parents[1] / "properties" / "dataset" / "ml-100k-genres.yaml"
    keys = yaml.safe_load(file.read_text())
    assert keys.pop("embedded_data") == "ml-100k"
    dataset = GMCDataset(config_of(folder, "label", **keys))
    assert dataset.domains == tuple(quick_start.GENRES)
    title = dict(zip(dataset.items.tokens["Action"], dataset.texts().texts, strict=False))["2"]
    assert title == "GoldenEye 1995 Action Adventure Thriller"


def test_prepared_folder_is_reused_and_mended(tmp_path):
    folder = quick_start.prepare("ml-100k", tmp_path)
    file = folder / "Comedy" / "Comedy.inter"
    before, stamp = hash_file(file), file.stat().st_mtime_ns
    assert quick_start.prepare("ml-100k", tmp_path) == folder and file.stat().st_mtime_ns == stamp
    file.write_text("damaged")
    assert quick_start.prepare("ml-100k", tmp_path) == folder and hash_file(file) == before
    assert [entry.name for entry in (tmp_path / "quick_start").iterdir() if entry.name[0] != "."] == [folder.name]


def test_unknown_embedded_data_is_refused(tmp_path):
    with pytest.raises(SettingError, match="'ml-1m' is not embedded"):
        quick_start.prepare("ml-1m", tmp_path)
