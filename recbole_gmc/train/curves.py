"""The curves of a stage in TensorBoard, beside those of the other stages."""

from __future__ import annotations

from typing import Any


class StageCurves:
    """RecBole's TensorBoard writer, its scalars named after the stage: every stage counts its epochs from 0.

    Args:
        writer: RecBole's.
        stage: such as ``lora:Books``, whose losses are then ``Loss/Train/lora:Books``.
    """

    def __init__(self, writer: Any, stage: str) -> None:
        self.writer, self.stage = writer, stage

    def add_scalar(self, tag: str, value: Any, step: int | None = None, **more: Any) -> None:
        self.writer.add_scalar(f"{tag}/{self.stage}", value, step, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)
