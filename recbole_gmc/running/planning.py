"""What a run will do: its model, its data and its settings, merged and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from recbole_gmc import hooks, keys, lookup, recbole_keys, registry, sections, values
from recbole_gmc.errors import SettingError
from recbole_gmc.flags import only_program_name
from recbole_gmc.settings import DataSettings, TrainSettings, read
from recbole_gmc.train.budget import Budget

# Settings that steer the runs of single domains and mean nothing to RecBole.
OURS = frozenset(item.metadata["key"] for item in fields(DataSettings)) | {
    "embedded_data",
    "max_prefixes",
    "budget_minutes",
    "cpu_threads",
    "of_domain",
    "model",
    "dataset",
    "cache_dir",
    keys.FINISHED,
}
SEED = 2020  # RecBole's
LEAST_BUDGET = 1e-3  # minutes: the setting must be above 0, and the run ends at once


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of a run that takes them one at a time.

    Attributes:
        settings: all that the run of this domain has.
        max_prefixes, threads: of one of RecBole's own models, which do not know these settings.
    """

    model: str
    domain: str
    settings: Mapping[str, Any]
    max_prefixes: int | None = None
    threads: int | None = None

    def having(self, **settings: Any) -> DomainPlan:
        """The same with other settings."""
        return replace(self, settings={**self.settings, **settings})

    def within(self, budget: Budget) -> DomainPlan:
        """The same with the time that a registered model has here; without a limit as it is."""
        return self if budget.minutes is None else self.having(budget_minutes=max(budget.minutes, LEAST_BUDGET))


@dataclass(frozen=True)
class Plan:
    """A run before it starts.

    Attributes:
        model, dataset: their names.
        files: configuration files that RecBole merges itself; empty where they are merged already.
        settings: what the user gave beside the files; for runs of single domains all settings, merged and checked, and
            under ``of_domain`` what is not the same in all of them.
        whole: one run of RecBole's over all domains; else one a domain.
        unread: settings of ours that were given and that one of RecBole's own models does not read.
    """

    model: str
    dataset: str
    files: tuple[str | Path, ...]
    settings: Mapping[str, Any]
    whole: bool
    unread: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether the model is a registered one."""
        return registry.entry(self.model) is not None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of a run that takes them one at a time."""
        return _domains(self.settings, self.dataset)

    @property
    def data_path(self) -> Path:
        """The folder of the domains of such a run."""
        return lookup.place(self.settings, "data_path") or Path("dataset")

    def having(self, **settings: Any) -> Plan:
        """The same run with other settings."""
        return replace(self, settings={**self.settings, **settings})

    def merged(self) -> dict[str, Any]:
        """The settings that the user gave, those in files included."""
        in_files = sections.for_model(lookup.read_files(self.files), self.model)
        return {**in_files, **values.parse_all(self.settings)}

    def decisive(self) -> dict[str, Any]:
        """The same and what lies below them: all that decides the result but the data and the packaged files."""
        if not self.whole:
            return dict(self.settings)
        merged = self.merged()
        return {**sections.for_model(lookup.dataset_settings(self.dataset, merged), self.model), **merged}

    def of_domain(self, domain: str, folder: Path) -> DomainPlan:
        """The run of one domain inside ``folder``, where the run takes them one at a time."""
        if self.ours:
            whole = ("model", "dataset", "embedded_data", keys.FINISHED)
            own = {key: value for key, value in self.settings.items() if key not in whole}
            own |= {"domains": [domain], "run_dir": str(folder / "domains" / domain)}
            if isinstance(own.get("text_fields"), dict):
                own["text_fields"] = {name: part for name, part in own["text_fields"].items() if name == domain} or None
            return DomainPlan(self.model, domain, own)
        own = {key: value for key, value in self.settings.items() if key not in OURS}
        own |= self.settings.get("of_domain", {}).get(domain, {})
        own = _with_fitting_negatives(self.model, own)
        place = lookup.place(self.settings, "checkpoint_dir")  # there in a folder named after the run, as ours are
        place = folder / "checkpoint" if place is None else place / folder.name
        own |= {"run_dir": str(folder), "checkpoint_dir": str(place / domain)}
        train = read(TrainSettings, self.settings)
        return DomainPlan(self.model, domain, own, train.max_prefixes, train.cpu_threads)

    def refuse_bad(self, folder: Path) -> None:
        """Shows the settings to all checks that come before a run's work, for who has other work to do first.

        Args:
            folder: where the run would stand.

        Raises:
            SettingError: a setting that the run would refuse.
        """
        from recbole.config import Config

        from recbole_gmc.running.refusals import refusing

        with only_program_name(), refusing(f"settings of {self.model}"):
            if self.whole:
                Config(self.model, self.dataset, list(self.files), dict(self.settings))
            for domain in () if self.whole else self.domains:
                Config(self.model, domain, [], dict(self.of_domain(domain, folder).settings))


