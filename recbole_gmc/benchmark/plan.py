"""What a benchmark consists of: its cells, each one model with one seed on all the domains, and the command of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_gmc import hooks, keys, lookup, registry, sections, values
from recbole_gmc.benchmark import variants
from recbole_gmc.benchmark.variants import Variant
from recbole_gmc.data.named import hash_named
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.evaluate.raw import RawData
from recbole_gmc.files import hash_of, refuse_unwritable, safe_name
from recbole_gmc.flags import flags_of
from recbole_gmc.recbole_keys import seed_of
from recbole_gmc.running import planning
from recbole_gmc.settings import DataSettings, read

MOST_SEEDS = 100  # a greater count is a seed, written in its place
OWN = ("models", *(family.flag for family in variants.FAMILIES), "domain_sets", "seeds", "output")
OURS = ("GMC", "GMCPlus")  # no baselines of each other
DRY = "--dry-run"
PLACED = ("model", "run_dir", "checkpoint_dir", "resume", keys.FINISHED)  # the benchmark's own business
# What decides no result: places, whose files are hashed, and what is shown while a cell runs.
PLACES = ("data_path", "text_embedding_path", "cache_dir")
SHOWN = ("show_progress", "log_wandb", "wandb_project", "state")
CONTENTS = ("semantic_ids_path", "word_drop_embedding_path")  # whose files are hashed, too
OF_DOMAINS = ("dataset", "domains", "of_domain")
UNCHECKED = ("benchmark_filename", "user_file", "item_file")  # and what ``RawData`` refuses


@dataclass(frozen=True)
class Cell:
    """One model with one seed.

    Attributes:
        settings: all that decides its result but the data and the code.
        variant: the title of a variant of the model, or nothing.
        alone: whether what it makes of a domain does not hang on which others there are.
    """

    model: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    settings: Mapping[str, Any]
    variant: str = ""
    alone: bool = False

    @property
    def signature(self) -> str:
        return hash_of(dict(self.settings))

    @property
    def recipe(self) -> str:
        """As ``signature``, whatever the domains; nothing where these matter."""
        rest = {name: value for name, value in self.settings.items() if name not in OF_DOMAINS}
        return hash_of(rest) if self.alone else ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def row(self) -> str:
        """What it is called in tables, with all its seeds."""
        return f"{self.model} {self.variant}".strip()


@dataclass(frozen=True)
class Benchmark:
    """All cells, the data that they share, and where everything goes.

    Attributes:
        embeddings: domain -> file of the ready text embeddings; empty where there are none.
    """

    models: tuple[str, ...]
    dataset: str
    domains: tuple[str, ...]
    data_path: Path
    raw: RawData
    embeddings: Mapping[str, Path]
    topk: tuple[int, ...]
    output: Path
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """The models, then their variants."""
        return tuple(dict.fromkeys((*self.models, *(cell.row for cell in self.cells))))

    @property
    def reference(self) -> str:
        """The model whose gain is shown."""
        return next((name for name in OURS if name in self.models), self.models[0])


def parse(arguments: Sequence[str]) -> tuple[Benchmark, bool]:
    """The words after ``benchmark``: the benchmark, and whether it is only to be listed.

    Raises:
        SettingError: an unknown flag, model or data set, or a setting that the benchmark decides itself.
        DataError: a domain that is not there.
    """
    own, flags = flags_apart(arguments)
    return benchmark(own, flags), DRY in arguments


def flags_apart(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The benchmark's own flags, and the settings of all cells; ``--domain_sets`` may stand without a value.

    Raises:
        SettingError: an unknown flag, one given twice or without a value, or a setting that the benchmark decides.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    for word in arguments:
        key, equals, value = word[2:].partition("=")
        if word == DRY:
            continue
        if key in OWN and word.startswith("--"):
            if not value and (equals or key != "domain_sets"):
                raise SettingError("has no value", f"--{key}", f"Write --{key}=value")
            if key in own:
                raise SettingError("given twice", f"--{key}", "Give it once")
            own[key] = values.at_home(value)
        else:
            rest.append(word)
    flags = flags_of(rest, OWN)
    for key in PLACED:
        if key in flags:
            raise SettingError("the benchmark decides this itself", f"--{key}", "Leave it out; see benchmark --help")
    return own, flags


def benchmark(own: Mapping[str, str], flags: Mapping[str, str]) -> Benchmark:
    """The benchmark that flags ask for.

    Raises:
        SettingError, DataError: as ``parse``.
    """
    flags = dict(flags)
    files = flags.pop("config_files", "").split()
    in_files, given = lookup.read_files(files), values.parse_all(flags)
    models, dataset = _named(own.get("models", ""), flags.pop("dataset", None) or in_files.get("dataset"))
    common = {**sections.for_model(in_files, ""), **given}
    of_dataset = lookup.dataset_settings(dataset, common)
    layer = sections.for_model(of_dataset, "")
    data = {**layer, **common, **({"data_path": layer["data_path"]} if layer.get("embedded_data") else {})}
    domains = read(DataSettings, data).domains or (dataset,)
    data_path = Path(data.get("data_path") or "dataset")
    refuse_missing(data_path, domains)
    output = Path(own.get("output") or Path("runs") / f"benchmark-{dataset}")
    refuse_unwritable(output, "--output")
    shared = [f"--dataset={dataset}", *([f"--config_files={' '.join(files)}"] if files else [])]
    varied: list[Variant] = []
    for family in variants.FAMILIES:
        named = family.chosen(own.get(family.flag, ""), models)
        family.refuse_idle(named, {**layer, **sections.for_model(in_files, family.model), **given})
        varied += named
    cells: list[Cell] = []
    for model, variant in [*((name, None) for name in models), *((one.model, one) for one in varied)]:
        changed = dict(variant.settings) if variant else {}
        mine = {**sections.for_model(in_files, model), **given, **changed}
        if layer.get("embedded_data"):  # where that lies is not the user's choice
            mine.pop("data_path", None)
        refuse_unlike(model, mine, data)
        settings = {**sections.for_model(of_dataset, model), **mine, "dataset": dataset, "domains": list(domains)}
        settings = {name: value for name, value in settings.items() if name not in (*PLACES, *SHOWN)}
        settings |= {"model": model, "of_domain": planning.columns_of(model, domains, data_path)}
        settings |= hash_named(settings, CONTENTS)
        alone = _goes_alone(model, {**layer, **mine})
        flagged = [f"--{key}={value}" for key, value in flags.items() if key not in ("seed", *changed)]
        flagged += [f"--{key}={value}" for key, value in changed.items()]
        for seed in _seeds(own.get("seeds", "1"), seed_of(common)):
            folder = output / f"{model}-{f'{variant.name}-' if variant else ''}{seed}"
            command = (f"--model={model}", *shared, *flagged, f"--seed={seed}", f"--run_dir={folder}")
            title = variant.title if variant else ""
            cells.append(Cell(model, seed, folder, command, {**settings, "seed": seed}, title, alone))
    return Benchmark(
        models=models,
        dataset=dataset,
        domains=tuple(domains),
        data_path=data_path,
        raw=RawData.of(data),
        embeddings=_embeddings(data, domains),
        topk=_lengths(data.get("topk") or (5, 10)),
        output=output,
        cells=tuple(sorted(cells, key=lambda cell: cell.seed)),  # every model once, before any a second time
    )


def _named(models: str, dataset: str | None) -> tuple[tuple[str, ...], str]:
    """The models and the data set, if both are named and can be."""
    found = tuple(name.strip() for name in models.split(",") if name.strip())
    for name, value in (("models", found), ("dataset", dataset)):
        if not value:
            raise SettingError(f"no {name} named", f"--{name}", f"Write --{name}=...; see benchmark --help")
    for model in found:
        hooks.refuse_unknown_model(model)
    if len(set(found)) != len(found):
        raise SettingError("names a model twice", "--models", "Name each one once")
    return found, safe_name(dataset, "dataset")


def _goes_alone(model: str, settings: Mapping[str, Any]) -> bool:
    """Whether the model is run once a domain, and what it makes of one does not hang on how many there are."""
    entry = registry.entry(model)
    return (entry is None or not entry.union) and settings.get("budget_minutes") is None


def _lengths(given: Any) -> tuple[int, ...]:
    """The setting ``topk``, which may be one number."""
    found = given if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in found):
        raise SettingError(f"{given!r} are no lengths of lists", "topk", "Write topk: [5, 10]")
    return tuple(sorted(found))


def _embeddings(settings: Mapping[str, Any], domains: Sequence[str]) -> dict[str, Path]:
    """Raises ``DataError`` for a file of ready embeddings that is not there."""
    given = settings.get("text_embedding_path")
    found = {}
    if isinstance(given, Mapping) and (missing := [domain for domain in domains if domain not in given]):
        mend = "Give one .npy file a domain, as {<domain>: <file>.npy}"
        raise DataError(f"no embedding file for {', '.join(missing)}", "text_embedding_path", mend)
    for domain, file in given.items() if isinstance(given, Mapping) else ():  # what else it may be, each run says
        if domain in domains:
            found[domain] = Path(str(file)).expanduser()
            if not found[domain].is_file():
                raise DataError(f"no file {str(file)!r} for {domain}", "text_embedding_path", "Name the .npy file")
    return found


SAME = (
    *("domains", "data_path", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "seed"),
    *("user_inter_num_interval", "item_inter_num_interval", "MAX_ITEM_LIST_LENGTH", "max_prefixes", "missing_text"),
    *("text_fields", "text_encoder", "text_embedding_path", "topk", "valid_metric", "repeatable"),
)


def refuse_unlike(model: str, settings: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """Raises ``SettingError`` where a model's section would give it other data or another protocol than the rest."""
    for key in SAME:
        if key in settings and settings[key] != common.get(key):
            what = f"{settings[key]!r} for {model} alone"
            raise SettingError(what, key, "Set it for all models, outside their sections")
    RawData.of({**common, **settings})
    for key in UNCHECKED:
        if settings.get(key) or common.get(key):
            what = "the benchmark checks every model against the raw files, which this would change"
            raise SettingError(what, key, "Filter the files beforehand")


