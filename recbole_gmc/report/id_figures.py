"""Figures of semantic IDs: how they were learned, what their levels tell apart, whether near items share codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from tqdm import tqdm

from recbole_gmc.report import projection
from recbole_gmc.report.codes import Codes, residuals_of
from recbole_gmc.report.figures import MARKS, bar, colour, finished, line
from recbole_gmc.report.runs import Run
from recbole_gmc.report.similarity import Similarity

LOSSES = {
    "loss": "loss",
    "reconstruction_loss": "reconstruction loss",
    "quantization_loss": "quantisation loss",
    "domain_loss": "domain loss",
    "reconstruction": "reconstruction / variance",
    "collision_rate": "collisions before the repair",
}
BARS = 100  # codes in a figure, as in the paper


def learning(runs: Sequence[Run]) -> dict[str, go.Figure]:
    """The tokenizers' losses and their use of codes by epoch; the stages before the recommender."""
    made = {}
    for number, (name, history) in enumerate(_histories(runs), 1):
        losses, use = go.Figure(), go.Figure()
        epochs = [entry["epoch"] for entry in history]
        for place, (key, words) in enumerate(LOSSES.items()):
            if key in history[-1]:
                values = [entry.get(key) for entry in history]
                losses.add_scatter(x=epochs, y=values, name=words, mode="lines+markers", **line(place))
        made[f"tokenizer-{number}"] = losses.update_layout(
            title=f"Losses{name}", xaxis_title="epoch", yaxis_title="loss, or share"
        )
        if "perplexity" not in history[-1]:  # a run of an earlier version
            continue
        for level in range(len(history[-1]["perplexity"])):
            values = [entry["perplexity"][level] for entry in history]
            used = [entry["codes_used"][level] for entry in history]
            look = {**line(level), "customdata": used}
            hover = "epoch %{x}: perplexity %{y:.1f}, %{customdata} codes used"
            use.add_scatter(x=epochs, y=values, name=f"level {level + 1}", hovertemplate=hover, **look)
        made[f"code-use-{number}"] = use.update_layout(
            title=f"Use of the codebooks{name}",
            xaxis_title="epoch",
            yaxis_title="perplexity",
            meta={"caption": "Perplexity: as many equally frequent codes would be as uncertain. Codes used: hover."},
        )
    return {name: finished(figure) for name, figure in made.items()}


def _histories(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What a title adds, and the looks at a tokenizer in training; a tokenizer a domain has one history each."""
    found = []
    for run in runs:
        figures = run.result.get("tokenizer") or {}
        own = f", {run.name}" if len(runs) > 1 else ""
        parts = figures.get("of_domain") or {"": figures}
        for domain, part in parts.items():
            if part.get("history"):
                found.append((f"{own}, {domain}" if domain else own, part["history"]))
    return found


def frequent_codes(codes: Codes) -> dict[str, go.Figure]:
    """A level: its most frequent codes, stacked by domain."""
    made = {}
    for level in range(codes.levels):
        names, shares = codes.most_frequent(level, BARS)
        figure = go.Figure()
        for place, (domain, counts) in enumerate(shares.items()):
            hover = f"code %{{customdata}}: %{{y:,}} items<extra>{domain}</extra>"
            places = list(range(1, len(names) + 1))
            look = {"marker": {**bar(place), "line": {"width": 0}}, "hovertemplate": hover}
            figure.add_bar(x=places, y=counts, customdata=names, name=domain, **look)
        figure.update_layout(
            title=f"Level {level + 1}",
            barmode="stack",
            bargap=0.1,
            xaxis_title=f"{len(names)} codes, the most frequent first",
            yaxis_title="items",
        )
        made[f"codes-{level + 1}"] = finished(figure)
    return made


def planes(run: Run, most: int, seed: int, progress: bool) -> dict[str, go.Figure]:
    """A level: the residual vectors that enter it, by t-SNE, coloured by domain."""
    residuals = projection.sampled(residuals_of(run), most, seed)
    levels = len(next(iter(residuals.values()))) if residuals else 0
    made = {}
    for level in tqdm(range(levels), desc=f"t-SNE, {run.name}", unit="level", disable=not (progress and levels)):
        points = projection.project(residuals, level, seed)
        if points is None:
            continue
        figure = go.Figure()
        for place, (domain, part) in enumerate(points.items()):
            marker = {"size": 5, "opacity": 0.85, "color": colour(place), "symbol": MARKS[place % len(MARKS)]}
            x, y = part.round(2).T.tolist()
            figure.add_scatter(x=x, y=y, mode="markers", name=domain, marker=marker, hoverinfo="name")
        counts = ", ".join(f"{part.shape[1]:,} of {domain}" for domain, part in residuals.items())
        apart = bool((run.result.get("tokenizer") or {}).get("of_domain"))
        own = " Each domain has a tokenizer and so a space of its own." if apart else ""
        caption = f"t-SNE of {counts}, drawn with seed {seed}.{own}"
        figure.update_layout(title=f"Level {level + 1}", meta={"caption": caption})
        figure.update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)
        made[f"residuals-{level + 1}"] = finished(figure).update_layout(legend_itemsizing="constant")
    return made


def similarity(found: Mapping[str, Mapping[str, Similarity]], domain: str) -> go.Figure:
    """Share of equal codes over the number of neighbours in one domain, a line a run.

    Args:
        found: run name -> domain -> similarity.
    """
    figure = go.Figure()
    for place, (name, parts) in enumerate(found.items()):
        if domain in parts:
            part = parts[domain]
            figure.add_scatter(x=part.ks, y=part.shares, name=name, mode="lines+markers", **line(place))
    figure.update_xaxes(type="log", tickvals=_ticks(found, domain), ticktext=[f"{k}" for k in _ticks(found, domain)])
    figure.update_layout(title=domain, xaxis_title="nearest items by text", yaxis_title="share of equal codes")
    return finished(figure)


def _ticks(found: Mapping[str, Mapping[str, Similarity]], domain: str) -> list[int]:
    return sorted({k for parts in found.values() if domain in parts for k in parts[domain].ks})