@only_program_name()
def plan(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    **processes: Any,
) -> Plan:
    """What a run of a model by name will do; ``model`` and ``dataset`` may also be named in the files.

    Raises:
        SettingError: no model or data set, a model that does not exist, or a setting that cannot be.
    """
    files, given = tuple(config_file_list), dict(config_dict or {})
    in_files, parsed = lookup.read_files(files), values.parse_all(given)
    named = {**in_files, **parsed}
    model, dataset = model or named.get("model"), dataset or named.get("dataset")
    for name, value in (("model", model), ("dataset", dataset)):
        if not isinstance(value, str):
            raise SettingError(f"no {name} is named", where=name, mend=f"Give --{name}=<name>")
    hooks.refuse_unknown_model(model)
    settings = {**sections.for_model(in_files, model), **parsed}
    keys.refuse_unknown(settings)
    keys.refuse_absent_gpu(settings)
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
    merged = _protocol_settings(model, layer, settings)
    unread = keys.unread(model, merged)
    merged = {name: value for name, value in merged.items() if name not in unread}
    return Plan(model, dataset, (), merged, whole=False, unread=unread)


def base_protocol() -> dict[str, Any]:
    """The settings under which every RecBole model is run beside ours."""
    return lookup.read_files("properties/benchmark/protocol.yaml")


def protocol_of(model: str) -> dict[str, Any]:
    """The settings of ``properties/benchmark/<model>.yaml``; none where there is no such file."""
    file = lookup.packaged(f"properties/benchmark/{model}.yaml")
    return {} if file is None else values.read_yaml(file)


def _protocol_settings(model: str, layer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked settings of one of RecBole's own models: protocol, then data set, then what the user gave."""
    from recbole_gmc.running import refusals  # imports RecBole's models

    base = {**base_protocol(), **protocol_of(model)}
    usual = {**recbole_keys.defaults(model), **base, **layer}
    settings = {**base, **layer, **given}
    domains = read(DataSettings, settings).domains or ()
    columns = {}
    for domain, found in columns_of(model, domains, settings.get("data_path") or "dataset").items():
        if own := {key: value for key, value in found.items() if key not in {*layer, *given}}:
            columns[domain] = own
    for own in [columns.get(domain, {}) for domain in domains or ("",)]:
        keys.check_single(model, {**settings, **own}, usual)
        refusals.refuse_other_kinds(model, {**usual, **settings, **own})
    settings["eval_args"] = keys.protocol(settings.get("eval_args"))
    if "load_col" not in {**layer, **given}:
        named = {**usual, **settings}
        columns_read = [named[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
        settings["load_col"] = {"inter": list(dict.fromkeys([*columns_read, *(named.get("val_interval") or ())]))}
    return {**settings, **({"of_domain": columns} if columns else {})}


def _with_fitting_negatives(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """RecBole refuses negatives with cross-entropy, which needs none, and fails without them in any other loss."""
    name, settings = "train_neg_sample_args", dict(settings)
    loss = {**recbole_keys.defaults(model), **settings}.get("loss_type")
    if loss == "CE":
        settings.setdefault(name, None)
    elif loss is not None and settings.get(name, ...) is None:
        del settings[name]
    return settings


def columns_of(model: str, domains: Sequence[str], data_path: str | Path) -> dict[str, dict[str, Any]]:
    """What the property file of each domain says for this model alone (its attributes)."""
    files = {domain: lookup.dataset_yaml(domain, data_path) for domain in domains}
    found = {name: sections.of(values.read_yaml(file), model) for name, file in files.items() if file is not None}
    return {domain: own for domain, own in found.items() if own}


def _domains(settings: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    return read(DataSettings, settings).domains or (dataset,)
