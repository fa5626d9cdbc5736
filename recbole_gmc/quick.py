"""One run from the command line: a model of ours over all its domains, RecBole's own once a domain."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from recbole_gmc import hooks, keys, launch, logs, lookup, recbole_keys, registry, sections, values
from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.errors import SettingError
from recbole_gmc.evaluate.split import refuse_untested
from recbole_gmc.files import read_json
from recbole_gmc.places import new_run_dir
from recbole_gmc.settings import DataSettings, TrainSettings, read
from recbole_gmc.train.budget import Budget

# Settings that steer the runs of single domains and mean nothing to RecBole.
OURS = frozenset(item.metadata["key"] for item in fields(DataSettings)) | {
    "embedded_data",
    "max_prefixes",
    "budget_minutes",
    "of_domain",
    "model",
    "dataset",
    "cache_dir",
    keys.FINISHED,
}
SEED = 2020  # RecBole's
LEAST_BUDGET = 1e-3  # minutes: the setting must be above 0, and the run ends at once


@dataclass(frozen=True)
class Plan:
    """A run before it starts.

    Attributes:
        model, dataset: their names.
        files: configuration files that RecBole merges itself; empty where they are merged already.
        settings: what the user gave beside the files; for runs of single domains all settings, merged and checked, and
            under ``of_domain`` what is not the same in all of them.
        whole: one run of RecBole's over all domains; else one a domain.
    """

    model: str
    dataset: str
    files: tuple[str | Path, ...]
    settings: Mapping[str, Any]
    whole: bool

    @property
    def ours(self) -> bool:
        """Whether the model is a registered one."""
        return registry.entry(self.model) is not None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of a run that takes them one at a time."""
        return _domains(self.settings, self.dataset)

    def having(self, **settings: Any) -> Plan:
        """The same run with other settings."""
        return replace(self, settings={**self.settings, **settings})


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
            return run_domains(found)
        folder = run_folder(merged(found), found.model, found.dataset)
        with logs.tables_later():
            settings = {**found.settings, "run_dir": str(folder)}
            result = launch.run_recbole(found.model, found.dataset, list(found.files), settings)
        _show(folder)
        return result


def plan(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    **processes: Any,
) -> Plan:
    """What ``run`` will do; raises as it does, before any work."""
    files, given = tuple(config_file_list), dict(config_dict or {})
    in_files, parsed = lookup.read_files(files), values.parse_all(given)
    named = {**in_files, **parsed}
    model, dataset = model or named.get("model"), dataset or named.get("dataset")
    for name, value in (("model", model), ("dataset", dataset)):
        if not isinstance(value, str):
            raise SettingError(f"no {name} is named", where=name, mend=f"Give --{name}=<name>")
    hooks.refuse_unknown_model(model)
    settings = {**sections.for_model(in_files, model), **parsed}
    entry = registry.entry(model)
    many = [name for name, value in processes.items() if (name, value) != ("nproc", 1)]
    if many := many + [name for name in ("local_rank", "offset") if name in settings]:
        raise SettingError("a run uses one process", where=many[0], mend="Leave the key out")
    layer = lookup.dataset_settings(dataset, settings) if entry is None or not entry.union else {}
    if entry is not None and (entry.union or len(_domains({**layer, **settings}, dataset)) == 1):
        return Plan(model, dataset, files, given, whole=True)
    layer = sections.for_model(layer, model)
    keys.refuse_unknown(layer)
    if layer.get("embedded_data"):
        settings["data_path"] = layer["data_path"]
    if entry is not None:
        return Plan(model, dataset, (), {**layer, **settings}, whole=False)
    return Plan(model, dataset, (), _protocol_settings(model, layer, settings), whole=False)


