"""What run folders hold, read from their files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from recbole_gmc.data.text import DomainText, read_domain_text
from recbole_gmc.errors import CheckpointError, DataError
from recbole_gmc.evaluate.raw import RawData, trained_part
from recbole_gmc.evaluate.token_lists import TokenLists
from recbole_gmc.files import read_json

RESULT, LISTS = "result.json", "topk.tsv"
TITLE = "title"  # the column of a .item
MAPPINGS = "domains average settings tokenizer hashes parameters seconds epochs versions certified".split()


@dataclass(frozen=True)
class Run:
    """One run folder: its result.json and its lists."""

    folder: Path
    result: Mapping[str, Any]
    name: str

    @cached_property
    def lists(self) -> TokenLists:
        return TokenLists.read(self.folder / LISTS)

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.result.get("settings", {})

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.result["domains"])


@dataclass(frozen=True)
class DomainData:
    """The raw files of one domain.

    Attributes:
        sequences: user token -> item tokens, oldest first.
        titles: item token -> its title; empty where there is no ``.item``.
    """

    sequences: Mapping[str, tuple[str, ...]]
    titles: Mapping[str, str] = field(default_factory=dict)

    def title(self, item: str) -> str:
        """The item's title, or its token where it has none."""
        return self.titles.get(item) or item

    @cached_property
    def trained(self) -> dict[str, int]:
        """Item -> times that it stands in training rows."""
        return Counter(item for sequence in self.sequences.values() for item in trained_part(sequence))


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in some folders: a run folder is one, any other folder stands for the runs right inside or below it.

    Raises:
        CheckpointError: a folder that is missing or holds no run.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if (folder / RESULT).is_file():
            found.append(folder)
            continue
        inside = sorted(file.parent for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/{RESULT}"))
        inside = [run for run in inside if not any(parent in inside for parent in run.parents)]
        if not inside:
            what = "holds no result.json" if folder.is_dir() else "is no folder"
            raise CheckpointError(what, str(folder), "Name a run folder, or a folder of runs")
        found += inside
    found = list(dict.fromkeys(found))
    results = [read_result(folder) for folder in found]
    names = _names(found, results)
    return [Run(folder, result, name) for folder, result, name in zip(found, results, names, strict=True)]


def failures(folders: Sequence[str | Path]) -> list[str]:
    """The cells of benchmark folders that failed, each with its error."""
    found = []
    for folder in map(Path, folders):
        if (folder / RESULT).is_file():
            continue
        for file in sorted(note for depth in ("*", "*/*") for note in folder.glob(f"{depth}.json")):
            try:
                note = read_json(file)
            except (ValueError, OSError):
                continue
            if isinstance(note, dict) and note.get("status") == "failed":
                found.append(f"{file.relative_to(folder).with_suffix('')}: {note.get('error')}")
    return found


def read_result(folder: Path) -> dict[str, Any]:
    """Raises CheckpointError for a file that is not a result of ours."""
    try:
        result = read_json(folder / RESULT)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot be read ({error})", str(folder / RESULT), "Run it again") from error
    if not isinstance(result, dict) or not all(result.get(name) for name in ("model", "domains", "average")):
        raise CheckpointError("is no result of a run", str(folder / RESULT), "Name a run folder")
    forms = {**dict.fromkeys(MAPPINGS, dict), "curve": list}
    wrong = [name for name, form in forms.items() if not isinstance(result.get(name) or form(), form)]
    if wrong or not all(isinstance(part, dict) for part in result["domains"].values()):
        what = f"{(*wrong, 'domains')[0]} has another form than a run gives it"
        raise CheckpointError(what, str(folder / RESULT), "Run it again")
    return result


def _names(folders: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The model's name, with seed, then folder, where that alone does not tell runs apart."""

    def inside(result: Mapping[str, Any], folder: Path) -> str:
        model = str(result["model"])
        return folder.name if folder.name.startswith(model) else f"{model} {folder.name}"

    for parts in (("model",), ("model", "seed")):
        names = [" ".join(str(result.get(part)) for part in parts) for result in results]
        if len(set(names)) == len(names):
            return names
    pairs = list(zip(folders, results, strict=True))
    for names in (
        [inside(result, folder) for folder, result in pairs],
        [f"{inside(result, folder)} in {folder.parent.name}" for folder, result in pairs],  # of a set of domains
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{result['model']} {folder}" for folder, result in zip(folders, results, strict=True)]


def read_domain(root: Path, domain: str, settings: Mapping[str, Any]) -> DomainData:
    """The raw files of a domain.

    Args:
        settings: of a run, which say what of the files counted.

    Raises:
        DataError: they are not to be had any more, or are not as the run read them.
        SettingError: the run left out some of their interactions in a way that cannot be done again here.
    """
    raw = RawData.of(settings)
    try:
        sequences = raw.sequences(root, domain)
    except OSError as error:
        raise DataError("its files are not there any more", domain, "Name their folder with --data_path") from error
    except (ValueError, IndexError) as error:
        raise DataError(f"its file is not the one of the run ({error})", domain, "Name another --data_path") from error
    try:
        file = root / domain / f"{domain}.item"
        titles = _titles(read_domain_text(file, domain, None, item_field=raw.columns[1], separator=raw.separator))
    except DataError:
        titles = {}
    return DomainData({user: tuple(sequence) for user, sequence in sequences.items()}, titles)


def _titles(table: DomainText) -> dict[str, str]:
    """The column of titles, or else the first one with text; of an item that has none there, all its text."""
    column = table.fields.index(TITLE) if TITLE in table.fields else 0
    return {token: (*parts[column : column + 1], "")[0] or table.texts[token] for token, parts in table.values.items()}
