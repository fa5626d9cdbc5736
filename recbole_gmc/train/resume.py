"""An interrupted run goes on from where it stood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_gmc import launch
from recbole_gmc.files import sweep
from recbole_gmc.places import alone_in
from recbole_gmc.train.checkpoint import Checkpoint


def resume(folder: Path) -> dict[str, Any]:
    """Goes on with the run in ``folder``, with its own settings, and writes its results there.

    Returns:
        What RecBole's ``run_recbole`` returns.

    Raises:
        CheckpointError: the folder holds no whole checkpoint.
        RunError: another process is at work in it.
    """
    found = Checkpoint(folder)
    settings = {key: value for key, value in found.here().items() if key not in ("model", "dataset")}
    run_dir = Path(settings["run_dir"])
    with alone_in(run_dir):
        sweep(run_dir)
    settings["resume"] = str(found.folder)
    return launch.run_recbole(found.config["model"], found.config["dataset"], None, settings)
