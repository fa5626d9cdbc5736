"""What a search leaves: the best settings as a property file, a table of all trials, two plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from texttable import Texttable

from recbole_gmc.files import new_file
from recbole_gmc.tune.trial import Trial

BEST, TABLE = "best.yaml", "trials.csv"
PLOTS = ("history.html", "parallel.html")


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the highest validation score; the first of equal ones."""
    done = [trial for trial in trials if trial.state == "done"]
    return max(done, key=lambda trial: trial.score, default=None)


def write(folder: Path, trials: Sequence[Trial], metric: str, command: str, again: str) -> None:
    """best.yaml (if a trial was finished), trials.csv and the plots.

    Args:
        command: that of the search.
        again: a run with the best settings on top of those that all trials had.
    """
    best = best_of(trials)
    if best is not None:
        with new_file(folder / BEST) as file:
            file.write(f"# The best of {len(trials)} trials, validation {metric} {best.score:.6f} (trial {best.id}).\n")
            file.write(f"# {command}\n# It holds what was searched alone. The run itself:\n# {again}\n")
            yaml.safe_dump(dict(best.settings), file, sort_keys=False, default_flow_style=None)
    names = list(trials[0].settings) if trials else []
    with new_file(folder / TABLE) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["trial", "state", "score", "epochs", "seconds", "reused", *names, "error"])
        for trial in trials:
            given = [_text(trial.settings[name]) for name in names]
            score = "" if trial.score is None else repr(trial.score)
            facts = [trial.id, trial.state, score, trial.epochs, f"{trial.seconds:.1f}", " ".join(trial.reused)]
            rows.writerow([*facts, *given, trial.error])
    scored = [trial for trial in trials if trial.score is not None]
    for name, figure in zip(PLOTS, (history(scored, metric), parallel(scored, metric)), strict=True):
        with new_file(folder / name) as file:
            file.write(figure.to_html(include_plotlyjs=True, full_html=True))


def draw(trials: Sequence[Trial], metric: str, most: int = 10) -> str:
    """The best trials as a table for the terminal."""
    names = list(trials[0].settings)
    table = Texttable(max_width=0)
    table.set_deco(Texttable.HEADER)
    table.set_cols_dtype(["t"] * (4 + len(names)))
    table.set_cols_align(["l", "l", "r", "r"] + ["r"] * len(names))
    table.header(["trial", "state", f"valid {metric.lower()}", "epochs", *names])
    ranked = sorted(trials, key=lambda trial: (trial.state != "done", -(trial.score or 0.0)))
    for trial in ranked[:most]:
        score = "-" if trial.score is None else f"{trial.score:.4f}"
        given = [_text(trial.settings[name], 4) for name in names]
        table.add_row([trial.id, trial.state, score, trial.epochs, *given])
    if len(trials) > most:
        getLogger().info(f"{len(trials) - most} more trials are in {TABLE}")
    return table.draw()


def history(trials: Sequence[Trial], metric: str) -> Any:
    """Score of each trial in the order of the search, and the best so far."""
    import plotly.graph_objects as go

    numbers = list(range(1, len(trials) + 1))
    scores = [trial.score for trial in trials]
    best = [max(scores[: number + 1]) for number in range(len(scores))]
    words = [", ".join(f"{name} {_text(value, 6)}" for name, value in trial.settings.items()) for trial in trials]
    marks = {"size": 9, "color": "#0072B2", "symbol": ["circle" if t.state == "done" else "x" for t in trials]}
    figure = go.Figure()
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line={"color": "#D55E00", "shape": "hv"})
    figure.add_scatter(x=numbers, y=scores, mode="markers", name="trial", text=words, marker=marks)
    figure.update_layout(
        title="History of the search",
        xaxis_title="trial",
        yaxis_title=f"validation {metric}",
        template="plotly_white",
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
    )
    return figure


def parallel(trials: Sequence[Trial], metric: str) -> Any:
    """One line a trial through its settings to its score."""
    import plotly.graph_objects as go

    names = list(trials[0].settings) if trials else []
    axes = [_axis(name, [trial.settings[name] for trial in trials]) for name in names]
    scores = [trial.score for trial in trials]
    axes.append({"label": f"validation {metric}", "values": scores})
    line = {"color": scores, "colorscale": "Cividis", "showscale": True}
    figure = go.Figure(go.Parcoords(dimensions=axes, line=line))
    figure.update_layout(title="Settings and scores of all trials", template="plotly_white", margin={"l": 90, "r": 60})
    return figure


def _axis(name: str, given: Sequence[Any]) -> dict[str, Any]:
    """Numbers as they are; anything else as its place among the values tried."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        return {"label": name, "values": list(given)}
    words = sorted({_text(value) for value in given})
    return {
        "label": name,
        "values": [words.index(_text(value)) for value in given],
        "tickvals": list(range(len(words))),
        "ticktext": words,
    }


def _text(value: Any, digits: int | None = None) -> str:
    if isinstance(value, float):
        return repr(value) if digits is None else f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value)