def refuse_missing(root: Path, domains: Sequence[str], where: str = "domains") -> None:
    """Raises ``DataError`` for a domain without a file of interactions, with the nearest one that has one."""
    for domain in domains:
        if not (root / domain / f"{domain}.inter").is_file():
            there = sorted(file.stem for file in root.glob("*/*.inter") if file.stem == file.parent.name)
            what = f"no domain {domain!r} in {root}{keys.nearest(domain, there)}"
            raise DataError(what, where, f"There must be a file {root / domain / domain}.inter; see data_path")


def _seeds(text: str, first: int) -> list[int]:
    mend = "Write --seeds=3 for three of them from `seed` on, or --seeds=7,9"
    if not all(word.isdecimal() for word in text.split(",")):
        raise SettingError(f"{text!r} are no seeds", "--seeds", mend)
    seeds = [int(word) for word in text.split(",")]
    if len(seeds) == 1:
        if seeds[0] > MOST_SEEDS:
            what = f"{text} is a count, of more than {MOST_SEEDS} seeds"
            raise SettingError(what, "--seeds", f"For the seed {text} write --seed={text}")
        seeds = [first + i for i in range(seeds[0])]
    if not seeds or len(set(seeds)) != len(seeds):
        raise SettingError(f"{text!r} names no seed, or one twice", "--seeds", mend)
    return seeds
