"""The curves of a stage, in TensorBoard and in Weights & Biases, beside those of the other stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class _Named:
    """A writer of RecBole's, its curves named after the stage: every stage counts its epochs from 0."""

    def __init__(self, writer: Any, stage: str) -> None:
        self.writer, self.stage = writer, stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class StageCurves(_Named):
    """For TensorBoard: losses of the stage ``lora:Books`` are ``Loss/Train/lora:Books``."""

    def add_scalar(self, tag: str, value: Any, step: int | None = None, **more: Any) -> None:
        self.writer.add_scalar(f"{tag}/{self.stage}", value, step, **more)


class StageMetrics(_Named):
    """For Weights & Biases: they are ``train/lora:Books/train_loss``, over ``train_step`` as all of ``train/*``."""

    def log_metrics(self, metrics: Mapping[str, Any], head: str = "train", commit: bool = True) -> None:
        self.writer.log_metrics(metrics, head=f"{head}/{self.stage}", commit=commit)


@contextmanager
def named_after(stage: str, trainer: Any) -> Iterator[None]:
    """Lets RecBole's loop write the curves of a stage."""
    tensorboard, wandb = trainer.tensorboard, trainer.wandblogger
    trainer.tensorboard, trainer.wandblogger = StageCurves(tensorboard, stage), StageMetrics(wandb, stage)
    try:
        yield
    finally:
        trainer.tensorboard, trainer.wandblogger = tensorboard, wandb
