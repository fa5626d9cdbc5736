"""The figures of a report, as plotly draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from recbole_gmc.report import facts
from recbole_gmc.report.facts import Groups, K
from recbole_gmc.report.runs import DomainData, Run

# Okabe and Ito's colours, which people with any common kind of colour blindness can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#B8A900")
DASHES = ("solid", "dash", "dot")  # of the lines that have a colour for the second and third time
PATTERNS = ("", "/", ".")  # likewise of bars
GREY = "#8c8c8c"  # to be seen on white and on black
FEW = 3  # runs whose bars stand side by side with room to read
HEIGHT = 380  # of a figure in the page
MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")


def all_of(runs: Sequence[Run], data: Mapping[str, DomainData]) -> dict[str, go.Figure]:
    """Name -> figure, for what there is to draw."""
    made = {
        "domains": by_domain(runs),
        "validation": curves(runs, "valid", "Validation score"),
        "loss": curves(runs, "loss", "Training loss"),
        "ranks": ranks(runs),
        "popularity": _grouped(runs, data, facts.by_popularity, "times the target stands in training rows"),
        "history": _grouped(runs, data, facts.by_length, "items in the user's history"),
    }
    return {name: finished(figure) for name, figure in made.items() if figure is not None}


def by_domain(runs: Sequence[Run]) -> go.Figure:
    """NDCG@10 of each run in each domain and on average."""
    figure = go.Figure()
    for place, run in enumerate(runs):
        parts = {**run.result["domains"], "average": run.result["average"]}
        if len(run.domains) == 1:
            parts.pop("average")
        values = [part.get(f"ndcg@{K}") for part in parts.values()]
        words = ["" if value is None else f"{value:.4f}".lstrip("0") for value in values]
        text = {"text": words, "textposition": "outside", "textangle": 0, "textfont": {"size": 10}, "cliponaxis": False}
        figure.add_bar(x=list(parts), y=values, name=run.name, marker=bar(place), **(text if len(runs) <= FEW else {}))
    return figure.update_layout(title=f"NDCG@{K} on test", barmode="group", yaxis_title=f"NDCG@{K}")


def curves(runs: Sequence[Run], what: str, words: str) -> go.Figure | None:
    """One figure of a run's curve by epoch, one stage after another; scores of adapters are of their own domain.

    Args:
        what: ``valid`` or ``loss``.
    """
    figure, drawn = go.Figure(), 0
    for run in runs:
        start, stages = 0, {}
        for entry in run.result.get("curve") or ():
            stages.setdefault(entry["stage"], []).append(entry)
        for stage, entries in stages.items():
            points = [(start + entry["epoch"] + 1, entry[what]) for entry in entries if what in entry]
            start = max(start, *(start + entry["epoch"] + 1 for entry in entries))
            if points:
                x, y = zip(*points, strict=True)
                name = f"{run.name}, {stage}" if len(runs) > 1 else stage
                figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", **line(drawn))
                drawn += 1
    return figure.update_layout(title=words, xaxis_title="epoch", yaxis_title=words.lower()) if drawn else None


def ranks(runs: Sequence[Run]) -> go.Figure:
    """How many targets stand at each place of the lists."""
    figure = go.Figure()
    for place, run in enumerate(runs):
        counts = facts.rank_counts(run.lists)
        where = {"x": list(range(1, len(counts) + 1)), "y": counts.tolist(), "name": run.name}
        if len(runs) <= FEW:
            figure.add_bar(**where, marker=bar(place))
        else:
            figure.add_scatter(**where, mode="lines+markers", **line(place))
    return figure.update_layout(
        title="Places of the hits", barmode="group", xaxis_title="place in the list", yaxis_title="test users"
    )


def _grouped(
    runs: Sequence[Run], data: Mapping[str, DomainData], measure: Callable[..., Groups | None], words: str
) -> go.Figure | None:
    figure = go.Figure()
    for place, run in enumerate(runs):
        groups = measure(run.lists, data)
        if groups is None:
            return None
        figure.add_bar(
            x=list(groups.labels),
            y=list(groups.means),
            error_y={"type": "data", "array": list(groups.errors), "color": GREY, "thickness": 1.2},
            customdata=list(groups.users),
            hovertemplate=f"%{{x}}: %{{y:.4f}}, %{{customdata:,}} users<extra>{run.name}</extra>",
            name=run.name,
            marker=bar(place),
        )
    figure.update_xaxes(type="category")
    return figure.update_layout(
        title=f"NDCG@{K} by {words}", barmode="group", xaxis_title=words, yaxis_title=f"NDCG@{K} ± std. error"
    )


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def line(place: int) -> dict[str, Any]:
    """The look of a line with marks: told apart by colour, mark and dash."""
    dash = DASHES[place // len(COLOURS) % len(DASHES)]
    return {"line": {"color": colour(place), "dash": dash}, "marker": {"symbol": MARKS[place % len(MARKS)]}}


def bar(place: int) -> dict[str, Any]:
    """The look of bars: told apart by colour and pattern."""
    return {"color": colour(place), "pattern": {"shape": PATTERNS[place // len(COLOURS) % len(PATTERNS)]}}


def finished(figure: go.Figure) -> go.Figure:
    """One look for all: no background of its own, so that it suits a light and a dark page."""
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)", automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)", automargin=True)
    figure.update_yaxes(title_standoff=12)
    return figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8c8c8c", "activecolor": "#0072B2"},
        margin={"l": 60, "r": 20, "t": 50, "b": 90},
        height=HEIGHT,
        colorway=list(COLOURS),
    )
