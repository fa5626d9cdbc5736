"""Training in stages, each one run of RecBole's ``fit`` loop, that can be stopped and resumed."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.utils import calculate_valid_score, dict2str, set_color
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.places import alone_in, refuse_run_in, run_dir
from recbole_gmc.train import config_json, run_files, state, step
from recbole_gmc.train.budget import Budget, BudgetReached
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.curves import named_after
from recbole_gmc.train.epoch import NOTHING, Begun, take_steps
from recbole_gmc.train.ranking_trainer import RankingTrainer, Result
from recbole_gmc.train.stage import Stage
from recbole_gmc.train.state import Progress, StageState


class StageTrainer(RankingTrainer):
    """RecBole's Trainer with its ``fit`` loop run once a stage.

    Epochs, validation, early stopping, log lines and TensorBoard are RecBole's. What differs is the unit of work: rows
    of item sequences that stay on the device, and evaluation from lists. A subclass says which stages there are
    (``_prepare``, ``_stages``), what a stage trains (``_trained``, ``snapshot``, ``restore``, ``backward``) and how
    a checkpoint is written and read (``_save``, ``_put``).
    """

    def __init__(self, config: Config, model: Any) -> None:
        super().__init__(config, model)
        self.shuffle = torch.Generator().manual_seed(config["seed"])
        self.stage: Stage | None = None
        self.best: dict[str, Tensor] = {}
        self.begun = NOTHING
        self._pending: Progress | None = None  # of a resumed checkpoint, until its stage is entered
        self._saved, self._clock = False, 0.0
        self.budget = Budget(None)

    # ---- what a subclass gives -----------------------------------------------------------------------------------

    @abstractmethod
    def _prepare(self, dataset: Any, train: SequenceRows, watched: SequenceRows | None, show_progress: bool) -> None:
        """Makes what the stages need; on a resumed run it came with the checkpoint."""

    @abstractmethod
    def _stages(
        self, train: SequenceRows, valid: SequenceRows | None, watched: SequenceRows | None, loop: dict[str, Any]
    ) -> None:
        """Calls ``_run`` once a stage."""

    @abstractmethod
    def _trained(self) -> list[torch.nn.Parameter]:
        """The parameters that the stage under way trains."""

    @abstractmethod
    def backward(self, rows: SequenceRows) -> Tensor:
        """Adds the gradient of the mean loss of an i.i.d. batch; returns that loss, detached."""

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """A copy of what the stage trains."""

    @abstractmethod
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Puts a ``snapshot`` back."""

    @abstractmethod
    def _save(self, progress: Progress) -> None:
        """Writes the checkpoint folder."""

    def _units(self, train: SequenceRows) -> SequenceRows:
        """What batches are drawn from: the rows one by one, unless a model takes several at once."""
        return train

    def _rows_an_epoch(self, train: SequenceRows) -> int:
        """How many of the rows an epoch takes."""
        return len(train)

    def _begin(self, watched: SequenceRows | None) -> None:
        """Before the epochs of a stage."""

    def _end(self, every: SequenceRows | None) -> None:
        """After the epochs of a stage, its best weights in place; ``every`` holds all its validation users."""

    # ---- the stages ----------------------------------------------------------------------------------------------

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Result | None]:
        """Runs all stages and leaves the best weights in memory and, if ``saved``, on disk.

        Returns:
            Validation score and result over all users, after the last stage.

        Raises:
            SettingError: the run's folder holds another run.
            RunError: another process is at work there, or loss or gradient is not a number.
        """
        if saved and not self._saved and not self.config["resume"]:
            refuse_run_in(run_dir(self.config))
        with alone_in(run_dir(self.config)) if saved else nullcontext():
            return self._fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def _fit(
        self, train_data: Any, valid_data: Any, verbose: bool, saved: bool, show_progress: bool, callback_fn: Any
    ) -> tuple[float, Result | None]:
        self._valid_data, self._saved = valid_data, saved
        if self.config["resume"]:
            self.resume_checkpoint(self.config["resume"])
        self.budget = Budget(self.settings.budget_minutes, self.record.cpu_seconds)
        dataset = train_data._dataset
        self.eval_collector.data_collect(train_data)
        train = SequenceRows.of(dataset)
        if self.settings.max_prefixes:
            train = train.last_prefixes(self.settings.max_prefixes)
        train = train.to(self.device)
        valid = SequenceRows.of(valid_data._dataset).to(self.device) if valid_data else None
        watched = self._watched(valid)
        self._prepare(dataset, train, watched, show_progress)
        if saved and self._pending is None:
            self.write()  # from here on the run can be resumed
        loop = {"verbose": verbose, "saved": saved, "show_progress": show_progress, "callback_fn": callback_fn}
        self._stages(train, valid, watched, loop)
        if valid is not None:
            table = self.rank(valid, tuple(valid_data._dataset.original_user_token(valid.user)), show_progress)
            result = self._metrics(table)
            self.best_valid_score = calculate_valid_score(result, self.valid_metric)
            self.best_valid_result = self._rounded(result)
            if verbose:
                self.logger.info(set_color("valid result", "blue") + ": \n" + dict2str(self.best_valid_result))
        if saved:
            self.write()
            if valid is not None:
                run_files.write_valid(run_dir(self.config), table)
        return self.best_valid_score, self.best_valid_result

    def _run(
        self,
        stage: Stage,
        train: SequenceRows,
        watched: SequenceRows | None,
        loop: dict[str, Any],
        every: SequenceRows | None = None,
    ) -> None:
        """One stage in RecBole's loop, its best weights put in place at the end."""
        if stage.name in self.record.done:
            return
        self._clock, train = perf_counter(), self._units(train)
        title = set_color("Stage", "pink") + f" {stage.name}"
        self.logger.info(f"{title}: {len(train):,} rows, {stage.epochs} epochs at most")
        self._enter(stage, self._rows_an_epoch(train))
        self._begin(watched)
        if len(train) and self.start_epoch < self.epochs:
            try:
                with named_after(stage.name, self):
                    super().fit(train, watched, **loop)
            except BudgetReached:
                self.record.limited = True
                self.logger.info(f"budget_minutes reached: {stage.name} ends with its best weights so far")
        if self.best:
            self.restore(self.best)
        self._end(every)
        self._spend()
        self._finish(stage)

    def _spend(self) -> None:
        """Writes down what the stage took since it was last asked, so that a stopped run loses none of it."""
        now = perf_counter()
        self.record.spend(self.stage.name, now - self._clock)
        self._clock = now

    def _finish(self, stage: Stage) -> None:
        self.record.done.append(stage.name)
        self.stage, self.best = None, {}
        if self._saved:
            self.write()

    def _share(self, whole: Budget, parts: int, what: str) -> Budget:
        """The part of the budget that ``what`` has, one of so many that are left."""
        return whole.part(parts, self.record.begun.setdefault(what, whole.spent()))

    def _seed(self, stage: str) -> None:
        """Each stage draws from a seed of its own, so it gives the same whether those before it ran or were reused."""
        seed = state.seed_of(self.config["seed"], stage)
        torch.manual_seed(seed)
        self.shuffle.manual_seed(seed)

    def _enter(self, stage: Stage, rows: int) -> None:
        """RecBole's counters and a fresh optimiser, or those of the resumed checkpoint if it stopped in this stage."""
        self.stage, self.best = stage, {}
        self._seed(stage.name)
        self.epochs, self.eval_step = stage.epochs, min(stage.eval_step, stage.epochs)
        self.stopping_step = stage.stopping_step
        self.start_epoch = self.cur_step = 0
        self.begun = NOTHING
        self.best_valid_score = -np.inf  # more is better in every metric of lists
        self.best_valid_result = None
        self.optimizer = self._build_optimizer(
            params=self._trained(), learning_rate=stage.learning_rate, weight_decay=stage.weight_decay
        )
        self.scheduler = LambdaLR(self.optimizer, stage.rate_at(rows))
        under_way = self._pending.stage if self._pending is not None else None
        if under_way is not None and under_way.stage == stage.name:
            state.put_random(self._pending.tensors, self.shuffle)
            under_way.put_back(self)
            inside = f", batch {self.begun.batches}" if self.begun.batches else ""
            self.logger.info(f"Going on with {stage.name} at epoch {self.start_epoch}{inside}")
        self._pending = None

    # ---- an epoch ------------------------------------------------------------------------------------------------

    def _train_epoch(
        self, train_data: SequenceRows, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Mean loss over the rows."""
        if self._saved and epoch_idx > self.start_epoch:  # the epoch before is finished, its validation included
            self.write(epoch_idx)
        self.budget.check()
        started = perf_counter()
        self.model.train()
        begun, self.begun = self.begun, NOTHING
        mean = take_steps(self, train_data, epoch_idx, begun, self._saved, show_progress)
        seconds = perf_counter() - started
        self.record.curve.append({"stage": self.stage.name, "epoch": epoch_idx, "loss": mean, "seconds": seconds})
        return mean

    def update(self, loss: Tensor, when: str) -> None:
        """One step of the optimiser; ``loss`` is what its gradients are of."""
        when = f"stage {self.stage.name}, {when}, seed {self.config['seed']}"
        mend = f"Lower the learning rate; the last good checkpoint is {self.saved_model_file}"
        step.update(self._trained(), self.optimizer, self.scheduler, self.clip_grad_norm, loss, when, mend)

    def _valid_epoch(self, valid_data: SequenceRows, show_progress: bool = False) -> tuple[float, Result]:
        result = self._metrics(self.rank_watched(valid_data, show_progress))
        score = calculate_valid_score(result, self.valid_metric)
        if score >= self.best_valid_score:
            self.best = self.snapshot()  # RecBole counts a tie as better, too
        curve = self.record.curve
        if not curve or curve[-1]["stage"] != self.stage.name:
            curve.append({"stage": self.stage.name, "epoch": -1})
        curve[-1]["valid"] = score
        return score, self._rounded(result)

    # ---- files ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole calls this at an improvement; the folder is written once an epoch, when all of it is known."""

    def write(self, next_epoch: int = 0, begun: Begun = NOTHING) -> None:
        """The best weights so far as the model, the latest ones as the place to go on from.

        Args:
            next_epoch: the first one that is not finished.
            begun: what is done of it.
        """
        self.record.cpu_seconds = self.budget.spent()
        under_way = None
        if self.stage is not None:
            self._spend()
            under_way = StageState.of(self, next_epoch, begun)
        progress = Progress.of(self.record, self.shuffle, under_way)
        if self.best:
            self.restore(self.best)
        self._save(progress)
        if self.best:
            self.restore(under_way.latest)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """``fit`` then goes on from where the run stood of this run folder or checkpoint folder.

        Raises:
            CheckpointError: no checkpoint, or one of other settings.
        """
        checkpoint = Checkpoint(resume_file)
        config_json.refuse_other(checkpoint.config, self.config, str(checkpoint.folder))
        self.saved_model_file = str(checkpoint.folder)
        self._pending = checkpoint.progress()
        self.record = self._pending.record
        self._put(checkpoint)
        self.logger.info(f"Checkpoint loaded. Stages done: {', '.join(self.record.done) or 'none'}")
