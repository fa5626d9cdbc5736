"""A model run once a domain, all with the same settings and in one run folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from recbole_gmc import launch, logs, recbole_keys, registry, values
from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.evaluate.split import refuse_untested
from recbole_gmc.running import domain_run, finished, single
from recbole_gmc.running.domain_run import DomainRun
from recbole_gmc.running.planning import SEED, DomainPlan, Plan
from recbole_gmc.settings import TrainSettings, read
from recbole_gmc.train.budget import Budget

LEAST_BUDGET = 1e-3  # minutes: the setting must be above 0, and the run ends at once


def run_domains(plan: Plan, folder: Path) -> dict[str, DomainRun]:
    """Runs the model once a domain and writes the files of all of them together: domain -> what its run left."""
    done = finished.folders(plan.settings)
    budget, runs = Budget(read(TrainSettings, plan.settings).budget_minutes), {}
    for left, domain in zip(range(len(plan.domains), 0, -1), plan.domains, strict=True):
        share, own = budget.share(left), plan.of_domain(domain, folder)
        if domain in done and plan.ours:
            runs[domain] = finished.of_ours(done[domain], domain)
        elif domain in done:
            runs[domain] = finished.of_recboles(done[domain], own)
        elif plan.ours:
            runs[domain] = run_ours(own, share)
        else:
            runs[domain] = single.run_domain(own, share)
    if plan.ours:
        logs.write_to(folder).begin()
    entry = registry.entry(plan.model)
    usual = values.read_yaml(entry.properties) if entry is not None and entry.properties else {}
    domain_run.write(folder, plan.model, plan.dataset, runs, {"seed": SEED, **usual, **plan.settings})
    return runs


def run_ours(plan: DomainPlan, budget: Budget) -> DomainRun:
    """One domain of a registered model as a whole run of its own, in a folder inside the run's."""
    own = dict(plan.settings)
    if budget.minutes is not None:
        own["budget_minutes"] = max(budget.minutes, LEAST_BUDGET)
    with logs.tables_later():
        launch.run_recbole(plan.model, plan.domain, None, own)
    return domain_run.read_run(Path(own["run_dir"]), plan.domain)


def refuse_bad_files(plan: Plan) -> None:
    """Reads every domain's interactions as GMC does, so that a bad file is refused by line, whatever the model.

    A domain whose users are all too short is refused, too, before the domains in front of it are trained.

    Raises:
        DataError: a file that ``AtomicFile`` refuses, or a domain without test users.
    """
    usual = {**recbole_keys.defaults(None), **plan.settings}
    root = Path(plan.settings.get("data_path") or "dataset")
    for domain in plan.domains:
        if domain == "ml-100k" and not (root / domain).is_dir():
            continue  # RecBole carries that one itself
        file = read_atomic(root / domain / f"{domain}.inter", usual["field_separator"])
        for name, kind in file.types.items():
            if kind == "float":
                file.numbers(name)
        refuse_untested(Counter(file.columns.get(usual["USER_ID_FIELD"], ())).values(), domain)
