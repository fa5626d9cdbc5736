"""The report command."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from recbole_gmc import keys
from recbole_gmc.errors import DependencyError, GMCError, SettingError
from recbole_gmc.files import new_file, refuse_unwritable, telling_where
from recbole_gmc.report import facts
from recbole_gmc.report.runs import DomainData, Run, failures, find_runs, read_domain
from recbole_gmc.values import at_home

HELP = """\
usage: recbole-gmc report <run folder or folder of runs> ... [--<flag>=<value> ...]

Writes report.html, one file that needs no network: results, curves, where the hits stand, quality by popularity and by
length of history, a few users with titles, settings, hashes, and the command that repeats the run. Of semantic IDs: how
the tokenizer learned, what its levels tell apart (t-SNE of residuals, most frequent codes by domain, domain purity),
and whether items with near text share codes.
Several runs stand side by side. Each figure is also written as PNG and SVG where kaleido finds a Chrome or Chromium.

  --output      where report.html and figures/ go (default: the first folder)
  --data_path   where the domains lie now (default: where the run found them)
  --tsne_items  items of a t-SNE (default 1000, some seconds a level and run; 0 leaves it out)
  --pictures    False leaves PNG and SVG out, which take longer than all the rest
"""

NAME = "report.html"
FLAGS = ("output", "data_path", "tsne_items", "pictures")
TSNE_ITEMS = 1000


def run(arguments: Sequence[str]) -> None:
    """Writes a report.

    Raises:
        SettingError: no folder or an unknown flag.
        GMCError: a folder without a run.
    """
    folders, flags = [], {}
    for argument in arguments:
        if not argument.startswith("-"):
            folders.append(at_home(argument))
            continue
        name, equals, value = argument[2:].partition("=")
        if name not in FLAGS or not equals or not value:
            near = keys.nearest(name, FLAGS) if name not in FLAGS else ""
            raise SettingError(f"unknown or empty flag {argument!r}{near}", "report", "See `recbole-gmc report --help`")
        flags[name] = at_home(value)
    if not folders:
        raise SettingError("no run folder is named", "report", "Write `recbole-gmc report runs/<folder>`")
    most = flags.get("tsne_items", str(TSNE_ITEMS))
    if not most.isdecimal():
        raise SettingError(f"{most!r} is not a number >= 0", "--tsne_items", f"Write --tsne_items={TSNE_ITEMS}")
    pictures = flags.get("pictures", "True")
    if pictures not in ("True", "False"):
        raise SettingError(f"{pictures!r} is neither True nor False", "--pictures", "Write --pictures=False")
    runs = find_runs(folders)
    target = Path(flags.get("output", folders[0]))
    refuse_unwritable(target, "--output")
    missing = failures(folders)
    made = write(runs, target, flags.get("data_path"), int(most), pictures == "True", missing)
    for line in missing:
        print(f"Not in the report: {line}")
    print(f"Report of {len(runs)} {'run' if len(runs) == 1 else 'runs'}: {made}")


def write(
    runs: Sequence[Run],
    target: Path,
    data_path: str | None = None,
    tsne_items: int = TSNE_ITEMS,
    pictures: bool = True,
    missing: Sequence[str] = (),
) -> Path:
    """Writes report.html of some runs into a folder, and its figures as pictures.

    Args:
        missing: cells of a benchmark that failed, a line each.
    """
    try:
        import plotly.offline

        from recbole_gmc.report import analysis, figures, images, page
    except ImportError as error:
        mend = "pip install 'recbole_gmc[report]'"
        raise DependencyError(f"a report needs plotly ({error})", "report", mend) from error
    data = _data(runs, data_path)
    drawn = figures.all_of(runs, data)
    ids = analysis.analyse(runs, tsne_items)
    with telling_where(target, "Free some space, or name another --output"):
        with new_file(target / NAME) as file:
            file.write(page.page(runs, data, drawn, _users(runs, data), ids, plotly.offline.get_plotlyjs(), missing))
        if pictures:
            images.write({**drawn, **ids.figures}, target / "figures")
    return target / NAME


def _data(runs: Sequence[Run], data_path: str | None) -> dict[str, DomainData]:
    found: dict[str, DomainData] = {}
    failed: dict[str, GMCError] = {}
    for one in runs:
        root = Path(data_path or one.settings.get("data_path") or "dataset")
        for domain in one.domains:
            if domain not in found:
                try:
                    found[domain] = read_domain(root, domain, one.settings)
                except GMCError as error:
                    failed[domain] = error
    for domain, error in failed.items():
        if domain not in found:
            getLogger().warning(f"Without what the files of {domain} tell: {error}")
    return found


def _users(runs: Sequence[Run], data: dict[str, DomainData]) -> dict[str, list[facts.Example]]:
    """Run -> users to show: of each domain those that the first run with it gives, the same for every run."""
    left, pairs = dict(data), []
    for one in runs:
        pairs += facts.chosen(one.lists, {domain: left.pop(domain) for domain in one.domains if domain in left})
    return {one.name: facts.examples(one.lists, data, pairs) for one in runs}
