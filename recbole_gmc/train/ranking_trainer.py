"""Evaluation from ranked lists inside RecBole's Trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from recbole.config import Config
from recbole.trainer import Trainer

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate.collector import ListEvaluator
from recbole_gmc.evaluate.ranking import rank_rows
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.model.of_domains import DomainsRecommender
from recbole_gmc.places import alone_in, checkpoint_dir, run_dir
from recbole_gmc.precision import use_bf16
from recbole_gmc.settings import TrainSettings, read
from recbole_gmc.train import run_files, state
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.memory import keep_freed_memory

Result = dict[str, float]


class RankingTrainer(Trainer, ABC):
    """A RecBole Trainer for a model that gives the best items instead of a score for every item."""

    model: DomainsRecommender

    def __init__(self, config: Config, model: DomainsRecommender) -> None:
        super().__init__(config, model)
        self.settings = read(TrainSettings, config)
        if self.settings.cpu_threads:
            torch.set_num_threads(self.settings.cpu_threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.bf16 = use_bf16(self.settings.precision, self.device, bool(self.enable_amp))
        self.lists = ListEvaluator(config, self.eval_collector)
        self.saved_model_file = str(checkpoint_dir(config))
        self.record = state.RunRecord()
        self._valid_data: Any = None

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Result | None:
        """RecBole's evaluate, from lists: plain keys for the user-weighted average, ``<domain>/<metric>`` for each.

        After ``fit``, evaluating other data than the validation set is the test: it writes the run's result files.

        Raises:
            RunError: a test, and another process is at work in the run's folder.
        """
        if not eval_data:
            return None
        tested = self._valid_data is not None and eval_data is not self._valid_data
        with alone_in(run_dir(self.config)) if tested else nullcontext():
            return self._evaluate(eval_data, load_best_model, model_file, show_progress, tested)

    def _evaluate(
        self, eval_data: Any, load_best_model: bool, model_file: Any, show_progress: bool, tested: bool
    ) -> Result:
        if load_best_model:
            checkpoint = Checkpoint(model_file or self.saved_model_file)
            self._put(checkpoint)
            self.logger.info(f"Loading model structure and parameters from {checkpoint.folder}")
        started = perf_counter()
        rows = SequenceRows.of(eval_data._dataset)
        users = tuple(eval_data._dataset.original_user_token(rows.user))
        table = self.rank(rows.to(self.device), users, show_progress)
        self._say_what_is_short(table)
        result = self._metrics(table)
        if tested:
            self.record.seconds["test"] = perf_counter() - started
            self._write_results(table, result, rows)
        self.wandblogger.log_eval_metrics(self._rounded(result), head="eval")
        return self._rounded(result)

    @abstractmethod
    def _put(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint into the model."""

    @abstractmethod
    def _write_results(self, table: TopKTable, result: Result, rows: SequenceRows) -> None:
        """``table`` holds the lists of ``rows``, the test users."""

    def _publish(self, table: TopKTable, result: Result, weights: str, **more: Any) -> None:
        """Writes topk.tsv and result.json, and shows the table on the terminal.

        Args:
            weights: one hash over all weights.
            more: what result.json says of this kind of model alone.
        """
        about = {
            "label": self.model.label,
            "validation": {
                "score": state.finite(self.best_valid_score),
                "metrics": dict(self.best_valid_result or {}),
            },
            "precision": "bf16" if self.bf16 else "fp32",
            **more,
        }
        run_files.publish(
            run_dir(self.config), table, run_files.summary(self.config, self.record, table, result, weights, **about)
        )

    def _say_what_is_short(self, table: TopKTable) -> None:
        if outside := int((table.target < 0).sum()):
            self.logger.warning(f"{outside} held-out items are not in the catalogue and count as misses")
        for domain, tokens in table.items.tokens.items():
            if len(tokens) < max(self.config["topk"]):
                self.logger.warning(
                    f"{domain} has {len(tokens)} items: its lists end before {max(self.config['topk'])}"
                )

    def rank(self, rows: SequenceRows, users: tuple[str, ...] = (), show_progress: bool = False) -> TopKTable:
        self.model.eval()
        items = self.model.items
        domains = tuple(items.domains[position] for position in rows.domain.unique().tolist())
        users = users or ("",) * len(rows)
        return rank_rows(self.model.recommender(domains), items, rows, users, show_progress)

    def rank_watched(self, rows: SequenceRows, show_progress: bool = False) -> TopKTable:
        """The lists that validate while training."""
        return self.rank(rows, show_progress=show_progress)

    def _measure(self, rows: SequenceRows, show_progress: bool = False) -> Result:
        return self._metrics(self.rank(rows, show_progress=show_progress))

    def _metrics(self, table: TopKTable) -> Result:
        return self.lists(table)

    def _rounded(self, result: Result) -> Result:
        places = self.config["metric_decimal_place"]
        return OrderedDict((name, round(value, places)) for name, value in result.items())

    def _watched(self, valid: SequenceRows | None) -> SequenceRows | None:
        """At most ``valid_users`` users a domain, the same ones all through training."""
        if valid is None or not self.settings.valid_users:
            return valid
        draw = torch.Generator().manual_seed(self.config["seed"])
        domain, kept = valid.domain.cpu(), []
        for position in domain.unique().tolist():
            users = (domain == position).nonzero().flatten()
            kept.append(users[torch.randperm(len(users), generator=draw)[: self.settings.valid_users]])
        return valid.select(torch.cat(kept).sort().values.to(self.device))
