from __future__ import annotations

import pytest
from data_help import INTER, chain, config_of, write_domain

from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.errors import DataError

GOOD = b"u1\ti1\t0\nu1\ti2\t1\nu1\ti3\t2\nu1\ti4\t3\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    return write_domain(tmp_path, "D", chain("u1", ["i1", "i2", "i3", "i4"]))


def load(folder):
    return GMCDataset(config_of(folder.parent, "D"))


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"user_id\titem_id\ttimestamp\n" + GOOD, 1, "no type"),
        (b"user_id:token\titem_id:word\ttimestamp:float\n" + GOOD, 1, "item_id:word"),
        (b"user_id:token\titem_id:token\ttime:float\n" + GOOD, 1, "timestamp"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\n", 6, "2 fields"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\t0\t1\n", 6, "4 fields"),
        (INTER.encode() + b"\n\n" + GOOD, 2, "empty line"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\tsoon\n", 6, "'soon'"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\tNaN\n", 6, "'NaN'"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\t1e99\n", 6, "'1e99'"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\t1_0\n", 6, "'1_0'"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti1\t\n", 6, "''"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti\x001\t1\n", 6, "NUL"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti\xff\t1\n", 6, "0xff is not UTF-8"),
        (INTER.encode() + b"\n" + GOOD + b"\ti1\t1\n", 6, "user_id is empty"),
        (INTER.encode() + b"\n" + GOOD + b"u2\t\t1\n", 6, "item_id is empty"),
        (INTER.encode() + b"\n" + GOOD + b"u2\t[PAD]\t1\n", 6, "padding"),
        (INTER.encode() + b"\n" + GOOD + b"u2\ti\r1\t1\n", 6, "carriage return"),
    ],
)
def test_fault_01_malformed_inter_is_refused_with_its_line(folder, content, line, what):
    (folder / "D.inter").write_bytes(content)
    with pytest.raises(DataError) as error:
        load(folder)
    assert str(error.value).startswith(f"{folder / 'D.inter'}:{line}: ")
    assert what in error.value.what and error.value.mend and error.value.exit_status == 2


def test_fault_01_bom_and_crlf_are_accepted_and_quotes_kept(folder):
    body = GOOD.replace(b"i2", b'"i 2')
    (folder / "D.inter").write_bytes(b"\xef\xbb\xbf" + (INTER.encode() + b"\n" + body).replace(b"\n", b"\r\n"))
    item = b'item_id:token\ttitle:token_seq\r\ni1\t"a ""b""\r\n"i 2\t c"  d \r\n'
    (folder / "D.item").write_bytes(b"\xef\xbb\xbf" + item)
    dataset = load(folder)
    assert dataset.items.tokens["D"] == ('"i 2', "i1", "i3", "i4")
    assert dataset.texts().texts[:2] == ('c" d', '"a ""b""')


@pytest.mark.parametrize("suffix", ["inter", "item"])
@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xef\xbb\xbf", b"item_id:token\ttitle:token_seq\n"])
def test_fault_02_missing_empty_or_header_only_file_is_refused_with_its_path(folder, suffix, content):
    file = folder / f"D.{suffix}"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as error:
        load(folder)
    assert error.value.where == str(file)


def test_fault_02_missing_domain_names_the_nearest(folder):
    with pytest.raises(DataError, match=r"Domian/Domian.inter: the file does not exist. Is 'Domain' meant"):
        write_domain(folder.parent, "Domain", chain("u", "abcd"))
        GMCDataset(config_of(folder.parent, "Domian"))


def test_one_column_file_and_line_numbers(tmp_path):
    path = tmp_path / "x.item"
    path.write_text("item_id:token\na\nb\n")
    file = read_atomic(path)
    assert file.columns == {"item_id": ["a", "b"]} and len(file) == 2 and file.where(1) == f"{path}:3"
