"""The command line: ``python run_recbole_gmc.py ...``, ``recbole-gmc ...`` and ``python -m recbole_gmc ...``."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from recbole_gmc import __version__, keys, logs, lookup, quick, registry
from recbole_gmc.errors import GMCError, SettingError
from recbole_gmc.flags import flags_of

PROGRAM = "recbole-gmc"
PROCESSES = ("nproc", "ip", "port", "world_size", "group_offset")
VERSIONED = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "scikit-learn", "faiss-cpu", "faiss-gpu")
SHORT = {"-m": "--model", "-d": "--dataset", "-h": "--help"}

RUN_HELP = f"""\
usage: {PROGRAM}                                   quick start: GMC on data that comes with RecBole, minutes on a CPU
       {PROGRAM} --model=GMC --dataset=<name> [--config_files="a.yaml b.yaml"] [--<key>=<value> ...]
       {PROGRAM} --resume=<run folder>             goes on with an interrupted run
       {PROGRAM} benchmark                         several models, one protocol, one table: see benchmark --help
       {PROGRAM} tune --params_file=<file> ...     searches settings by validation
       {PROGRAM} report <run folder> ...           one page about one run or several
       {PROGRAM} models                            registered models and their property files
       {PROGRAM} speed                             this project's ways against the usual ones, measured
       {PROGRAM} --version

A run prints one table, a row a domain, and leaves its files in run_dir (default runs/<model>-<dataset>-<time>-<id>).

  --model         a registered model, or one of RecBole's, which is run once a domain
  --dataset       <data_path>/<name>.yaml, else the packaged properties/dataset/<name>.yaml, else the folder
                  <data_path>/<name> as one domain
  --config_files  YAML files, joined by blanks; each is a path, or a packaged one such as properties/quick_start.yaml
  --data_path     the folder that holds the domains (default dataset/)
  --domains=A,B   the domains to unite
  --<key>=<value> any setting of RecBole or of the model; values are YAML: --topk=5,10 --x=~ --x=[A,B] --x=1e-3

Without --model, --dataset and --config_files the settings change the quick start, as in `{PROGRAM} --seed=7`.
Exit status: 0 done, 1 the run failed, 2 bad use, 130 interrupted.
"""

MODELS_HELP = f"""\
usage: {PROGRAM} models

Lists the registered models with the property file of each, in which every setting is explained, and the models of
RecBole that have a protocol file for runs beside them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command line without the program's name; ``None`` takes ``sys.argv``.

    Returns:
        The exit status: 0 done, 1 the run failed, 2 bad use (one line on stderr says what and how to mend).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with logs.started_by(_as_typed(arguments)):
            _command(arguments)()
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output (`| head`) has gone: nothing is left to say, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except GMCError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _as_typed(arguments: list[str]) -> str:
    script = sys.argv[0].endswith(".py") and not sys.argv[0].endswith("__main__.py")
    return shlex.join(["python", sys.argv[0], *arguments] if script else [PROGRAM, *arguments])


def _command(arguments: list[str]) -> Callable[[], Any]:
    arguments = [SHORT.get(argument, argument) for argument in arguments]
    word = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if word == "models":
        if "--help" in arguments:
            return lambda: print(MODELS_HELP, end="")
        if arguments[1:]:
            raise SettingError(f"takes no arguments, not {arguments[1]!r}", where="models", mend=_see("models --help"))
        return print_models
    if word == "speed":
        from recbole_gmc.speed import command

        return lambda: print(command.HELP, end="") if "--help" in arguments else command.run(arguments[1:])
    if word == "benchmark":
        from recbole_gmc.benchmark import command as benchmark

        return lambda: print(benchmark.HELP, end="") if "--help" in arguments else benchmark.run(arguments[1:])
    if word == "tune":
        from recbole_gmc.tune import command as tune

        return lambda: print(tune.HELP, end="") if "--help" in arguments else tune.run(arguments[1:])
    if word == "report":
        from recbole_gmc.report import command as report

        return lambda: print(report.HELP, end="") if "--help" in arguments else report.run(arguments[1:])
    if word is not None:
        known = keys.nearest(word, ["benchmark", "models", "report", "speed", "tune"])
        raise SettingError(f"unknown command {word!r}{known}", mend=_see("--help"))
    if "--help" in arguments:
        return lambda: print(RUN_HELP, end="")
    if "--version" in arguments:
        return print_versions
    flags = flags_of(arguments)
    return lambda: run(flags)


def _see(rest: str) -> str:
    return f"See `{PROGRAM} {rest}`"


def run(flags: dict[str, str]) -> Any:
    """Starts or resumes a run from flags."""
    flags = dict(flags)
    if "resume" in flags:
        folder = flags.pop("resume")
        if not folder:
            raise SettingError("names no folder", where="--resume", mend="Write --resume=runs/<folder>")
        if flags:
            raise SettingError(
                f"goes on with the run's own settings, not with --{next(iter(flags))}",
                where="--resume",
                mend="Leave the other settings out, or start a new run",
            )
        return quick.resume(folder)
    if not {"model", "dataset", "config_files"} & set(flags):
        from recbole_gmc import quick_start  # imports every stage

        return quick_start.quick_start(flags)
    files = flags.pop("config_files", "").split()
    processes = {key: _number(key, flags.pop(key)) for key in PROCESSES if key in flags}
    return quick.run(flags.pop("model", None), flags.pop("dataset", None), files, flags, **processes)


def _number(key: str, text: str) -> int | str:
    if key in ("ip", "port"):
        return text
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"{text!r} is not a whole number", where=f"--{key}", mend=f"Write --{key}=1") from None


def print_models() -> None:
    """Prints registered models and protocol files."""
    rows = [(name, entry.properties or "-") for name, entry in registry.entries().items()]
    folder = lookup.properties_folder() / "benchmark"
    others = [(file.stem, file) for file in sorted(folder.glob("[A-Z]*.yaml"))]
    width = max(len(name) for name, _ in rows + others)
    for title, part in (("registered models", rows), ("models of RecBole, run once a domain", others)):
        print(title)
        for name, file in part:
            print(f"  {name:<{width}}  {file}")


def print_versions() -> None:
    """Prints the versions that matter."""
    print(f"recbole_gmc {__version__}")
    for name in VERSIONED:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    print(f"python {platform.python_version()}")
