"""The semantic IDs of some runs, looked at: figures by group, and the numbers that stand in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger

import plotly.graph_objects as go

from recbole_gmc.errors import DependencyError
from recbole_gmc.report import id_figures
from recbole_gmc.report.codes import Codes, codes_of, embeddings_of, residuals_of
from recbole_gmc.report.runs import Run
from recbole_gmc.report.similarity import Similarity, similarities
from recbole_gmc.tokenizer import quality, residuals

logger = getLogger("recbole_gmc.report")

LEARNED = ("rqvae", "rkmeans")  # the ways of making IDs that leave residuals
SIMILARITY = "Do near items share codes?"


@dataclass(frozen=True)
class Level:
    """One level of a run's IDs: distinct codes, how evenly they are used, and how far each belongs to one domain."""

    run: str
    level: int
    used: int
    perplexity: float
    purity: float


@dataclass(frozen=True)
class Analysis:
    """Attributes:
    similarity: run name -> domain -> share of equal codes among near items.
    groups: title -> name -> figure.
    """

    levels: Sequence[Level] = ()
    similarity: Mapping[str, Mapping[str, Similarity]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, go.Figure]] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, go.Figure]:
        return {name: figure for group in self.groups.values() for name, figure in group.items()}


def analyse(runs: Sequence[Run], tsne_items: int, progress: bool = True) -> Analysis:
    """Looks at the IDs of all runs that have some.

    Args:
        tsne_items: items in a projection of residuals; 0 makes none.

    Raises:
        GMCError: damaged files of a run.
    """
    codes = {run.name: found for run in runs if (found := codes_of(run)) is not None}
    similar = {}
    for run in runs:
        if run.name in codes and (embeddings := embeddings_of(run, codes[run.name].items)) is not None:
            try:
                similar[run.name] = similarities(codes[run.name], embeddings, _seed(run))
            except DependencyError as error:
                logger.warning(f"no code similarity, as {error}")
                break
    groups: dict[str, Mapping[str, go.Figure]] = {
        SIMILARITY: _similarity_figures(similar),
        "The tokenizer while it learns": id_figures.learning(runs),
    }
    for number, run in enumerate(runs, 1):
        if run.name not in codes:
            continue
        mine, own = (f"-run{number}", f", {run.name}") if len(runs) > 1 else ("", "")
        made = id_figures.frequent_codes(codes[run.name])
        groups[f"Most frequent codes by domain{own}"] = {f"{name}{mine}": figure for name, figure in made.items()}
        if tsne_items and not residuals_of(run) and (run.result.get("tokenizer") or {}).get("method") in LEARNED:
            logger.warning(f"{run.name}: no t-SNE, as its folder holds no {residuals.NAME}; run it again")
        made = id_figures.planes(run, tsne_items, _seed(run), progress) if tsne_items else {}
        groups[f"What enters each level, by domain{own}"] = {f"{name}{mine}": figure for name, figure in made.items()}
    levels = [level for name, found in codes.items() for level in _levels(name, found)]
    return Analysis(levels, similar, {title: figures for title, figures in groups.items() if figures})


def _levels(name: str, codes: Codes) -> list[Level]:
    facts = zip(quality.codes_used(codes.codes), quality.perplexity(codes.codes), codes.purity, strict=True)
    return [Level(name, number, *fact) for number, fact in enumerate(facts, 1)]


def _similarity_figures(found: Mapping[str, Mapping[str, Similarity]]) -> dict[str, go.Figure]:
    domains = dict.fromkeys(domain for parts in found.values() for domain in parts)
    return {f"similarity-{number}": id_figures.similarity(found, domain) for number, domain in enumerate(domains, 1)}


def _seed(run: Run) -> int:
    seed = run.result.get("seed")
    return seed if isinstance(seed, int) and seed >= 0 else 0
