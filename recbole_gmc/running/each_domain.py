"""A model run once a domain, all with the same settings and in one run folder."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_gmc import keys, launch, logs, recbole_keys, registry, values
from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.data.text import read_domain_text
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.evaluate.raw import RawData
from recbole_gmc.evaluate.split import refuse_untested
from recbole_gmc.files import sweep
from recbole_gmc.places import DOMAINS_NOTE, LOCK, alone_in
from recbole_gmc.running import domain_run, finished, single
from recbole_gmc.running.domain_run import DomainRun
from recbole_gmc.running.planning import SEED, DomainPlan, Plan
from recbole_gmc.running.progress import DomainsProgress
from recbole_gmc.settings import TrainSettings, read
from recbole_gmc.train import resume as train_resume
from recbole_gmc.train.budget import Budget
from recbole_gmc.train.checkpoint import Checkpoint


def run_domains(plan: Plan, folder: Path) -> dict[str, DomainRun]:
    """Runs the model once a domain and writes the files of all of them together: domain -> what its run left.

    Raises:
        GMCError: what the run of any domain refuses of settings or data, before there is a folder.
        RunError: another process is at work in the folder.
    """
    plan.refuse_bad(folder)
    if plan.ours:
        _refuse_unfit(plan, folder)
    with _leaving_nothing_if_refused(folder), alone_in(folder):
        return _run(DomainsProgress.begin(plan, folder))


@contextmanager
def _leaving_nothing_if_refused(folder: Path) -> Iterator[None]:
    """Removes a run's folder again, and those made for it, if what it would run is refused before anything is done."""
    new = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        yield
    except (SettingError, DataError):
        if new and {part.name for part in folder.glob("*")} <= {LOCK, DOMAINS_NOTE}:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run may stand in one of them by now
                for parent in new[1:]:
                    parent.rmdir()
        raise


def resume(folder: Path) -> dict[str, DomainRun]:
    """Goes on with such a run: finished domains are taken as they are, a half-trained one where it stood if it can be.

    Raises:
        CheckpointError: the note on it is damaged, or data have changed.
        RunError: another process is at work in the folder.
    """
    with alone_in(folder):
        sweep(folder)
        progress = DomainsProgress.read(folder)
        for domain in progress.plan.domains if progress.plan.ours else ():
            if domain not in progress.spent:
                progress.spent[domain] = _spent_in(progress.plan.of_domain(domain, folder))
        return _run(progress)


def _run(progress: DomainsProgress) -> dict[str, DomainRun]:
    plan, folder, spent = progress.plan, progress.folder, progress.spent
    done, runs = finished.folders(plan.settings), {}
    budget = Budget(read(TrainSettings, plan.settings).budget_minutes, sum(spent.values()))
    progress.write()
    for left, domain in zip(range(len(plan.domains), 0, -1), plan.domains, strict=True):
        share, own, started = budget.share(left), plan.of_domain(domain, folder), budget.spent()
        if domain in done and plan.ours:
            runs[domain] = finished.of_ours(done[domain], domain)
        elif domain in done:
            runs[domain] = finished.of_recboles(done[domain], own)
        elif plan.ours:
            runs[domain] = run_ours(own, share)
        else:
            runs[domain] = run_recboles(own, share, keep=len(plan.domains) > 1)
        spent[domain] = spent.get(domain, 0.0) + budget.spent() - started
        progress.write()
    if plan.ours:
        logs.write_to(folder).begin()
    entry = registry.entry(plan.model)
    usual = values.read_yaml(entry.properties) if entry is not None and entry.properties else {}
    domain_run.write(folder, plan.model, plan.dataset, runs, {"seed": SEED, **usual, **plan.settings})
    return runs