def _protocol_settings(model: str, layer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked settings of one of RecBole's own models: protocol, then data set, then what the user gave."""
    from recbole_gmc.evaluate import refusals  # imports RecBole's models

    base = {**base_protocol(), **protocol_of(model)}
    usual = {**recbole_keys.defaults(model), **base, **layer}
    settings = {**base, **layer, **given}
    columns = _columns(model, settings, {*layer, *given})
    for own in [columns.get(domain, {}) for domain in read(DataSettings, settings).domains or ("",)]:
        keys.check_single(model, {**settings, **own}, usual)
        refusals.refuse_other_kinds(model, {**usual, **settings, **own})
    if "loss_type" in usual and {**usual, **settings}["loss_type"] == "CE":
        settings.setdefault("train_neg_sample_args", None)  # as RecBole asks for
    return {**settings, **({"of_domain": columns} if columns else {})}


def _columns(model: str, settings: Mapping[str, Any], given: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the property file of each domain says for this model alone (its attributes), where nobody said otherwise."""
    domains, found = read(DataSettings, settings).domains, {}
    keys.check_domains(domains)
    for domain in domains or ():
        file = lookup.dataset_yaml(domain, settings.get("data_path") or "dataset")
        own = sections.of(values.read_yaml(file), model) if file is not None else {}
        if own := {key: value for key, value in own.items() if key not in given}:
            found[domain] = own
    return found


def refuse_bad(found: Plan, folder: Path) -> None:
    """Shows a run's settings to all checks that come before its work, for a command that has other work to do first.

    Args:
        folder: where the run would stand.

    Raises:
        SettingError: a setting that the run would refuse.
    """
    from recbole.config import Config

    with only_program_name():
        if found.whole:
            Config(found.model, found.dataset, list(found.files), dict(found.settings))
        elif found.ours:  # those of RecBole's own models were checked when they were merged
            for domain in found.domains:
                Config(found.model, domain, [], of_domain(found, domain, folder)[0])


def run_folder(settings: Mapping[str, Any], model: str, dataset: str) -> Path:
    """The folder that ``run_dir`` names, or a new one.

    Raises:
        SettingError: a run is there already, which a second one would overwrite.
    """
    folder = lookup.place(settings, "run_dir") or new_run_dir(model, dataset)
    if any((folder / name).exists() for name in ("result.json", "checkpoint", "domains")):
        mend = f"Go on with it by --resume={folder}, or name another folder"
        raise SettingError(f"{str(folder)!r} holds a run already", "run_dir", mend)
    return folder


def merged(found: Plan) -> dict[str, Any]:
    """The settings that the user gave, those in files included."""
    in_files = sections.for_model(lookup.read_files(found.files), found.model)
    return {**in_files, **values.parse_all(found.settings)}


def run_domains(found: Plan) -> dict[str, Any]:
    """Runs a model once a domain, all with the same settings and in one run folder: domain -> ``DomainRun``."""
    from recbole_gmc.evaluate import domain_run, finished, single  # imports every stage

    settings = found.settings
    folder = run_folder(settings, found.model, found.dataset)
    refuse_bad_files(found)
    done = finished.folders(settings)
    budget, runs = Budget(read(TrainSettings, settings).budget_minutes), {}
    for left, domain in zip(range(len(found.domains), 0, -1), found.domains, strict=True):
        share = budget.share(left)
        own, shortened = of_domain(found, domain, folder)
        if domain in done and found.ours:
            runs[domain] = finished.of_ours(done[domain], domain)
        elif domain in done:
            runs[domain] = finished.of_recboles(done[domain], found.model, domain, own)
        elif found.ours:
            runs[domain] = _run_ours(found, domain, folder, share)
        else:
            runs[domain] = single.run_domain(found.model, domain, [], own, shortened, share)
    if found.ours:
        logs.write_to(folder).begin()
    entry = registry.entry(found.model)
    usual = values.read_yaml(entry.properties) if entry is not None and entry.properties else {}
    domain_run.write(folder, found.model, found.dataset, runs, {"seed": SEED, **usual, **settings})
    return runs


def of_domain(found: Plan, domain: str, folder: Path) -> tuple[dict[str, Any], int | None]:
    """The settings of one domain's run inside ``folder``, and ``max_prefixes``, which RecBole does not know."""
    if found.ours:
        whole = ("model", "dataset", "embedded_data", keys.FINISHED)
        own = {key: value for key, value in found.settings.items() if key not in whole}
        own |= {"domains": [domain], "run_dir": str(folder / "domains" / domain)}
        if isinstance(own.get("text_fields"), dict):
            own["text_fields"] = {name: fields for name, fields in own["text_fields"].items() if name == domain} or None
        return own, None
    own = {key: value for key, value in found.settings.items() if key not in OURS}
    own |= found.settings.get("of_domain", {}).get(domain, {})
    own |= {"run_dir": str(folder), "checkpoint_dir": str(folder / "checkpoint" / domain)}
    return own, read(TrainSettings, found.settings).max_prefixes


def _domains(settings: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    domains = read(DataSettings, settings).domains
    domains = (dataset,) if domains is None else domains
    keys.check_domains(domains)
    return domains


def _run_ours(found: Plan, domain: str, folder: Path, budget: Budget) -> Any:
    """One domain as a whole run of its own, in a folder inside the run's."""
    from recbole_gmc.evaluate import domain_run

    own, _ = of_domain(found, domain, folder)
    if budget.minutes is not None:
        own["budget_minutes"] = max(budget.minutes, LEAST_BUDGET)
    with logs.tables_later():
        launch.run_recbole(found.model, domain, None, own)
    return domain_run.read_run(Path(own["run_dir"]), domain)


def _show(folder: Path) -> None:
    """The run's table, after all that RecBole logs at the end."""
    from recbole_gmc.evaluate import results

    report = read_json(folder / "result.json")
    logs.TABLES.info(
        f"{report['model']} on {report['dataset']}, test:\n{results.draw(report)}\nResults are in {folder}"
    )


def refuse_bad_files(found: Plan) -> None:
    """Reads every domain's interactions as GMC does, so that a bad file is refused by line, whatever the model.

    A domain whose users are all too short is refused, too, before the domains in front of it are trained.
    """
    usual = {**recbole_keys.defaults(None), **found.settings}
    root = Path(found.settings.get("data_path") or "dataset")
    for domain in found.domains:
        if domain == "ml-100k" and not (root / domain).is_dir():
            continue  # RecBole carries that one itself
        file = read_atomic(root / domain / f"{domain}.inter", usual["field_separator"])
        for name, kind in file.types.items():
            if kind == "float":
                file.numbers(name)
        refuse_untested(Counter(file.columns.get(usual["USER_ID_FIELD"], ())).values(), domain)


def resume(folder: str) -> Any:
    """Goes on with an interrupted run."""
    from recbole_gmc.train.checkpoint import Checkpoint
    from recbole_gmc.train.resume import resume as go_on

    with only_program_name(), logs.tables_later():
        result = go_on(Path(folder))
    _show(Path(Checkpoint(folder).here()["run_dir"]))
    return result


def base_protocol() -> dict[str, Any]:
    """The settings under which every RecBole model is run beside ours."""
    return lookup.read_files("properties/benchmark/protocol.yaml")


def protocol_of(model: str) -> dict[str, Any]:
    """The settings of ``properties/benchmark/<model>.yaml``; none where there is no such file."""
    file = lookup.packaged(f"properties/benchmark/{model}.yaml")
    return {} if file is None else values.read_yaml(file)


@contextmanager
def only_program_name() -> Iterator[None]:
    """Hides the command line from RecBole's Config: its flags are in ``config_dict`` already, parsed and checked."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        sys.argv = arguments
