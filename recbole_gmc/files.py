"""Files that appear whole or not at all, and the hashes by which stages know each other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked there
    fcntl = None  # type: ignore[assignment]

import numpy as np
from safetensors import SafetensorError

from recbole_gmc.errors import RunError, SettingError

TEMPORARY = ".partial-"
RETIRED = ".retired-"


def safe_name(name: str, what: str) -> str:
    """Returns ``name`` if it can be one path component, else raises ``SettingError``."""
    bad = not isinstance(name, str) or not name or name in (".", "..") or name != name.strip()
    if bad or any(c in name for c in "/\\\0\n\r\t:") or name.startswith((TEMPORARY, RETIRED)):
        raise SettingError(f"{what} {name!r} cannot be a folder name", mend="Use a plain name without path separators")
    return name


def refuse_unwritable(place: str | Path, where: str, mend: str = "Name another folder") -> None:
    """Raises ``SettingError`` where no folder can be made or written at a place, before any work.

    Tried rather than asked: permissions do not tell of a full disk, or of /proc.
    """
    there = path = Path(place).absolute()
    try:
        there = next(part for part in (path, *path.parents) if part.exists())
        os.rmdir(tempfile.mkdtemp(prefix=TEMPORARY, dir=there))
    except OSError:
        raise SettingError(f"{str(there)!r} is no folder that can be written", where, mend) from None


@contextmanager
def locked(file: Path) -> Iterator[IO | None]:
    """Holds a lock file, which child processes may hold on; ``None`` where another process has it.

    Where there are no locks, as on some network file systems, nothing is held.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError:
                pass
        yield lock


@contextmanager
def new_file(path: str | Path, mode: str = "w") -> Iterator[Any]:
    """Opens a temporary file beside ``path`` and moves it there when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        options = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    with new_file(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


@contextmanager
def telling_where(folder: str | Path, mend: str) -> Iterator[None]:
    """Raises one ``RunError`` with the folder for whatever a full disk or a read-only folder makes of a block."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(f"cannot be written ({reason})", str(folder), mend) from error


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside ``path`` that takes its place when the block ends well.

    A folder already there is set aside first and removed last, so a crash at any moment leaves the old one or the
    new one whole; ``recover`` puts an old one back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent))
    try:
        os.chmod(work, 0o755)
        yield work
        for part in work.rglob("*"):  # some writers make files that only their owner reads
            os.chmod(part, 0o755 if part.is_dir() else 0o644)
        retired = path.parent / f"{RETIRED}{path.name}"
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
            os.replace(path, retired)
        os.replace(work, path)
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def sweep(folder: str | Path) -> None:
    """Removes what a killed writer of single files left in a folder; for the folder's one writer only."""
    for leftover in Path(folder).glob(f"{TEMPORARY}*"):
        if leftover.is_file():
            leftover.unlink()


def standing(path: str | Path) -> Path:
    """Where the folder ``path`` can be read: a ``new_folder`` killed between its two moves left the old one aside."""
    path = Path(path)
    retired = path.parent / f"{RETIRED}{path.name}"
    return retired if retired.exists() and not path.exists() else path


def recover(path: str | Path) -> None:
    """Finishes or undoes a ``new_folder`` that was killed: puts the old folder back, sweeps leftovers.

    For the writer of the folder only: to it, what another process is writing is a leftover.
    """
    path = Path(path)
    retired = path.parent / f"{RETIRED}{path.name}"
    if retired.exists() and not path.exists():
        os.replace(retired, path)
    shutil.rmtree(retired, ignore_errors=True)
    if path.parent.is_dir():
        for leftover in path.parent.glob(f"{TEMPORARY}{path.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_of(*parts: Any) -> str:
    """SHA-256 over arrays (dtype, shape, bytes), bytes, iterators of bytes and JSON-able values, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            digest.update(part)
        elif isinstance(part, Iterator):
            for piece in part:
                digest.update(piece)
        else:
            digest.update(json.dumps(part, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode())
        digest.update(b"\x1e")
    return digest.hexdigest()
