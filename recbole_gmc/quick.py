"""One run from the command line: a model of ours over all its domains, RecBole's own once a domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_gmc import launch, logs, lookup
from recbole_gmc.files import read_json, refuse_unwritable
from recbole_gmc.flags import only_program_name
from recbole_gmc.places import new_run_dir, refuse_run_in
from recbole_gmc.running.planning import plan

logger = getLogger("recbole_gmc.running")


def run(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    **processes: Any,
) -> Any:
    """Runs a model by name; ``model`` and ``dataset`` may also be named in the files.

    Returns:
        RecBole's result dict for a model of ours that takes all domains at once or is given one; else a dict domain ->
        ``DomainRun``.

    Raises:
        SettingError: no model or data set, a model that does not exist, or a setting that cannot be.
    """
    with only_program_name():
        found = plan(model, dataset, config_file_list, config_dict, **processes)
        if not found.whole:
            from recbole_gmc.running import each_domain  # imports every stage

            if found.unread:
                logger.warning("%s does not read %s", found.model, ", ".join(found.unread))
            folder = run_folder(found.settings, found.model, found.dataset)
            each_domain.refuse_bad_files(found.data_path, found.domains, found.settings)
            return each_domain.run_domains(found, folder)
        folder = run_folder(found.merged(), found.model, found.dataset)
        with logs.tables_later():
            settings = {**found.settings, "run_dir": str(folder)}
            result = launch.run_recbole(found.model, found.dataset, list(found.files), settings)
        _show(folder)
        return result


def resume(folder: str) -> Any:
    """Goes on with an interrupted run; returns what ``run`` does."""
    from recbole_gmc.running import progress

    if progress.begun(Path(folder)):
        from recbole_gmc.running import each_domain  # imports every stage

        with only_program_name():
            runs = each_domain.resume(Path(folder))
        if not logs.on_terminal():  # nothing was left to run, so nothing began a log
            print(_told(Path(folder)))
        return runs
    from recbole_gmc.train.checkpoint import Checkpoint
    from recbole_gmc.train.resume import resume as go_on

    with only_program_name(), logs.tables_later():
        result = go_on(Path(folder))
    _show(Path(Checkpoint(folder).here()["run_dir"]))
    return result


def run_folder(settings: Mapping[str, Any], model: str, dataset: str) -> Path:
    """The folder that ``run_dir`` names, or a new one.

    Raises:
        SettingError: a run is there already, which a second one would overwrite, or nothing can be written there.
    """
    folder = lookup.place(settings, "run_dir") or new_run_dir(model, dataset)
    refuse_run_in(folder)
    refuse_unwritable(folder, "run_dir", "Name another place")
    return folder


def _show(folder: Path) -> None:
    """The run's table, after all that RecBole logs at the end."""
    logs.TABLES.info(_told(folder))


def _told(folder: Path) -> str:
    from recbole_gmc.evaluate import results

    return results.told(read_json(folder / "result.json"), folder)
