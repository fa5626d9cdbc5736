"""An interrupted run goes on from its last finished epoch or stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_gmc import launch
from recbole_gmc.train.checkpoint import Checkpoint


def resume(folder: Path) -> dict[str, Any]:
    """Goes on with the run in ``folder``, with its own settings, and writes its results there.

    Returns:
        What RecBole's ``run_recbole`` returns.

    Raises:
        CheckpointError: the folder holds no whole checkpoint.
    """
    found = Checkpoint(folder)
    settings = {key: value for key, value in found.config.items() if key not in ("model", "dataset")}
    settings["resume"] = str(found.folder)
    if found.folder.name == "checkpoint":  # the run's folder may have been moved or copied
        if settings.get("checkpoint_dir") == settings.get("run_dir"):
            settings.pop("checkpoint_dir", None)
        settings["run_dir"] = str(found.folder.parent)
    return launch.run_recbole(found.config["model"], found.config["dataset"], None, settings)
