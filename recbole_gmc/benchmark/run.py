"""The cells of a benchmark, one after the other, each as a process of our own command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import IO, Any

import recbole_gmc
from recbole_gmc import keys, registry
from recbole_gmc.benchmark.fairness import MEND
from recbole_gmc.benchmark.plan import Benchmark, Cell
from recbole_gmc.data.atomic import hash_domains
from recbole_gmc.errors import CheckpointError, DataError, GMCError, SettingError
from recbole_gmc.files import hash_file, locked, read_json, write_json
from recbole_gmc.flags import flags_of
from recbole_gmc.running import planning, progress

DONE, FAILED, WAITING = "done", "failed", "waiting"
REFUSED = GMCError.exit_status


def note_of(cell: Cell) -> dict[str, Any]:
    """What is known of a cell from earlier: status, error, seconds, signature, hashes of the data and of the result."""
    file = cell.folder.with_suffix(".json")
    try:
        return dict(read_json(file)) if file.is_file() else {}
    except (ValueError, TypeError) as error:
        mend = "Remove it; the cell is then run again"
        raise CheckpointError(f"the note on a cell is damaged ({error})", str(file), mend) from error


def status(cell: Cell) -> str:
    """``done`` only with its results on disk; a failed cell is tried again by the next call."""
    known = note_of(cell).get("status", WAITING)
    return WAITING if known == DONE and not (cell.folder / "result.json").is_file() else known


def refuse_changed(cell: Cell) -> None:
    """Raises ``DataError`` where a cell's result.json is not the one that its run wrote, as far as the note knows."""
    file, wrote = cell.folder / "result.json", note_of(cell).get("result")
    if wrote is not None and hash_file(file) != wrote:
        raise DataError("changed after the cell had run", str(file), MEND)


def refuse_other(benchmark: Benchmark) -> None:
    """Raises ``SettingError`` if the output folder holds a cell with other settings or of other data."""
    data = data_hashes(benchmark)
    for cell in benchmark.cells:
        note = note_of(cell)
        if status(cell) != DONE:
            continue
        for what, same, there, here in (
            ("settings", note.get("signature") == cell.signature, note.get("settings"), cell.settings),
            ("data", note.get("data") == data, note.get("data"), data),
        ):
            if not same:
                mend = "Name another --output, or remove this cell's folder and its .json"
                what = f"{cell.name} was run with other {what}{_difference(there or {}, here)}"
                raise SettingError(what, str(cell.folder), mend)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first name whose values differ, with both where they are short; nothing of an older note."""
    for name in sorted(there.keys() | here.keys()) if there else ():
        one, two = (json.loads(json.dumps(part.get(name))) for part in (there, here))
        if one != two:
            both = f": {one!r}, now {two!r}"
            return f" ({name}{both if len(both) < 80 else ''})"
    return ""


def refuse_bad(benchmark: Benchmark) -> None:
    """Shows each model's settings to the checks of a run, so that no cell is found bad after hours of others.

    Raises:
        SettingError: a setting that a cell would refuse, with the model.
        DataError: a file that every cell would refuse.
    """
    from recbole_gmc.running.each_domain import refuse_bad_files  # imports every stage

    left = [cell for cell in benchmark.cells if status(cell) != DONE]
    for cell in {cell.row: cell for cell in left}.values():  # its seeds differ in nothing that is checked
        flags = flags_of(cell.arguments)
        model, dataset, files = flags.pop("model"), flags.pop("dataset"), flags.pop("config_files", "").split()
        try:
            planning.plan(model, dataset, files, flags).refuse_bad(cell.folder)
        except SettingError as error:
            raise SettingError(f"{error.what} (for {cell.row})", error.where, error.mend) from error
    if left:
        user, item, _ = benchmark.raw.columns
        raw = {"USER_ID_FIELD": user, "ITEM_ID_FIELD": item, "field_separator": benchmark.raw.separator}
        texts = any(registry.entry(cell.model) is not None for cell in left)
        refuse_bad_files(benchmark.data_path, benchmark.domains, raw, texts)


def taking_over(benchmark: Benchmark, before: Sequence[Benchmark]) -> Benchmark:
    """The benchmark, its cells told which of their domains a finished cell of the others has already.

    Only where the model is run once a domain, with equal settings and data. Nothing of a result changes by it.
    """
    data, cells = data_hashes(benchmark), []
    for cell in benchmark.cells:
        alike = [done for one in before for done in one.cells if cell.recipe and done.recipe == cell.recipe]
        found = {domain: str(one.folder) for one in alike for domain in benchmark.domains if _made(one, domain, data)}
        more = (f"--{keys.FINISHED}={json.dumps(found)}",) if found else ()
        cells.append(replace(cell, arguments=(*cell.arguments, *more)))
    return replace(benchmark, cells=tuple(cells))


def _made(cell: Cell, domain: str, data: Mapping[str, str]) -> bool:
    """Whether the cell is done and was trained on the domain itself, on these files."""
    if status(cell) != DONE:
        return False
    report, there = read_json(cell.folder / "result.json"), note_of(cell).get("data", {})
    if domain not in report["domains"] or domain in (report["settings"].get(keys.FINISHED) or {}):
        return False
    names = [f"{domain}.{kind}" for kind in ("inter", "item", "embeddings", "ids")]
    return all(there.get(name) == data.get(name) for name in names)


def data_hashes(benchmark: Benchmark) -> dict[str, str]:
    """SHA-256 of every domain's files, ready embeddings included."""
    ready = {f"{domain}.embeddings": hash_file(file) for domain, file in benchmark.embeddings.items()}
    rows = {domain: file.with_suffix(".ids") for domain, file in benchmark.embeddings.items()}
    ready |= {f"{domain}.ids": hash_file(file) for domain, file in rows.items() if file.is_file()}
    return {**hash_domains(benchmark.data_path, benchmark.domains), **ready}


