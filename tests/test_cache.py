"""Entries that are whole and unchanged, or not there."""

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from recbole_gmc import cache as cache_module
from recbole_gmc.cache import Cache
from recbole_gmc.errors import RunError, SettingError

KEY = "0123abcd"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def store(cache, content="one", key=KEY):
    with cache.put("kind", key) as folder:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(content)
        (folder / "sub" / "b.bin").write_bytes(bytes(range(256)))


def test_put_then_get(cache):
    assert cache.get("kind", KEY) is None
    store(cache)
    folder = cache.get("kind", KEY)
    assert folder == cache.folder("kind", KEY)
    assert (folder / "a.txt").read_text() == "one"
    assert sorted(json.loads((folder / "manifest.json").read_text())["files"]) == ["a.txt", "sub/b.bin"]
    assert cache.get("kind", "ffff") is None and cache.get("other", KEY) is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "bit": lambda folder: flip(folder / "sub" / "b.bin"),
    "missing": lambda folder: (folder / "a.txt").unlink(),
    "added": lambda folder: (folder / "c.txt").write_text("x"),
    "truncated": lambda folder: (folder / "a.txt").write_text("on"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest not JSON": lambda folder: (folder / "manifest.json").write_bytes(b"\xff{"),
    "manifest a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest outside": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "kind": "kind", "key": KEY, "files": {"../../x": "0"}})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_set_aside_and_made_again(cache, caplog, damage):
    for number in (1, 2):
        store(cache)
        DAMAGE[damage](cache.folder("kind", KEY))
        assert cache.get("kind", KEY) is None
        assert "damaged" in caplog.text
        assert (cache.root / "kind" / f".damaged-{KEY}-{number}").is_dir()
        assert not cache.folder("kind", KEY).exists()
    store(cache)
    assert cache.get("kind", KEY)


def test_damaged_entry_is_replaced_by_put(cache):
    store(cache)
    flip(cache.folder("kind", KEY) / "a.txt")
    store(cache)
    assert (cache.get("kind", KEY) / "a.txt").read_text() == "one"


def test_entry_of_another_key_is_not_taken(cache):
    store(cache)
    os.rename(cache.folder("kind", KEY), cache.folder("kind", "beef"))
    assert cache.get("kind", "beef") is None


def test_failed_writer_leaves_nothing(cache):
    with pytest.raises(ZeroDivisionError), cache.put("kind", KEY) as folder:
        (folder / "a.txt").write_text("half")
        raise ZeroDivisionError
    assert cache.get("kind", KEY) is None
    assert not list((cache.root / "kind").glob(".partial-*"))


def test_first_of_two_writers_stays(cache):
    with cache.put("kind", KEY) as slow:
        (slow / "a.txt").write_text("slow")
        store(cache, "fast")
        read = cache.get("kind", KEY)
        assert slow.is_dir()  # a living writer's folder is never swept
    assert (cache.get("kind", KEY) / "a.txt").read_text() == "fast" == (read / "a.txt").read_text()
    assert not list((cache.root / "kind").glob(".partial-*"))


def _hang(root):
    with Cache(root).put("kind", KEY) as folder:
        (folder / "a.txt").write_text("half")
        (root / "started").touch()
        time.sleep(60)


def _race(root, barrier):
    cache = Cache(root)
    for number in range(20):
        barrier.wait()
        store(cache, f"same {number}", f"{number:04}")
        assert (cache.get("kind", f"{number:04}") / "a.txt").read_text() == f"same {number}"


def test_killed_writer_is_swept(cache):
    """Faults 16: SIGKILL while writing leaves no entry, and its temporary folder goes at the next start."""
    cache.root.mkdir()
    writer = multiprocessing.get_context("fork").Process(target=_hang, args=(cache.root,))
    writer.start()
    while not (cache.root / "started").exists():
        assert writer.is_alive()
        time.sleep(0.01)
    assert cache.get("kind", KEY) is None
    assert list((cache.root / "kind").glob(".partial-*"))
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert cache.get("kind", KEY) is None
    assert not list((cache.root / "kind").glob(".partial-*"))


def test_a_writer_that_is_about_to_lock_its_mark_is_alive(cache, monkeypatch):
    """Another process looks at the folder just before the lock is taken."""
    flock, looked = cache_module.fcntl.flock, []

    def slow(file, how):
        if how == cache_module.fcntl.LOCK_EX and not looked:
            looked.append(cache.get("kind", KEY))
        flock(file, how)

    monkeypatch.setattr(cache_module.fcntl, "flock", slow)
    store(cache, "whole")
    monkeypatch.undo()
    assert looked == [None] and (cache.get("kind", KEY) / "a.txt").read_text() == "whole"


def test_processes_may_race_for_the_same_keys(cache):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3, timeout=50)
    racers = [context.Process(target=_race, args=(cache.root, barrier)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert not [path.name for path in (cache.root / "kind").glob(".*") if path.name != ".lock"]


def test_works_without_file_locks(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "fcntl", None)
    store(cache)
    leftover = cache.root / "kind" / ".partial-x"
    leftover.mkdir()
    assert cache.get("kind", KEY) and leftover.is_dir()
    os.utime(leftover, (0, 0))
    assert cache.get("kind", KEY) and not leftover.exists()


def test_unwritable_place_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cache_dir"), Cache(tmp_path / "file").put("kind", KEY):
        pass


@pytest.mark.parametrize(
    ("kind", "key"), [("../x", KEY), ("a/b", KEY), ("kind", "../x"), ("kind", "XYZ0"), ("kind", 5)]
)
def test_names_that_could_leave_the_folder_are_refused(cache, kind, key):
    with pytest.raises(SettingError):
        cache.get(kind, key)


def _make_in_turn(root, made):
    cache = Cache(root)
    with cache.turn("kind", KEY, "It"):
        if cache.get("kind", KEY) is None:
            time.sleep(0.3)  # a race without turns would be lost
            with made.get_lock():
                made.value += 1
            store(cache)


def test_who_waits_for_a_turn_finds_what_was_made(cache):
    context = multiprocessing.get_context("fork")
    made = context.Value("i", 0)
    makers = [context.Process(target=_make_in_turn, args=(cache.root, made)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0, 0, 0] and made.value == 1


def test_a_turn_of_a_killed_process_is_free(cache):
    context = multiprocessing.get_context("fork")
    inside = context.Event()

    def hold():
        with Cache(cache.root).turn("kind", KEY, "It"):
            inside.set()
            time.sleep(60)

    holder = context.Process(target=hold)
    holder.start()
    assert inside.wait(30)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    with cache.turn("kind", KEY, "It"):
        assert cache.get("kind", KEY) is None


def test_a_turn_that_fails_lets_in_one_at_a_time(cache):
    """Threads that come, wait and leave nothing behind, again and again."""
    inside, most = [], []

    def come_often():
        for _ in range(8):
            with suppress(RuntimeError), cache.turn("kind", KEY, "It"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()
                raise RuntimeError

    comers = [threading.Thread(target=come_often) for _ in range(4)]
    for comer in comers:
        comer.start()
    for comer in comers:
        comer.join(60)
    assert len(most) == 32 and max(most) == 1
