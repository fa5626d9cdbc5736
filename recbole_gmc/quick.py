"""One run from the command line: a model of ours over all its domains, RecBole's own once a domain."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from recbole_gmc import hooks, keys, launch, logs, lookup, recbole_keys, registry, values
from recbole_gmc.data.atomic import read_atomic
from recbole_gmc.errors import SettingError
from recbole_gmc.files import read_json
from recbole_gmc.places import new_run_dir
from recbole_gmc.settings import DataSettings, TrainSettings, read

# Settings that steer the runs of single domains and mean nothing to RecBole.
OURS = frozenset(item.metadata["key"] for item in fields(DataSettings)) | {
    "embedded_data",
    "max_prefixes",
    "model",
    "dataset",
    "cache_dir",
}
SEED = 2020  # RecBole's


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
    files, given = list(config_file_list), dict(config_dict or {})
    merged = {**lookup.read_files(files), **values.parse_all(given)}
    model, dataset = model or merged.get("model"), dataset or merged.get("dataset")
    for name, value in (("model", model), ("dataset", dataset)):
        if not isinstance(value, str):
            raise SettingError(f"no {name} is named", where=name, mend=f"Give --{name}=<name>")
    hooks.refuse_unknown_model(model)
    with only_program_name():
        entry = registry.entry(model)
        many = [name for name, value in processes.items() if (name, value) != ("nproc", 1)]
        if many := many + [name for name in ("local_rank", "offset") if name in merged]:
            raise SettingError("a run uses one process", where=many[0], mend="Leave the key out")
        layer = lookup.dataset_settings(dataset, merged) if entry is None or not entry.union else {}
        if entry is not None and (entry.union or len(_domains({**layer, **merged}, dataset)) == 1):
            folder = lookup.place(merged, "run_dir") or new_run_dir(model, dataset)
            with logs.tables_later():
                result = launch.run(model, dataset, files, {**given, "run_dir": str(folder)})
            _show(folder)
            return result
        keys.refuse_unknown(layer)
        if layer.get("embedded_data"):
            merged["data_path"] = layer["data_path"]
        if entry is not None:
            return run_domains(model, dataset, {**layer, **merged})
        from recbole_gmc.evaluate import single  # imports every stage

        base = {**base_protocol(), **protocol_of(model)}
        usual = {**recbole_keys.defaults(model), **base, **layer}
        settings = {**base, **layer, **merged}
        keys.check_single(model, settings, usual)
        single.refuse_other_kinds(model, {**usual, **settings})
        if "loss_type" in usual and {**usual, **settings}["loss_type"] == "CE":
            settings.setdefault("train_neg_sample_args", None)  # as RecBole asks for
        return run_domains(model, dataset, settings)


def run_domains(model: str, dataset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a model once a domain, all with the same settings and in one run folder: domain -> ``DomainRun``."""
    from recbole_gmc.evaluate import single

    folder = lookup.place(settings, "run_dir") or new_run_dir(model, dataset)
    domains = _domains(settings, dataset)
    _refuse_bad_files(domains, Path(settings.get("data_path") or "dataset"))
    if registry.entry(model) is not None:
        runs = {domain: _run_ours(model, domain, folder, settings) for domain in domains}
        logs.write_to(folder).begin()
    else:
        theirs = {key: value for key, value in settings.items() if key not in OURS}
        theirs["run_dir"] = str(folder)
        shortened = read(TrainSettings, settings).max_prefixes
        runs = {}
        for domain in domains:
            own = {**theirs, "checkpoint_dir": str(folder / "checkpoint" / domain)}
            runs[domain] = single.run_domain(model, domain, [], own, shortened)
    single.write(folder, model, dataset, runs, {"seed": SEED, **settings})
    return runs


def _domains(settings: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    domains = read(DataSettings, settings).domains
    domains = (dataset,) if domains is None else domains
    keys.check_domains(domains)
    return domains


def _run_ours(model: str, domain: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    """One domain as a whole run of its own, in a folder inside the run's."""
    from recbole_gmc.evaluate import single

    own = {key: value for key, value in settings.items() if key not in ("model", "dataset", "embedded_data")}
    own |= {"domains": [domain], "run_dir": str(folder / "domains" / domain)}
    if isinstance(own.get("text_fields"), dict):
        own["text_fields"] = {name: fields for name, fields in own["text_fields"].items() if name == domain} or None
    with logs.tables_later():
        launch.run_recbole(model, domain, None, own)
    return single.read_run(Path(own["run_dir"]), domain)


def _show(folder: Path) -> None:
    """The run's table, after all that RecBole logs at the end."""
    from recbole_gmc.evaluate import results

    report = read_json(folder / "result.json")
    logs.TABLES.info(
        f"{report['model']} on {report['dataset']}, test:\n{results.draw(report)}\nResults are in {folder}"
    )


def _refuse_bad_files(domains: Sequence[str], root: Path) -> None:
    """Reads every domain's interactions as GMC does, so that a bad file is refused by line, whatever the model."""
    for domain in domains:
        if domain == "ml-100k" and not (root / domain).is_dir():
            continue  # RecBole carries that one itself
        file = read_atomic(root / domain / f"{domain}.inter")
        for name, kind in file.types.items():
            if kind == "float":
                file.numbers(name)


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