def run_ours(plan: DomainPlan, budget: Budget) -> DomainRun:
    """One domain of a registered model as a whole run of its own, in a folder inside the run's."""
    own, place = dict(plan.within(budget).settings), Path(plan.settings["run_dir"])
    if not (place / "result.json").is_file():
        with logs.tables_later():
            if Checkpoint.found(place) is not None:
                train_resume.resume(place)
            else:
                shutil.rmtree(place, ignore_errors=True)  # of a run that was stopped before its first checkpoint
                launch.run_recbole(plan.model, plan.domain, None, own)
    return domain_run.read_run(place, plan.domain)


def run_recboles(plan: DomainPlan, budget: Budget, keep: bool) -> DomainRun:
    """One domain of one of RecBole's own models.

    Args:
        keep: what it leaves is kept in a folder inside the run's, for a run of more domains that is stopped later.
    """
    place = Path(plan.settings["run_dir"])
    place = place / "domains" / plan.domain if keep else place
    if not (place / "result.json").is_file():
        found = single.run_domain(plan, budget)
        if not keep:
            return found
        domain_run.save(place, plan.model, plan.domain, {plan.domain: found}, {"seed": SEED, **plan.settings})
    return finished.read_recboles(place, plan)  # also what was just saved: scores are rounded there


def _spent_in(plan: DomainPlan) -> float:
    """CPU seconds of a domain's run that was stopped in the middle."""
    found = Checkpoint.found(plan.settings["run_dir"])
    return found.progress().record.cpu_seconds if found is not None else 0.0


def _refuse_unfit(plan: Plan, folder: Path) -> None:
    """Reads all domains of a registered model's run, so that a bad one is refused before the first is trained."""
    entry = registry.entry(plan.model)
    refuse = getattr(registry.load(entry.trainer), "refuse_unfit", None) if entry.trainer else None
    for domain in plan.domains if refuse and entry.dataset else ():
        config = Config(plan.model, domain, [], dict(plan.of_domain(domain, folder).settings))
        with logs.silent():
            items = registry.load(entry.dataset)(config).items
        refuse(config, items)


def refuse_bad_files(root: Path, domains: Sequence[str], settings: Mapping[str, Any], texts: bool = False) -> None:
    """Reads every domain's files, so that a bad one is refused by line, whatever the model, before any is trained.

    A domain whose users are all too short is refused, too, and one whose ``.item`` lacks columns to load.

    Args:
        texts: whether a model reads the item text.

    Raises:
        DataError: a file that ``AtomicFile`` refuses, a missing column, or a domain without test users.
    """
    usual = {**recbole_keys.defaults(None), **settings}
    user, item, separator = usual["USER_ID_FIELD"], usual["ITEM_ID_FIELD"], usual["field_separator"]
    for domain in domains:
        if domain == "ml-100k" and not (root / domain).is_dir():
            continue  # RecBole carries that one itself
        file = read_atomic(root / domain / f"{domain}.inter", separator)
        for name, kind in file.types.items():
            if kind == "float":
                file.numbers(name)
        refuse_untested(_lengths(root, domain, usual) or Counter(file.columns.get(user, ())).values(), domain)
        place = root / domain / f"{domain}.item"
        if texts:
            read_domain_text(place, domain, None, item_field=item, separator=separator)
        columns = {**usual, **settings.get("of_domain", {}).get(domain, {})}["load_col"] or {}
        loaded = columns.get("item") or ()
        there = read_atomic(place, separator).columns if loaded else {}
        if missing := [name for name in loaded if name not in there]:
            what = f"no column {missing[0]!r}{keys.nearest(missing[0], there)}"
            raise DataError(what, str(place), "Name others in load_col, or add it")


def _lengths(root: Path, domain: str, settings: Mapping[str, Any]) -> list[int]:
    """Interactions of each user that a filter by their numbers leaves; nothing where there is no such filter."""
    try:
        raw = RawData.of(settings)
        return [len(sequence) for sequence in raw.sequences(root, domain).values()] or [0] if any(raw.core) else []
    except (SettingError, ValueError, IndexError):  # what is wrong or rare there, the run itself says
        return []
