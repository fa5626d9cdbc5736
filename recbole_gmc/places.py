"""Where things of ours are written: a run folder, and one cache. Nothing is written elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole.config import Config
from recbole.utils import get_local_time

from recbole_gmc.errors import RunError, SettingError
from recbole_gmc.files import locked, refuse_unwritable, safe_name
from recbole_gmc.lookup import CACHE

LOCK = ".lock"  # in a run's folder
POINTER = "checkpoint.json"  # there, to a checkpoint that is kept elsewhere
DOMAINS_NOTE = "domains.json"  # there, of a run that takes its domains one at a time


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds a run's folder while it is worked on.

    Raises:
        RunError: another process holds it.
        SettingError: it cannot be written.
    """
    refuse_unwritable(folder, "run_dir", "Name another place")
    with locked(folder / LOCK) as lock:
        if lock is None:
            raise RunError("another process is at work in it", str(folder), "Wait for it, or name another run_dir")
        yield


def refuse_run_in(folder: Path) -> None:
    """Raises ``SettingError`` where a run stands already, which a second one would overwrite."""
    if any((folder / name).exists() for name in ("result.json", "checkpoint", "domains", POINTER, DOMAINS_NOTE)):
        mend = f"Go on with it by --resume={folder}, or name another folder"
        raise SettingError(f"{str(folder)!r} holds a run already", "run_dir", mend)


def cache_dir(config: Config) -> Path:
    return Path(config["cache_dir"] or CACHE).expanduser()


def run_dir(config: Config) -> Path:
    """The run's folder; names it once, in the Config, so that every part of RecBole sees the same one."""
    if not config["run_dir"]:
        config["run_dir"] = str(new_run_dir(config["model"], config["dataset"]))
    return Path(config["run_dir"])


def new_run_dir(model: str, dataset: str) -> Path:
    """A folder name that no other run has: ``runs/<model>-<dataset>-<time>-<id>``."""
    return Path("runs") / f"{model}-{safe_name(dataset, 'dataset')}-{get_local_time()}-{uuid.uuid4().hex[:6]}"


def checkpoint_dir(config: Config) -> Path:
    """``run_dir/checkpoint``, or a folder named after the run inside a ``checkpoint_dir`` that the user gave."""
    run = run_dir(config)
    chosen = config["checkpoint_dir"]
    return Path(chosen) / run.name if chosen and Path(chosen) != run else run / "checkpoint"
