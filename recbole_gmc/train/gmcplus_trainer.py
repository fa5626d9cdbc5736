"""GMCPlus in the stages of GMC: windows in place of rows, and at the end one weight of the dense head a domain."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

from recbole.utils import calculate_valid_score, set_color
from texttable import Texttable

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.windows import Windows
from recbole_gmc.evaluate import results
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.logs import TABLES
from recbole_gmc.model.gmcplus import GMCPlus
from recbole_gmc.train.ranking_trainer import Result
from recbole_gmc.train.trainer import GMCTrainer

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
SOLE = {"codes": 0.0, "dense": 1.0}  # either ranking alone


class GMCPlusTrainer(GMCTrainer):
    """Semantic IDs, the unified decoder, one adapter a domain, and the weights of the mix, all chosen on validation."""

    model: GMCPlus

    def _units(self, train: SequenceRows) -> SequenceRows:
        return Windows.of_rows(train)

    def _stages(
        self, train: SequenceRows, valid: SequenceRows | None, watched: SequenceRows | None, loop: dict[str, Any]
    ) -> None:
        super()._stages(train, valid, watched, loop)
        if self.model.chooses_weight and valid is not None:
            started = perf_counter()
            self._choose_weights(valid)
            self.record.spend("dense_weight", perf_counter() - started)

    def _choose_weights(self, valid: SequenceRows) -> None:
        """The weight of the grid with the best validation score of each domain; of equals the smaller one."""
        for position, domain in enumerate(self.model.items.domains):
            rows, scores = valid.of_domain(position), {}
            for weight in GRID if len(rows) else ():
                self.model.mix[domain] = weight
                scores[weight] = calculate_valid_score(self._measure(rows), self.valid_metric)
            self.model.mix[domain] = max(scores, key=scores.get, default=self.model.first_weight)
            told = ", ".join(f"{weight:g}: {score:.4f}" for weight, score in scores.items())
            title = set_color("Weight of the dense head", "blue") + f" in {domain}"
            self.logger.info(f"{title}: {self.model.mix[domain]:g} ({self.valid_metric} on validation {told})")

    def rank_watched(self, rows: SequenceRows, show_progress: bool = False) -> TopKTable:
        """By beam search: a young network is unsure of everything, and an exact search would look at most prefixes."""
        final = self.model.decode
        self.model.decode = replace(final, search="beam")
        try:
            return super().rank_watched(rows, show_progress)
        finally:
            self.model.decode = final

    def _write_results(self, table: TopKTable, result: Result, rows: SequenceRows) -> None:
        """Beside the chosen mix the results have the rankings by the codes alone and by the dense head alone."""
        if not self.model.itemwise.dense:
            super()._write_results(table, result, rows)
            return
        chosen, found = dict(self.model.mix), {"mix": result}
        for name, weight in SOLE.items():
            self.model.mix = dict.fromkeys(chosen, weight)
            found[name] = self._measure(rows.to(self.device))
        self.model.mix = chosen
        mixes = {domain: {"weight": weight} for domain, weight in chosen.items()} | {"average": {}}
        for name in ("codes", "mix", "dense"):
            for domain, metrics in results.by_domain(found[name], table).items():
                mixes[domain][name] = {key: metrics[key] for key in metrics if key not in ("users", "items")}
            mixes["average"][name] = results.average(found[name], self.model.items.domains)
        TABLES.info(f"Rankings by the codes, by the chosen mix and by the dense head, test:\n{_draw(mixes)}")
        super()._write_results(table, result, rows, mixes=mixes)


def _draw(mixes: dict[str, dict[str, Any]]) -> str:
    """A row a domain and ranking; the mix with its weight of the dense head."""
    names = [name for name in mixes["average"]["mix"] if name.split("@")[0] in ("recall", "ndcg")]
    table = Texttable(max_width=0)
    table.set_deco(Texttable.HEADER)
    table.set_cols_align(["l", "l"] + ["r"] * len(names))
    table.set_cols_dtype(["t"] * (2 + len(names)))
    table.header(["domain", "ranking", *names])
    for domain, part in mixes.items():
        for ranking in ("codes", "mix", "dense"):
            weight = f" {part['weight']:g}" if ranking == "mix" and "weight" in part else ""
            table.add_row([domain, ranking + weight, *(f"{part[ranking].get(name, 0):.4f}" for name in names)])
    return table.draw()
