"""RecBole's atomic files, read as they are written and checked before RecBole sees them.

One row a line, fields split at the separator and nothing else: no CSV quoting, no words that mean "missing". A byte
order mark and CRLF line ends are accepted; both would break RecBole's own reading of the header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from recbole_gmc.errors import CheckpointError, DataError
from recbole_gmc.files import hash_file

TYPES = ("token", "float", "token_seq", "float_seq")
PADDING = "[PAD]"  # RecBole's own token of id 0
HEADER = "Name every column as name:type, for instance user_id:token"


@dataclass(frozen=True)
class AtomicFile:
    """The raw fields of an atomic file: column name -> type, and column name -> the text of each row."""

    path: Path
    types: Mapping[str, str]
    columns: Mapping[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, row: int) -> str:
        """``file:line`` of a row."""
        return f"{self.path}:{row + 2}"

    def column(self, field: str, kind: str) -> list[str]:
        """The raw text of a column of type ``kind``.

        Raises:
            DataError: no such column (with the nearest one), or one of another type.
        """
        if field not in self.types:
            near = get_close_matches(field, self.types, 1)
            hint = f"Is {near[0]!r} meant? " if near else ""
            raise DataError(
                f"there is no column {field!r}", f"{self.path}:1", f"{hint}It holds {', '.join(self.types)}"
            )
        if self.types[field] != kind:
            what = f"column {field!r} has type {self.types[field]}, not {kind}"
            raise DataError(what, f"{self.path}:1", f"Write {field}:{kind}")
        return self.columns[field]

    def tokens(self, field: str) -> list[str]:
        """A token column without empty values.

        Raises:
            DataError: an empty token, or RecBole's padding token, with its line.
        """
        values = self.column(field, "token")
        for bad, name in (("", "empty"), (PADDING, f"{PADDING}, which RecBole keeps for padding")):
            if bad in values:
                raise DataError(f"{field} is {name}", self.where(values.index(bad)), "Give it a name or drop the row")
        return values

    def numbers(self, field: str) -> np.ndarray:
        """A float column as float64 [rows].

        Raises:
            DataError: a value that is no finite number in single precision (RecBole's), with its line.
        """
        values = self.column(field, "float")
        try:
            numbers = np.fromiter(map(float, values), np.float64, len(values))
        except ValueError:
            numbers = np.array([_number(value) for value in values])
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(numbers.astype(np.float32))
        if "_" in "".join(values):  # Python reads 1_0 as 10
            bad |= np.array(["_" in value for value in values])
        if bad.any():
            row = int(bad.argmax())
            raise DataError(f"{field} {values[row]!r} is not a finite number", self.where(row), "Mend or drop the row")
        return numbers


def hash_domains(root: Path, domains: Iterable[str]) -> dict[str, str]:
    """``<domain>.inter`` and ``<domain>.item`` -> SHA-256 of the file, where there is one."""
    files = {f"{domain}.{kind}": root / domain / f"{domain}.{kind}" for domain in domains for kind in ("inter", "item")}
    return {name: hash_file(file) for name, file in files.items() if file.is_file()}


def refuse_changed(root: Path, domains: Iterable[str], before: Mapping[str, str]) -> None:
    """Raises CheckpointError if a file of the data is not the one that a stopped run began with.

    Args:
        before: what ``hash_domains`` gave then.
    """
    for name, digest in hash_domains(root, domains).items():
        if before.get(name) != digest:
            mend = "Put the file back, or start a new run"
            raise CheckpointError("the file has changed since the run began", name, mend)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def read_atomic(path: str | Path, separator: str = "\t") -> AtomicFile:
    """Reads and checks one atomic file.

    Raises:
        DataError: a missing, empty or header-only file, a header without types, a row with too few or too many fields,
            a NUL byte, a stray carriage return or invalid UTF-8, as ``file:line``.
    """
    path = Path(path)
    lines = _lines(path)
    types = _header(lines[0], path, separator)
    if len(lines) == 1:
        raise DataError("the file has a header and no rows", str(path), "Give it at least one row")
    _same_width(lines, path, separator, len(types))
    fields = separator.join(lines[1:]).split(separator)  # one split is several times faster than one a row
    return AtomicFile(path, types, {name: fields[i :: len(types)] for i, name in enumerate(types)})


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError("the file does not exist", str(path), _neighbours(path))
    data = path.read_bytes()
    if (at := data.find(b"\0")) >= 0:
        raise DataError("NUL byte", _line_at(path, data, at), "Is this a text file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = data[error.start :][:1].hex()
        raise DataError(f"byte 0x{bad} is not UTF-8", _line_at(path, data, error.start), "Save it as UTF-8") from None
    lines = text.split("\n")
    if "\r" in text:
        lines = [line.removesuffix("\r") for line in lines]
        stray = next((i for i, line in enumerate(lines) if "\r" in line), None)
        if stray is not None:
            what = "a carriage return inside a line"
            raise DataError(what, f"{path}:{stray + 1}", "End lines with a newline or CRLF")
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError("the file is empty", str(path), HEADER)
    return lines


def _line_at(path: Path, data: bytes, offset: int) -> str:
    return f"{path}:{data.count(10, 0, offset) + 1}"


def _header(line: str, path: Path, separator: str) -> dict[str, str]:
    types: dict[str, str] = {}
    for column in line.split(separator):
        name, colon, kind = column.partition(":")
        if not colon or not name or kind not in TYPES:
            what = f"column {column!r} of the header has no type" if not colon else f"header column {column!r} is wrong"
            raise DataError(what, f"{path}:1", f"{HEADER}; types are {', '.join(TYPES)}")
        if name in types:
            raise DataError(f"column {name!r} is there twice", f"{path}:1", "Rename one")
        types[name] = kind
    return types


def _same_width(lines: list[str], path: Path, separator: str, width: int) -> None:
    for number, line in enumerate(lines, 1):
        if line.count(separator) != width - 1 or not line:
            what = f"{line.count(separator) + 1} fields where the header has {width}" if line else "an empty line"
            raise DataError(what, f"{path}:{number}", f"Fields are separated by {separator!r} and never quoted")


def _neighbours(path: Path) -> str:
    folder = path.parent
    if folder.is_dir():
        return f"A domain is a folder with {folder.name}.inter and {folder.name}.item"
    around = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    near = get_close_matches(folder.name, around, 1)
    return (f"Is {near[0]!r} meant? " if near else "") + "Set data_path to the folder that holds the domain's folder"
