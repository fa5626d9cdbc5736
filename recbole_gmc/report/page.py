"""The page: one file with everything in it, readable without a network, on a phone, in the dark."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from recbole_gmc.report.analysis import SIMILARITY, Analysis
from recbole_gmc.report.facts import Example, K
from recbole_gmc.report.runs import DomainData, Run

HERE = Path(__file__).parent
MAIN = f"ndcg@{K}"
NAMED = 3  # of models or domains in a title
USERS = "In each domain the first hits and the first miss of the first run with it; the same users for every run."


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def page(
    runs: Sequence[Run],
    data: Mapping[str, DomainData],
    figures: Mapping[str, go.Figure],
    examples: Mapping[str, Sequence[Example]],
    ids: Analysis,
    library: str,
    missing: Sequence[str] = (),
) -> str:
    """The whole page about some runs.

    Args:
        figures: name -> figure, about the quality of the lists.
        examples: run name -> users.
        ids: what is known of the semantic IDs.
        library: the source of plotly.js.
        missing: runs that failed, a line each.
    """
    title = _some([str(run.result["model"]) for run in runs])
    where = _some([domain for run in runs for domain in run.domains])
    parts = [
        f"<h1>{escape(title)} on {escape(where)}</h1>",
        '<p class="soft">The last item of every user is held out and ranked among all items of its domain.</p>',
        "<h2>Results on test</h2>",
        results(runs),
        *(f'<p class="soft">Failed, and so not here: {escape(line)}</p>' for line in missing),
        grid(figures),
        *_users(examples),
        "<h2>Data</h2>",
        _data(runs, data),
        *_ids(runs, ids),
        "<h2>Runs</h2>",
        *(_about(run) for run in runs),
    ]
    return document(f"{title} on {where}", parts, {**figures, **ids.figures}, library)


def _some(names: Sequence[str]) -> str:
    """``A and B``; of many names the first three and how many more."""
    names = list(dict.fromkeys(names))
    if len(names) > NAMED + 1:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def document(title: str, parts: Sequence[str], figures: Mapping[str, go.Figure], library: str) -> str:
    """One file with everything in it.

    Args:
        title: plain text.
        parts: HTML, with a place for each figure.
        figures: name -> figure.
        library: the source of plotly.js.
    """
    body = "\n".join(part for part in parts if part)
    plain = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    for figure in plain.values():
        figure["layout"].pop("template", None)
    # No "<" may stand in a script element: a title with "</script>" would end it.
    drawn = json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c")
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="figures">{drawn}</script>\n'
        f"<script>{library}</script>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


class Signed(float):
    """A number that is shown with its sign."""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1, sortable: bool = False) -> str:
    """An HTML table; numbers keep their full value for sorting. The first ``left`` columns are text."""

    def cell(column: int, value: Any) -> str:
        style = ' class="left"' if column < left else ""
        if isinstance(value, Signed):
            return f'<td{style} data-value="{value!r}">{value:+.4f}</td>'
        if isinstance(value, float):
            return f'<td{style} data-value="{value!r}">{value:.4f}</td>'
        if isinstance(value, int):
            return f'<td{style} data-value="{value}">{value:,}</td>'
        return f"<td{style}>{escape(value)}</td>"

    def top(column: int, name: str) -> str:
        inner = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
        return f'<th scope="col"{" class=" + chr(34) + "left" + chr(34) if column < left else ""}>{inner}</th>'

    lines = ["<tr>" + "".join(cell(column, value) for column, value in enumerate(row)) + "</tr>" for row in rows]
    heads = "".join(top(column, name) for column, name in enumerate(head))
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def results(runs: Sequence[Run]) -> str:
    """A row a run and domain, the average last; with several runs the difference to the first."""
    metrics = [name for name in runs[0].result["average"] if name.split("@")[0] in ("recall", "ndcg", "mrr")]
    first = runs[0]
    rows = []
    for run in runs:
        for domain, part in {**run.result["domains"], "average": run.result["average"]}.items():
            values = [float(part[name]) if name in part else "-" for name in metrics]
            row = [run.name, domain, *values]
            if len(runs) > 1:
                row.append(_difference(first, run, domain, MAIN))
            rows.append(row)
    if len(runs) == 1:
        return table(["run", "domain", *metrics], rows, left=2, sortable=True)
    about = f'<p class="soft">Difference: in {MAIN}, against {escape(first.name)}.</p>'
    return table(["run", "domain", *metrics, "difference"], rows, left=2, sortable=True) + about


def _difference(first: Run, run: Run, domain: str, metric: str) -> Any:
    here, there = (
        (r.result["average"] if domain == "average" else r.result["domains"].get(domain, {})).get(metric)
        for r in (run, first)
    )
    return Signed(here - there) if run is not first and here is not None and there is not None else ""


def grid(figures: Mapping[str, go.Figure], level: int = 3) -> str:
    """The places of some figures: side by side where the page is wide enough. ``level`` is that of their headings."""
    return f'<div class="figures">{"".join(_figure(name, figure, level) for name, figure in figures.items())}</div>'


def _figure(name: str, figure: go.Figure, level: int) -> str:
    title, about = figure.layout.title.text or name, (figure.layout.meta or {}).get("caption")
    caption = f'<p class="soft">{escape(about)}</p>' if about else ""
    place = f'<div class="figure" id="figure-{escape(name)}"></div>'
    return f"<section><h{level}>{escape(title)}</h{level}>{place}{caption}</section>"


def _users(examples: Mapping[str, Sequence[Example]]) -> list[str]:
    if not any(examples.values()):
        return ['<p class="soft">The data files are not where the run found them, so no users are shown.</p>']
    parts = [
        "<h2>Some users</h2>",
        f'<p class="soft">{USERS}</p>',
    ]
    for number, (name, users) in enumerate(examples.items()):
        shown = '<div class="users">' + "".join(map(_user, users)) + "</div>"
        if len(examples) == 1:
            return [*parts, shown]
        state = "" if number else " open"
        parts.append(f"<details{state}><summary>{escape(name)}</summary>{shown}</details>")
    return parts


def _user(user: Example) -> str:
    history = "".join(f"<li>{escape(title)}</li>" for title in user.history)
    items = "".join(
        f'<li class="hit">{escape(title)}</li>' if place == user.rank else f"<li>{escape(title)}</li>"
        for place, title in enumerate(user.recommended)
    )
    place = f"place {user.rank + 1}" if user.rank >= 0 else "not in the list"
    return (
        f'<div class="user"><b>{escape(user.domain)}, user {escape(user.user)}</b>'
        f"<div>took, oldest first</div><ol>{history}</ol><div>recommended</div><ol>{items}</ol>"
        f'<div>took next: <b>{escape(user.target)}</b> <span class="soft">({place})</span></div></div>'
    )


def _data(runs: Sequence[Run], data: Mapping[str, DomainData]) -> str:
    rows = []
    for domain in dict.fromkeys(domain for run in runs for domain in run.domains):
        part = next(run.result["domains"][domain] for run in runs if domain in run.domains)
        raw = data.get(domain)
        count = sum(map(len, raw.sequences.values())) if raw else None
        mean = f"{count / len(raw.sequences):.1f}" if raw else "-"
        rows.append([domain, part["users"], part["items"], count if raw else "-", mean])
    return table(["domain", "test users", "items", "interactions", "a user"], rows)


def _ids(runs: Sequence[Run], ids: Analysis) -> list[str]:
    made = [_tokenizer(run) for run in runs if run.result.get("tokenizer")]
    if not ids.levels and not made:
        return []
    parts = ["<h2>Semantic IDs</h2>"]
    if ids.levels:
        rows = [[one.run, one.level, one.used, f"{one.perplexity:.1f}", one.purity] for one in ids.levels]
        parts.append(table(["run", "level", "codes used", "perplexity", "domain purity"], rows))
        parts.append(
            '<p class="soft">Domain purity: the mean over the codes of a level of the largest domain\'s share of the '
            "items that have the code; 1 where no two domains share a code.</p>"
        )
    for title, figures in ids.groups.items():
        parts += [f"<h3>{escape(title)}</h3>", grid(figures, level=4)]
        if title == SIMILARITY:
            parts.append(_similarity(ids))
    return [*parts, "<h3>The tokenizer's figures</h3>" if made else "", *made]


def _similarity(ids: Analysis) -> str:
    ks = sorted({k for parts in ids.similarity.values() for part in parts.values() for k in part.ks})
    rows = []
    for name, parts in ids.similarity.items():
        for domain, part in parts.items():
            shares = dict(zip(part.ks, part.shares, strict=True))
            rows.append([name, domain, *(shares.get(k, "-") for k in ks), part.chance])
    head = ["run", "domain", *(f"K = {k}" for k in ks), "by chance"]
    return table(head, rows, left=2) + (
        '<p class="soft">For each item its K nearest items of the same domain by the cosine of their text embeddings: '
        "the mean share of levels at which both have the same code. By chance: of two random items of the domain. In a "
        "very large domain a sample of the items is asked.</p>"
    )


def _tokenizer(run: Run) -> str:
    facts = {key: value for key, value in run.result["tokenizer"].items() if not isinstance(value, dict)}
    facts.pop("history", None)  # drawn as curves
    return f"<p>{escape(run.name)}</p>" + table(
        ["figure", "value"], [[key, _told(value)] for key, value in facts.items()]
    )


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_told, value)) if isinstance(value, (list, tuple)) else str(value)


def _about(run: Run) -> str:
    result = run.result
    rows: list[list[Any]] = [["folder", str(run.folder)], ["seed", str(result.get("seed"))]]
    certified = (result.get("certified") or {}).get("all")
    if certified is not None:
        rows.append(["lists proved to be the true top", f"{100 * certified:.1f}%"])
    if result.get("label"):
        rows.append(["setting", result["label"]])
    rows += [[f"parameters, {key}", _told(value)] for key, value in (result.get("parameters") or {}).items()]
    rows += [[f"seconds, {key}", _told(value)] for key, value in (result.get("seconds") or {}).items()]
    rows += [[f"epochs, {key}", _told(value)] for key, value in (result.get("epochs") or {}).items()]
    rows += [[f"hash, {key}", _told(value)] for key, value in (result.get("hashes") or {}).items()]
    rows += [[f"version, {key}", _told(value)] for key, value in (result.get("versions") or {}).items()]
    settings = json.dumps(run.settings, indent=1, ensure_ascii=False, sort_keys=True)
    return (
        f"<h3>{escape(run.name)}</h3><pre>{escape(command_of(run))}</pre>{table(['fact', 'value'], rows)}"
        f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>"
    )


def command_of(run: Run) -> str:
    """The command line that began the run, from the first line of its log; else what the settings tell."""
    log = run.folder / "run.log"
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as file:
            _, shown, first = file.readline().partition("INFO")  # with ``state: warning`` it is not there
        if shown and first.strip():
            return first.strip()
    return f"recbole-gmc --model={run.result['model']} --dataset={run.result.get('dataset')}"
