"""Quality over millions of interactions: a page that needs no network, and its pictures."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import plotly.offline

from recbole_gmc.benchmark import scenarios
from recbole_gmc.benchmark.scenarios import Scenarios
from recbole_gmc.benchmark.tables import short
from recbole_gmc.files import new_file
from recbole_gmc.report import images
from recbole_gmc.report.figures import finished, line
from recbole_gmc.report.page import document, escape, grid, table

NAME = "domain_sets.html"
NARROW = "\u00a0±\u00a0"  # a score breaks off before its change, not before its deviation


def write(found: Scenarios, folder: Path, command: str) -> Path:
    """Writes the page and, beside it, PNG and SVG of each figure."""
    drawn = figures(found)
    parts = [
        "<h1>Growing sets of domains</h1>",
        f'<p class="soft">{escape(scenarios.LEGEND)}</p>',
        grid(drawn, level=2),
        *(part for one in scenarios.tables(found) for part in _table(one)),
        "<h2>Command</h2>",
        f"<pre>{escape(command)}</pre>",
    ]
    with new_file(folder / NAME) as file:
        file.write(document("Growing sets of domains", parts, drawn, plotly.offline.get_plotlyjs()))
    images.write(drawn, folder / "figures")
    return folder / NAME


def _table(found: scenarios.Table) -> tuple[str, str]:
    """The table, narrow: a model is named in its first row, and a set that holds the one above by what it adds."""
    rows, above = [], ["", ""]
    for row in found.rows:
        words = [field.text.replace(" ± ", NARROW) for field in row]
        model, domains = words[:2]
        if model == above[0]:
            had, has = above[1].split(", "), domains.split(", ")
            words[0] = ""
            if set(had) < set(has):
                words[1] = "+\u00a0" + ", ".join(name for name in has if name not in had)
        rows.append(words)
        above = [model, domains]
    return f"<h2>{escape(found.title)}</h2>", f'<div class="sets">{table(found.header, rows, left=2)}</div>'


def figures(found: Scenarios) -> dict[str, go.Figure]:
    """A figure a domain: the last NDCG over millions of interactions, a line a model."""
    metric = next(name for name in reversed(found.metrics) if name.startswith("ndcg"))
    drawn = {f"domain-{number}": _figure(found, domain, metric) for number, domain in enumerate(found.users, 1)}
    most = max(point.millions for points in found.points.values() for point in points)
    for figure in drawn.values():  # one axis for all domains; a domain of one set alone would have one below zero
        figure.update_xaxes(range=[0, 1.05 * most], exponentformat="none")
    return drawn


def _figure(found: Scenarios, domain: str, metric: str) -> go.Figure:
    figure = go.Figure()
    for place, model in enumerate(found.points):
        points = found.of_domain(model, domain)
        spreads = [point.row.std(domain, metric) for point in points]
        figure.add_scatter(
            x=[point.millions for point in points],
            y=[point.row.mean(domain, metric) for point in points],
            error_y={"type": "data", "array": spreads, "visible": all(s == s for s in spreads), "thickness": 1.2},
            customdata=[", ".join(point.domains) for point in points],
            hovertemplate=f"%{{customdata}}: %{{y:.4f}}<extra>{model}</extra>",
            name=model,
            mode="lines+markers",
            **line(place),
        )
        figure.data[-1].marker.size = 9
    figure.update_yaxes(rangemode="tozero", exponentformat="none")  # 0.0002, not 200µ
    name = short(metric).replace("N@", "NDCG@")
    return finished(figure.update_layout(title=domain, xaxis_title="million interactions", yaxis_title=name))
