"""GMC inside one ``fit`` of a RecBole Trainer: semantic IDs, unified recommender, one adapter a domain."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import calculate_valid_score, set_color
from torch import Tensor

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.errors import RunError
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.generative import GenerativeRecommender
from recbole_gmc.places import cache_dir, run_dir
from recbole_gmc.settings import LoraSettings, SharingSettings, read
from recbole_gmc.train import estimate, run_files, unified_cache, writing
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.config_json import to_json
from recbole_gmc.train.prepare import Prepared, refuse_unfit, semantic_ids
from recbole_gmc.train.ranking_trainer import Result
from recbole_gmc.train.stage import Stage
from recbole_gmc.train.stages import StageTrainer
from recbole_gmc.train.state import Progress
from recbole_gmc.train.unified_cache import Unified

LEAST_CHUNK = 256  # tokens: about three long histories


class GMCTrainer(StageTrainer):
    """Semantic IDs, then the unified recommender, then one adapter a domain; or what ``Stage.planned`` says instead.

    A batch is i.i.d.; its histories are packed into rows of a few widths.
    """

    model: GenerativeRecommender

    def __init__(self, config: Config, model: GenerativeRecommender) -> None:
        if model.semantic_ids is None and not config["resume"]:
            self.refuse_unfit(config, model.items)  # before RecBole's Trainer makes the run's folder
        super().__init__(config, model)
        self.lora, self.sharing = read(LoraSettings, config), read(SharingSettings, config)
        self.plan = Stage.planned(config, self.settings, self.lora, self.sharing, model.items.domains)

    # ---- semantic IDs, which another model may make in its own way ------------------------------------------------

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        """Raises ``GMCError`` for what the run would need and not find, before any work."""
        refuse_unfit(config, items)

    def _make_ids(self, dataset: GMCDataset, show_progress: bool) -> Prepared:
        return semantic_ids(self.config, dataset, self.device, show_progress)

    # ---- the stages ----------------------------------------------------------------------------------------------

    def _prepare(self, dataset: Any, train: SequenceRows, watched: SequenceRows | None, show_progress: bool) -> None:
        if self.model.label:
            self.logger.info(f"{self.config['model']} in a {self.model.label}")
        self._set_ids(dataset, show_progress)
        self._say_how_long(self._units(train), watched)

    def _say_how_long(self, units: SequenceRows, watched: SequenceRows | None) -> None:
        """Logs how long the stages that are not done yet will take. No weight and no random state changes."""
        left = [stage for stage in self.plan if stage.name not in self.record.done]
        if not left:
            return
        loads = [estimate.Load(stage, self._count(units, stage), self._count(watched, stage)) for stage in left]
        adapters = self.model.adapters
        if adapters is not None:  # resumed: the backbone is frozen, and only a stage's own adapter has a gradient
            adapters.activate(left[0].domain)
        self.model.train()
        first, total = estimate.of_stages(loads, self.backward, self.rank_watched, units, watched, self.device)
        self.model.zero_grad(set_to_none=True)
        if adapters is not None:
            adapters.activate(None)
        machine = f"{'bf16' if self.bf16 else 'fp32'} on {self.device.type}, {torch.get_num_threads()} threads"
        self.logger.info(
            set_color("Estimated time", "blue") + f": {estimate.told(first)} for the first epoch and its validation, "
            f"at most {estimate.told(total)} in all ({machine})"
        )

    def _count(self, rows: SequenceRows | None, stage: Stage) -> int:
        """The rows that a stage takes."""
        if rows is None or stage.domain is None:
            return len(rows or ())
        return int((rows.domain == self.model.items.domains.index(stage.domain)).sum())

    def _stages(
        self, train: SequenceRows, valid: SequenceRows | None, watched: SequenceRows | None, loop: dict[str, Any]
    ) -> None:
        own = [stage for stage in self.plan if stage.domain is not None]
        if len(own) < len(self.plan):
            self._fit_unified(self.plan[0], train, watched, loop)
        if own:
            self._fit_domains(own, train, valid, watched, loop)

    def _set_ids(self, dataset: Any, show_progress: bool) -> None:
        if self.record.inputs:  # resumed: the IDs came with the checkpoint
            run_files.refuse_changed(dataset, self.record.inputs)
            return
        started = perf_counter()
        made = self._make_ids(dataset, show_progress)
        self.model.set_inputs(made.ids, made.text)
        if made.residuals:
            run_files.write_residuals(run_dir(self.config), made.residuals)
        self.record.tokenizer = made.quality
        self.record.inputs = {**made.inputs, **run_files.input_hashes(dataset)}
        self.record.spend("tokenizer", perf_counter() - started)

    def _fit_unified(
        self, stage: Stage, train: SequenceRows, watched: SequenceRows | None, loop: dict[str, Any]
    ) -> None:
        if stage.name in self.record.done:
            return
        if self._pending is not None:
            self._run(stage, train, watched, loop)
            return
        cache, key = cache_dir(self.config), self._content_of(stage, train, watched)
        kept = self.settings.budget_minutes is None  # else it may end with nothing to wait for
        with unified_cache.turn(cache, key) if kept else nullcontext():
            found = unified_cache.get(cache, key)
            if found is not None:
                self._take(stage, found)
                return
            self._run(stage, train, watched, loop)
            if not self.record.limited:
                curve = [entry for entry in self.record.curve if entry["stage"] == stage.name]
                unified_cache.put(cache, key, Unified(self.model.plain_state(), curve, self.record.seconds[stage.name]))

    def _take(self, stage: Stage, found: Unified) -> None:
        """What an earlier run, or another process, has trained."""
        self.model.network.load_state_dict(found.weights)
        self.record.curve += found.curve
        self.record.spend(stage.name, found.seconds)
        self.record.reused.append(stage.name)
        self._finish(stage)

    def _content_of(self, stage: Stage, train: SequenceRows, watched: SequenceRows | None) -> str:
        """The hash of all that decides the weights: IDs, rows, initial weights, schedule, arithmetic, the choice."""
        arithmetic = [
            self.device.type,
            self.bf16,
            torch.__version__,
            self.settings.chunk_tokens,
            torch.get_num_threads(),
        ]
        settings = {name: self.config[name] for name in unified_cache.SETTINGS}
        rows = [rows for rows in (train, watched) if rows is not None]
        return unified_cache.key(self.model.starting_point(), stage, settings, arithmetic, rows)

    def _fit_domains(
        self,
        stages: list[Stage],
        train: SequenceRows,
        valid: SequenceRows | None,
        watched: SequenceRows | None,
        loop: dict[str, Any],
    ) -> None:
        self._seed("adapters")
        adapters = self.model.adapters or self.model.add_adapters()
        before = adapters.backbone_fingerprint()
        budget = self.budget
        for position, stage in enumerate(stages):
            if not self.sharing.recommender and stage.name not in self.record.done:
                # No domain is left with weights that nothing trained.
                waiting = [one for one in stages if one.name not in self.record.done]
                self.budget = self._share(budget, len(waiting), stage.name)
            adapters.activate(stage.domain)
            # A domain without validation users is trained as RecBole does without validation data: all epochs.
            seen, every = ((rows and rows.of_domain(position)) or None for rows in (watched, valid))
            self._run(stage, train.of_domain(position), seen, loop, every)
        adapters.activate(None)
        self.budget = budget
        if adapters.backbone_fingerprint() != before:
            raise RunError("the unified recommender changed while its adapters were trained", mend="This is a bug")

    @property
    def _adapting(self) -> bool:
        return self.stage.domain is not None and self.sharing.recommender

    def _begin(self, watched: SequenceRows | None) -> None:
        """What changes nothing of the unified recommender, as an adapter does at its start, is a candidate."""
        if self._adapting and watched is not None and self.start_epoch == 0:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(watched)

    def _end(self, every: SequenceRows | None) -> None:
        if self._adapting and every is not None:
            self._keep_the_better(every)

    def _keep_the_better(self, valid: SequenceRows) -> None:
        """All validation users decide between the unified recommender with the stage's changes and without."""
        trained, score = self.snapshot(), calculate_valid_score(self._measure(valid), self.valid_metric)
        self.restore(self.model.adapters.identity(self.stage.domain))
        without = calculate_valid_score(self._measure(valid), self.valid_metric)
        if better := score > without:
            self.restore(trained)
        kept = "kept" if better else "not kept"
        what = "Adapter" if self.lora.kind == "lora" else "Fine-tuning"
        self.logger.info(
            f"{what} of {self.stage.domain} {kept}: {self.valid_metric} {score:.4f} with, {without:.4f} without"
        )

    def _trained(self) -> list[torch.nn.Parameter]:
        if self.stage.domain is None:
            return list(self.model.network.parameters())
        return list(self.model.adapters.train_parameters(self.stage.domain))

    def backward(self, rows: SequenceRows) -> Tensor:
        """Adds the gradient of the mean loss of an i.i.d. batch.

        Once the device has run out of memory, in smaller chunks: same batch, same gradient but for dropout's masks.

        Raises:
            torch.OutOfMemoryError: even the smallest chunks are too large.
        """
        while (loss := self._gradient_in_chunks(rows)) is None:
            self.model.zero_grad(set_to_none=True)  # of the chunks that went well
            torch.cuda.empty_cache()
            self.settings = replace(self.settings, chunk_tokens=self.settings.chunk_tokens // 2)
            self.logger.warning(f"Out of memory: from here on chunks of {self.settings.chunk_tokens:,} tokens")
        return loss

    def _gradient_in_chunks(self, rows: SequenceRows) -> Tensor | None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        try:
            return self.model.backward(rows, dtype, self.settings.chunk_tokens)
        except torch.OutOfMemoryError:  # what it holds is free once this block is left
            if self.settings.chunk_tokens <= LEAST_CHUNK:
                raise
        return None

    # ---- weights and files ---------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of what the stage trains."""
        if self.stage.domain is not None:
            return self.model.adapters.snapshot(self.stage.domain)
        return {name: tensor.detach().clone() for name, tensor in self.model.network.state_dict().items()}

    def restore(self, weights: dict[str, Tensor]) -> None:
        if self.stage.domain is not None:
            self.model.adapters.restore(self.stage.domain, weights)
        else:
            self.model.network.load_state_dict(weights)

    def _save(self, progress: Progress) -> None:
        model, folder = self.model, Path(self.saved_model_file)
        writing.point(run_dir(self.config), folder)
        writing.save(
            folder,
            config=to_json(self.config),
            ids=model.semantic_ids,
            t5=model.plain_state(),
            adapters=model.adapters,
            progress=progress,
            text=model.text,
            mix=model.mix,
        )

    def _put(self, found: Checkpoint) -> None:
        run_files.put(found, self.model)

    def _write_results(self, table: TopKTable, result: Result, rows: SequenceRows, **more: Any) -> None:
        """``more`` stands in result.json, too."""
        model = self.model
        run_files.write_ids(run_dir(self.config), model.semantic_ids)
        weights = run_files.hash_of_weights({domain: model.plain_state(domain) for domain in model.items.domains})
        more = {"parameters": run_files.parameters(model), "tokenizer": self.record.tokenizer, **more}
        self._publish(table, result, weights, **more)
