"""One stage of training: which parameters, how long, how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from recbole.config import Config

from recbole_gmc.settings import LoraSettings, SharingSettings, TrainSettings


@dataclass(frozen=True)
class Stage:
    """Either the unified stage (``domain`` is ``None``) or what is trained for one domain."""

    name: str
    domain: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    eval_step: int
    stopping_step: int
    warmup_ratio: float = 0.0
    schedule: str = "constant"

    @classmethod
    def unified(cls, config: Config, train: TrainSettings) -> Stage:
        return cls(
            name="unified",
            domain=None,
            epochs=config["epochs"],
            batch_size=config["train_batch_size"],
            learning_rate=config["learning_rate"],
            weight_decay=config["weight_decay"],
            eval_step=config["eval_step"],
            stopping_step=config["stopping_step"],
            warmup_ratio=train.warmup_ratio,
            schedule=train.schedule,
        )

    @classmethod
    def planned(
        cls,
        config: Config,
        train: TrainSettings,
        lora: LoraSettings,
        sharing: SharingSettings,
        domains: Sequence[str],
    ) -> tuple[Stage, ...]:
        """All stages of a run, in their order."""
        whole = cls.unified(config, train)
        if not sharing.recommender:
            return tuple(replace(whole, name=f"alone:{domain}", domain=domain) for domain in domains)
        adapted = domains if lora.enabled and lora.epochs else ()
        return whole, *(cls.adapter(domain, lora) for domain in adapted)

    @classmethod
    def adapter(cls, domain: str, lora: LoraSettings) -> Stage:
        return cls(
            name=f"{lora.kind}:{domain}",
            domain=domain,
            epochs=lora.epochs,
            batch_size=lora.batch_size,
            learning_rate=lora.learning_rate,
            weight_decay=lora.weight_decay,
            eval_step=lora.eval_step,
            stopping_step=lora.stopping_step,
        )

    def rate_at(self, rows: int) -> Callable[[int], float]:
        """The factor on the learning rate at each optimiser step, for a training set of so many rows.

        Linear warm-up over ``warmup_ratio`` of all steps, then cosine or linear to zero, or constant.
        """
        total = self.epochs * math.ceil(rows / self.batch_size)
        warmup = math.ceil(self.warmup_ratio * total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            left = 1.0 - (step - warmup) / max(1, total - warmup)
            if self.schedule == "cosine":
                return 0.5 * (1.0 - math.cos(math.pi * max(0.0, left)))
            return max(0.0, left) if self.schedule == "linear" else 1.0

        return factor
