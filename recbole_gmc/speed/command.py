"""The speed command: which parts are measured, the table they print, and speed.json."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_gmc import keys, lookup, registry
from recbole_gmc.errors import CheckpointError, SettingError
from recbole_gmc.files import refuse_unwritable, write_json
from recbole_gmc.settings import TokenizerSettings, read
from recbole_gmc.speed.measure import PartResult, Row, SpeedOptions, machine
from recbole_gmc.values import at_home

PARTS = ("decode", "train", "tokenizer", "trie")
NUMBERS = {"threads": (1, 4096), "rounds": (1, 10**6), "seed": (0, 2**31 - 1), "width": (2, 65_536)}  # flag: bounds
FLAGS = ("output", "device", "run", "data_path", "config_files", "tiny", *NUMBERS)

HELP = """\
usage: recbole-gmc speed [decode|train|tokenizer|trie ...] [--<flag>=<value> ...]

Measures this project's ways against the usual ones in one process: the same weights and data, both in turn, several
rounds, in CPU seconds of this process, and whether both gave the same answer. Without a part all four are measured.
Prints each figure as it is found, then a table, and writes speed.json.

  --output        the folder for speed.json (default: the working folder)
  --device        cpu (default) or cuda
  --threads       threads of torch (default 1)
  --rounds        rounds of each way (default 5); the tokenizer's trainings take minutes and are run once
  --run           a run folder: its trained weights and its data are measured, too
  --data_path     the folder of domains that the parts on real data take (default dataset/, if it is there)
  --width         dimensions of the tokenizer's synthetic embeddings (default 384, then 4096)
  --config_files  property files, of which the tokenizer takes the keys of the RQ-VAE
  --seed          of weights and synthetic data (default 2020)
  --tiny          sizes of a test; the figures mean nothing
"""


def parse(arguments: Sequence[str]) -> tuple[tuple[str, ...], SpeedOptions, Path]:
    """The words after ``speed``: the parts, their options, and the folder for speed.json.

    Raises:
        SettingError: an unknown part or flag, a flag without or with a bad value, or a device that is not here.
        CheckpointError: ``--run`` has no checkpoint with semantic IDs.
    """
    parts: list[str] = []
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            parts += [part for part in word.split(",") if part]
            continue
        flag, equals, value = word[2:].partition("=")
        if not word.startswith("--") or flag not in FLAGS:
            raise SettingError(f"unknown flag {word!r}{keys.nearest(flag, FLAGS)}", "speed", "See `speed --help`")
        if flag in values:
            raise SettingError("given twice", f"--{flag}", "Give it once")
        if equals and flag == "tiny":
            raise SettingError("takes no value", "--tiny", "Write --tiny, or leave it out")
        if not equals and flag != "tiny":
            if not rest or rest[0].startswith("--"):
                raise SettingError("has no value", f"--{flag}", f"Write --{flag}=value")
            value = rest.pop(0)
        values[flag] = at_home(value)
    for part in parts:
        if part not in PARTS:
            raise SettingError(
                f"unknown part {part!r}{keys.nearest(part, PARTS)}", "speed", f"Known: {', '.join(PARTS)}"
            )
    options = _options({flag: value for flag, value in values.items() if flag != "output"})
    return tuple(part for part in PARTS if part in parts or not parts), options, _output(values.get("output", "."))


def _options(values: dict[str, str]) -> SpeedOptions:
    given: dict[str, Any] = {"tiny": "tiny" in values}
    for flag, (least, most) in NUMBERS.items():
        if flag in values:
            if not values[flag].isdecimal() or not least <= int(values[flag]) <= most:
                what = f"{values[flag]!r} is not a number from {least} to {most}"
                raise SettingError(what, f"--{flag}", f"Write --{flag}={max(least, 5)}")
            given[flag] = int(values[flag])
    if "config_files" in values:
        given["settings"] = lookup.read_files(values["config_files"].split())
        keys.refuse_unknown(given["settings"])
        tokenizer = read(TokenizerSettings, given["settings"])  # a bad value is told before minutes of measuring
        if tokenizer.kind != "rqvae":
            what = f"{tokenizer.kind} is no network that is trained"
            raise SettingError(what, "tokenizer", "Leave it out, or write rqvae")
    if "device" in values:
        given["device"] = _device(values["device"])
    if "run" in values:
        given["run"] = _run(values["run"])
    if "data_path" in values:
        given["data_path"] = _folder("data_path", values["data_path"])
    elif Path("dataset").is_dir():
        given["data_path"] = Path("dataset")
    return dataclasses.replace(SpeedOptions(), **given)


def _folder(flag: str, value: str) -> Path:
    if not Path(value).is_dir():
        raise SettingError(f"no folder {value!r}", f"--{flag}", f"Write --{flag}=<folder>")
    return Path(value)


def _run(value: str) -> Path:
    """A run folder whose checkpoint is whole and holds a model whose T5 decodes semantic IDs."""
    from recbole_gmc.model.gmc import GMC
    from recbole_gmc.train.checkpoint import Checkpoint

    folder = _folder("run", value)
    found = Checkpoint(folder)
    model = found.config["model"]
    if not found.has_ids or not issubclass(registry.load(registry.entry(model).model), GMC):
        what = f"{model} has no T5 that decodes semantic IDs"
        raise CheckpointError(what, str(folder), "Give a run of GMC, TIGER, P5CID or IDGenRec")
    return folder


def _output(value: str) -> Path:
    """The folder, made before minutes of measuring."""
    refuse_unwritable(value, "--output")
    if (Path(value) / "speed.json").is_dir():
        raise SettingError(f"{value}/speed.json is a folder", "--output", "Name another folder")
    Path(value).mkdir(parents=True, exist_ok=True)
    return Path(value)


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise SettingError(f"{name!r} is no device of this machine", "--device", "Write --device=cpu")
    return name


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Measures, prints and writes; returns what speed.json holds."""
    parts, options, output = parse(arguments)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {}
    rows: list[tuple[str, Row]] = []
    for part in parts:
        report[part] = {}
        results: Iterator[PartResult] = importlib.import_module(f"recbole_gmc.speed.{part}").measure(options)
        for found in results:
            report[part] |= found.figures
            write_json(output / "speed.json", report)  # what is measured stays when the rest is stopped
            rows += [(part, row) for row in found.rows]
            for row in found.rows:
                print(
                    f"{part}: {row.title}: {row.ours}" + (f" | {row.reference}" if row.reference else ""),
                    file=sys.stderr,
                )
    report["machine"] = machine(options)
    print(table(rows))
    write_json(output / "speed.json", report)
    print(f"{describe(report['machine'])}\nwritten: {output / 'speed.json'}")
    return report


def table(rows: Sequence[tuple[str, Row]]) -> str:
    """The rows of all parts as aligned text."""
    lines = [("part", "figure", "ours", "reference", "ratio", "rounds", "same answer")]
    for part, row in rows:
        spread = f"{row.spread[0]:.1f} to {row.spread[1]:.1f}" if row.spread else ""
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}x"
        same = "" if row.same is None else "yes" if row.same else "NO"
        lines.append((part, row.title, row.ours, row.reference, ratio, spread, same))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def describe(facts: dict[str, Any]) -> str:
    """The machine in a line."""
    rates = "; ".join(
        f"{precision} " + ", ".join(f"{way} {rate:.0f}" for way, rate in found.items())
        for precision, found in facts["gflops"].items()
    )
    return f"{facts['device']}, {facts['threads']} thread(s), torch {facts['torch']}; GFLOP/s: {rates}"
