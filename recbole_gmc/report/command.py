"""The report command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_gmc.errors import DependencyError, SettingError
from recbole_gmc.files import new_file, new_folder, telling_where
from recbole_gmc.report import facts, page
from recbole_gmc.report.runs import DomainData, Run, find_runs, read_domain

HELP = """\
usage: recbole-gmc report <run folder or folder of runs> ... [--output=<folder>] [--data_path=<folder>]

Writes report.html, one file that needs no network: results, curves, where the hits stand, quality by popularity and by
length of history, semantic IDs, a few users with titles, settings, hashes, and the command that repeats the run.
Several runs stand side by side. Each figure is also written as PNG and SVG where kaleido finds a Chrome or Chromium.

  --output     where report.html and figures/ go (default: the first folder)
  --data_path  where the domains lie now (default: where the run found them)
"""

NAME = "report.html"


def run(arguments: Sequence[str]) -> None:
    """Writes a report.

    Raises:
        SettingError: no folder or an unknown flag.
        GMCError: a folder without a run.
    """
    folders, flags = [], {}
    for argument in arguments:
        if not argument.startswith("-"):
            folders.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if name not in ("output", "data_path") or not equals or not value:
            raise SettingError(f"unknown or empty flag {argument!r}", "report", "See `report --help`")
        flags[name] = value
    if not folders:
        raise SettingError("no run folder is named", "report", "Write `recbole-gmc report runs/<folder>`")
    runs = find_runs(folders)
    target = Path(flags.get("output", folders[0]))
    print(f"Report of {len(runs)} {'run' if len(runs) == 1 else 'runs'}: {write(runs, target, flags.get('data_path'))}")


def write(runs: Sequence[Run], target: Path, data_path: str | None = None) -> Path:
    """Writes report.html and the figures of some runs into a folder."""
    try:
        import plotly.offline

        from recbole_gmc.report import figures
    except ImportError as error:
        mend = "pip install 'recbole_gmc[report]'"
        raise DependencyError(f"a report needs plotly ({error})", "report", mend) from error
    data = _data(runs, data_path)
    drawn = figures.all_of(runs, data)
    plain = {name: json.loads(figure.to_json()) for name, figure in drawn.items()}
    for figure in plain.values():
        figure["layout"].pop("template", None)
    users = {one.name: facts.examples(one.lists, _of(one, data)) for one in runs}
    with telling_where(target, "Free some space, or name another --output"):
        with new_file(target / NAME) as file:
            file.write(page.page(runs, data, plain, users, plotly.offline.get_plotlyjs()))
        _write_images(drawn, target / "figures")
    return target / NAME


def _data(runs: Sequence[Run], data_path: str | None) -> dict[str, DomainData]:
    found: dict[str, DomainData] = {}
    for one in runs:
        root = Path(data_path or one.settings.get("data_path") or "dataset")
        for domain in one.domains:
            if domain not in found and (raw := read_domain(root, domain)) is not None:
                found[domain] = raw
    for domain in dict.fromkeys(domain for one in runs for domain in one.domains if domain not in found):
        getLogger().warning(f"{domain}: its files are not there any more; name their folder with --data_path")
    return found


def _of(one: Run, data: dict[str, DomainData]) -> dict[str, DomainData]:
    return {domain: data[domain] for domain in one.domains if domain in data}


def _write_images(drawn: dict[str, Any], folder: Path) -> None:
    """PNG and SVG of each figure, on white; a page without them is whole, too."""
    try:
        import kaleido  # noqa: F401 - plotly's writer of images
    except ImportError:
        print("No PNG and SVG of the figures: kaleido is not installed", file=sys.stderr)
        return
    import plotly.io

    images = [_on_white(figure) for figure in drawn.values()]
    try:
        with new_folder(folder) as work:
            for kind, scale in (("png", 2), ("svg", 1)):
                files = [work / f"{name}.{kind}" for name in drawn]
                plotly.io.write_images(images, files, width=900, height=420, scale=scale)
    except Exception as error:  # kaleido raises many kinds where it finds no browser
        reason = " ".join(str(error).split())[:160]
        print(f"No PNG and SVG of the figures: {type(error).__name__}: {reason}", file=sys.stderr)


def _on_white(figure: Any) -> Any:
    """A copy on a white ground, for pictures that leave the page."""
    return figure.__class__(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")
