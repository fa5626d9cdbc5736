"""What a run may use again: content-keyed folders whose every byte is checked before it is trusted."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers are then told by their age alone
    fcntl = None  # type: ignore[assignment]

from safetensors import SafetensorError

from recbole_gmc.errors import SettingError
from recbole_gmc.files import TEMPORARY, hash_file, new_folder, read_json, safe_name, telling_where, write_json

MANIFEST = "manifest.json"
DAMAGED = ".damaged-"
WRITER = ".writer"
STALE_SECONDS = 24 * 3600
FORMAT = 1
_FULL = {  # numpy's own error of a file that came out short has no number
    *(errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EFBIG, None),
    getattr(errno, "EDQUOT", errno.ENOSPC),
}

logger = getLogger("recbole_gmc.cache")


class _AlreadyThere(Exception):
    """Another process stored the same entry first."""


class Cache:
    """Folders ``<root>/<kind>/<key>/``, each with a ``manifest.json`` of its files' SHA-256 hashes.

    The key is a hash of everything the content depends on, so an entry is never stale: other inputs make another
    key. Two processes may work on one key; the first whole entry stays, as both hold the same content.

    Args:
        root: the cache folder; made when something is first stored.

    Example:
        >>> cache = Cache(Path(tempfile.mkdtemp()))
        >>> with cache.put("embeddings", "0a1b") as folder:
        ...     _ = (folder / "a.txt").write_text("x")
        >>> (cache.get("embeddings", "0a1b") / "a.txt").read_text()
        'x'
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def folder(self, kind: str, key: str) -> Path:
        """Where an entry lies or would lie.

        Raises:
            SettingError: ``kind`` is no folder name or ``key`` is not hexadecimal.
        """
        if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]{4,128}", key):
            raise SettingError(f"cache key {key!r} is not hexadecimal")
        return self.root / safe_name(kind, "cache kind") / key

    def get(self, kind: str, key: str) -> Path | None:
        """The entry's folder if it is there and every file has the hash it was stored with, else ``None``.

        A damaged entry is renamed to ``.damaged-<key>-<n>`` and logged, so that the caller makes it anew.
        """
        path = self.folder(kind, key)
        self._sweep(path.parent)
        if not path.is_dir():
            return None
        if fault := _fault(path, kind, key):
            self._set_aside(path, fault)
            return None
        return path

    @contextmanager
    def put(self, kind: str, key: str) -> Iterator[Path]:
        """Gives a temporary folder that is hashed and becomes the entry, whole, when the block ends well.

        Raises:
            RunError: the cache folder is full or cannot be written.
        """
        path = self.folder(kind, key)
        try:
            with ExitStack() as held, suppress(_AlreadyThere):
                with new_folder(path) as work:
                    writer = held.enter_context(_mark_writer(work))
                    yield work
                    writer.unlink(missing_ok=True)
                    _seal(work, kind, key)
                    # Held until new_folder has moved the folder into place.
                    held.enter_context(_locked(path.parent / ".lock"))
                    if path.is_dir():
                        fault = _fault(path, kind, key)
                        if not fault:
                            raise _AlreadyThere
                        self._set_aside(path, fault)
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno not in _FULL:
                raise
            with telling_where(self.root, "Free some space there, or set cache_dir to another folder"):
                raise

    @contextmanager
    def turn(self, kind: str, key: str, what: str) -> Iterator[None]:
        """Waits while another process makes the same entry: who asks ``get`` inside finds it then.

        For work of minutes, such as that of equal stages of trials side by side. Nothing waits for a process that is
        gone, nor where there are no locks.

        Args:
            what: is made, for who waits.
        """
        path = self.folder(kind, key)
        with ExitStack() as held:
            with suppress(OSError):  # a folder that cannot be written is said when there is something to write
                path.parent.mkdir(parents=True, exist_ok=True)
                turn = path.parent / f".turn-{key}"
                held.enter_context(_locked(turn, f"{what}: another process makes the same"))
                held.callback(turn.unlink, missing_ok=True)
            yield

    def _set_aside(self, path: Path, fault: str) -> None:
        number = 1
        while (aside := path.parent / f"{DAMAGED}{path.name}-{number}").exists():
            number += 1
        try:
            os.replace(path, aside)
        except FileNotFoundError:  # another process set it aside first
            return
        logger.warning("Cache entry %s is damaged (%s): set aside as %s and made anew", path, fault, aside.name)

    def _sweep(self, folder: Path) -> None:
        """Removes the temporary folders of writers that were killed; those of living writers stay."""
        if not folder.is_dir():
            return
        for leftover in folder.glob(f"{TEMPORARY}*"):
            if leftover.is_dir() and _abandoned(leftover):
                logger.info("Removed what a killed run left in the cache: %s", leftover.name)
                shutil.rmtree(leftover, ignore_errors=True)


def _files(folder: Path) -> set[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return {name for name in names if name != MANIFEST}


def _seal(folder: Path, kind: str, key: str) -> None:
    hashes = {name: hash_file(folder / name) for name in sorted(_files(folder))}
    write_json(folder / MANIFEST, {"format": FORMAT, "kind": kind, "key": key, "files": hashes})


def _fault(folder: Path, kind: str, key: str) -> str | None:
    """What is wrong with an entry, or ``None``. Names in the manifest are compared with the disk, never opened."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):  # ValueError: broken JSON or broken UTF-8
        return f"{MANIFEST} cannot be read"
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or [manifest.get(k) for k in ("format", "kind", "key")] != [FORMAT, kind, key]:
        return f"{MANIFEST} is of something else"
    if different := _files(folder) ^ set(files):
        return f"files missing or added: {', '.join(sorted(different)[:5])}"
    for name, digest in files.items():
        try:
            if hash_file(folder / name) != digest:
                return f"{name} has changed"
        except OSError:
            return f"{name} cannot be read"
    return None


@contextmanager
def _locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Waits for an advisory lock, and says so if told what to say; on systems without one, goes on without."""
    while True:
        with open(path, "a") as file:
            if fcntl is not None:
                with suppress(OSError):  # some network file systems have no locks
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        if waiting:
                            logger.info("%s; waiting for it", waiting)
                        fcntl.flock(file, fcntl.LOCK_EX)
            if fcntl is None or _is_at(file, path):
                yield
                return
            # Who held it removed the file: a newcomer would lock another one of that name.


def _is_at(file: IO, path: Path) -> bool:
    """Whether an open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _mark_writer(work: Path) -> Iterator[Path]:
    """A file in ``work`` that stays locked as long as this process lives: how others know a leftover.

    It gets its name once it is locked: who looks between the two would take a living writer for a killed one.
    """
    path, unnamed = work / WRITER, work / f"{WRITER}-new"
    with open(unnamed, "w") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        os.replace(unnamed, path)
        yield path


def _abandoned(folder: Path) -> bool:
    with suppress(OSError):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            # Long jobs keep their writer's lock, so age decides only where there is no lock to ask.
            if fcntl is None or not (folder / WRITER).exists():
                return True
        if fcntl is not None:
            with open(folder / WRITER) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a living writer makes this raise
                return True
    return False
