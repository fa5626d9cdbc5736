"""What a run will do: its model, its data and its settings, merged and checked before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from recbole_gmc import hooks, keys, lookup, recbole_keys, registry, sections, values
from recbole_gmc.errors import SettingError
from recbole_gmc.flags import only_program_name
from recbole_gmc.settings import DataSettings, TrainSettings, read

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


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of a run that takes them one at a time.

    Attributes:
        settings: all that the run of this domain has.
        max_prefixes: of one of RecBole's own models, which do not know that setting.
    """

    model: str
    domain: str
    settings: Mapping[str, Any]
    max_prefixes: int | None = None

    def having(self, **settings: Any) -> DomainPlan:
        """The same with other settings."""
        return replace(self, settings={**self.settings, **settings})


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

    def merged(self) -> dict[str, Any]:
        """The settings that the user gave, those in files included."""
        in_files = sections.for_model(lookup.read_files(self.files), self.model)
        return {**in_files, **values.parse_all(self.settings)}

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
        own |= {"run_dir": str(folder), "checkpoint_dir": str(folder / "checkpoint" / domain)}
        return DomainPlan(self.model, domain, own, read(TrainSettings, self.settings).max_prefixes)

    def refuse_bad(self, folder: Path) -> None:
        """Shows the settings to all checks that come before a run's work, for who has other work to do first.

        Args:
            folder: where the run would stand.

        Raises:
            SettingError: a setting that the run would refuse.
        """
        from recbole.config import Config

        with only_program_name():
            if self.whole:
                Config(self.model, self.dataset, list(self.files), dict(self.settings))
            elif self.ours:  # those of RecBole's own models were checked when they were merged
                for domain in self.domains:
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
    columns = _columns(model, settings, {*layer, *given})
    for own in [columns.get(domain, {}) for domain in read(DataSettings, settings).domains or ("",)]:
        keys.check_single(model, {**settings, **own}, usual)
        refusals.refuse_other_kinds(model, {**usual, **settings, **own})
    if "loss_type" in usual and {**usual, **settings}["loss_type"] == "CE":
        settings.setdefault("train_neg_sample_args", None)  # as RecBole asks for
    return {**settings, **({"of_domain": columns} if columns else {})}


def _columns(model: str, settings: Mapping[str, Any], given: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the property file of each domain says for this model alone (its attributes), where nobody said otherwise."""
    found = {}
    for domain in read(DataSettings, settings).domains or ():
        file = lookup.dataset_yaml(domain, settings.get("data_path") or "dataset")
        own = sections.of(values.read_yaml(file), model) if file is not None else {}
        if own := {key: value for key, value in own.items() if key not in given}:
            found[domain] = own
    return found


def _domains(settings: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    return read(DataSettings, settings).domains or (dataset,)