def run_all(benchmark: Benchmark) -> None:
    """Runs what is not done, and says after each cell how long the rest may take."""
    data = data_hashes(benchmark)
    waiting = [cell for cell in benchmark.cells if status(cell) != DONE]
    print(f"{len(benchmark.cells) - len(waiting)} of {len(benchmark.cells)} cells are done", flush=True)
    notes = {cell.name: note_of(cell) for cell in waiting}
    with _children_end_with_us():
        for number, cell in enumerate(waiting, 1):
            print(f"[{number}/{len(waiting)}] {cell.name} ...", flush=True)
            outcome = run_cell(cell, data, notes[cell.name])
            left = estimate(benchmark.cells, waiting[number:])
            print(f"[{number}/{len(waiting)}] {cell.name} {outcome}{left}", flush=True)


def run_cell(cell: Cell, data: dict[str, str], known: Mapping[str, Any]) -> str:
    """Runs or resumes one cell, unless another process did; says in a few words how it ended.

    Args:
        known: the note on the cell when it was found undone.
    """
    with locked(cell.folder.with_suffix(".lock")) as lock:
        if lock is None:
            return "is run by another process"
        before = note_of(cell)
        same = (before.get("signature"), before.get("data")) == (cell.signature, data)
        if same and (status(cell) == DONE or (status(cell) == FAILED and before != known)):
            return "was run by another process meanwhile"
        spent, started = before.get("seconds", 0.0) if same else 0.0, perf_counter()
        note = {"status": WAITING, "signature": cell.signature, "data": data, "seconds": spent}
        note["settings"] = dict(cell.settings)
        write_json(cell.folder.with_suffix(".json"), note)
        code = REFUSED
        if same and _resumable(cell.folder):
            code = _process(cell, (f"--resume={cell.folder}",), lock)
        if code == REFUSED:  # what is there cannot be gone on with; after another error it can, by the next call
            shutil.rmtree(cell.folder, ignore_errors=True)
            code = _process(cell, cell.arguments, lock)
        seconds = spent + perf_counter() - started
        done = code == 0 and (cell.folder / "result.json").is_file()
        error = None if done else _last_line(cell.folder.with_suffix(".log"), code)
        note |= {"status": DONE if done else FAILED, "error": error, "seconds": seconds}
        note |= {"result": hash_file(cell.folder / "result.json")} if done else {}
        write_json(cell.folder.with_suffix(".json"), note)
    return f"done in {in_words(seconds)}" if done else f"FAILED: {error}"


def _resumable(folder: Path) -> bool:
    from recbole_gmc.train.checkpoint import Checkpoint

    if (folder / "result.json").is_file() or not folder.is_dir():
        return False
    return progress.begun(folder) or Checkpoint.found(folder) is not None


def _process(cell: Cell, arguments: Sequence[str], lock: IO) -> int:
    """Exit status. The child holds the lock, too: it outlives us only where we are killed outright."""
    place = str(Path(recbole_gmc.__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (place, os.environ.get("PYTHONPATH")) if part)
    with cell.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "recbole_gmc", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=(lock.fileno(),),
        )
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


@contextlib.contextmanager
def _children_end_with_us() -> Iterator[None]:
    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return (f"killed by signal {-code}; " if code < 0 else "") + (
        last.removeprefix("recbole-gmc: ") or f"status {code}"
    )


def estimate(cells: Sequence[Cell], left: Sequence[Cell]) -> str:
    """How long the rest may take: the mean of the same model's done cells, else of all done cells."""
    spent: dict[str, list[float]] = {}
    for cell in cells:
        if status(cell) == DONE:
            spent.setdefault(cell.row, []).append(note_of(cell).get("seconds", 0.0))
    if not left or not spent:
        return ""
    usual = mean(seconds for found in spent.values() for seconds in found)
    total = sum(mean(spent[cell.row]) if cell.row in spent else usual for cell in left)
    return f"; about {in_words(total)} left for {len(left)} cells"


def in_words(seconds: float) -> str:
    """``95`` -> ``1.6 min``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
