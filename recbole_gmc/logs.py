"""Logs of a run of ours: on the terminal as RecBole writes them, in the run's own folder instead of ./log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import colorama
import colorlog
from recbole.utils.logger import RemoveColorFilter, log_colors_config
from torch.utils.tensorboard import SummaryWriter

from recbole_gmc import registry
from recbole_gmc.errors import SettingError
from recbole_gmc.places import run_dir

LINE, DATE = "%(asctime)-15s %(levelname)s  %(message)s", "%a %d %b %Y %H:%M:%S"

LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}


TABLES = logging.getLogger("recbole_gmc.tables")
TABLES.setLevel(logging.INFO)  # what a run is for is shown with ``state: warning``, too

_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def started_by(command: str) -> Iterator[None]:
    """Names the command line that begins the logs of the runs it makes."""
    token = _command.set(command)
    try:
        yield
    finally:
        _command.reset(token)


def command() -> str:
    """The command line under way, as it was typed; empty for a call from Python."""
    return _command.get() or ""


def _call(config: Any) -> str:
    """The Python call of a run, with the settings that are not the model's own."""
    usual = config.internal_config_dict
    given = {name: value for name, value in config.external_config_dict.items() if value != usual.get(name)}
    return f"run_recbole(model={config['model']!r}, dataset={config['dataset']!r}, config_dict={given!r})"


def _not_argv(record: logging.LogRecord) -> bool:
    """RecBole's own first line is ``sys.argv``, which says nothing of a call from Python or a command run as one."""
    return record.msg is not sys.argv


@contextmanager
def tables_later() -> Iterator[None]:
    """Holds result tables back, for a caller that shows its own after all that RecBole logs at the end of a run."""
    TABLES.disabled = True
    try:
        yield
    finally:
        TABLES.disabled = False


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is logged, errors excepted: for work that is done again, and told then."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class RunFile(logging.FileHandler):
    """``run.log`` in a run's folder, which appears with the trainer: what is refused before leaves no folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "run.log", encoding="utf-8", delay=True)
        self._early: list[logging.LogRecord] | None = []

    def begin(self) -> Path:
        """Makes the folder, writes what was logged so far, and returns the folder.

        Raises:
            SettingError: the folder cannot be made.
        """
        folder = Path(self.baseFilename).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{str(folder)!r} cannot be made ({error.strerror})"
            raise SettingError(what, "run_dir", "Name a folder that can be written") from error
        early, self._early = self._early or [], None
        for record in early:
            self.emit(record)
        return folder

    def emit(self, record: logging.LogRecord) -> None:
        if self._early is None:
            super().emit(record)
        else:
            self._early.append(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing where the disk is full: the terminal has the line, and what must be whole says so itself."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _end() -> None:
    root = logging.getLogger()
    root.removeFilter(_not_argv)
    for handler in [handler for handler in root.handlers if isinstance(handler, RunFile)]:
        root.removeHandler(handler)
        handler.close()


def write_to(folder: Path) -> RunFile:
    """From here on what is logged goes to this run's folder; a new run in one process has a log of its own."""
    _end()
    file = RunFile(folder)
    file.setFormatter(logging.Formatter(LINE, DATE))
    file.addFilter(RemoveColorFilter())
    logging.getLogger().addHandler(file)
    return file


def on_terminal() -> bool:
    """Whether what is logged is shown, as it is once a run of RecBole's has begun."""
    return any(type(handler) is logging.StreamHandler for handler in logging.getLogger().handlers)


def init_logger(inner: Callable, config: Any) -> None:
    """RecBole's ``init_logger`` writes to ./log; the log of a run of ours goes to its folder.

    Runs of ours are those of registered models, and those of RecBole's own that our command line started.
    """
    root = logging.getLogger()
    if registry.entry(config["model"]) is None and not config["run_dir"]:
        _end()
        return inner(config)
    colorama.init(autoreset=True)
    level = LEVELS.get(str(config["state"]).lower(), logging.INFO)
    write_to(run_dir(config))
    root.setLevel(level)
    if not on_terminal():
        terminal = logging.StreamHandler()
        terminal.setFormatter(
            colorlog.ColoredFormatter("%(log_color)s" + LINE, "%d %b %H:%M", log_colors=log_colors_config)
        )
        root.addHandler(terminal)
    root.info(_command.get() or _call(config))
    root.addFilter(_not_argv)
    return None


def get_tensorboard(inner: Callable, logger: logging.Logger) -> Any:
    """RecBole's ``get_tensorboard`` writes to ./log_tensorboard; a run with a log of its own keeps both together."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunFile):
            return SummaryWriter(str(handler.begin() / "tensorboard"))
    return inner(logger)
