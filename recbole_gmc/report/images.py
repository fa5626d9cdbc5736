"""Figures as pictures that leave the page."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from recbole_gmc.files import TEMPORARY

KINDS = {"png": 2, "svg": 1}  # with their scale
AT_ONCE = 8  # figures that one start of the browser draws


def write(drawn: Mapping[str, Any], folder: Path, progress: bool = True) -> None:
    """PNG and SVG of each figure, on white, beside what else is in the folder; a page without them is whole, too."""
    try:
        import kaleido  # noqa: F401 - plotly's writer of images
    except ImportError:
        print("No PNG and SVG of the figures: kaleido is not installed", file=sys.stderr)
        return
    import plotly.io

    names = list(drawn)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            TemporaryDirectory(prefix=TEMPORARY, dir=folder) as work,
            tqdm(total=2 * len(names), desc="Pictures", disable=not progress) as bar,
        ):
            for start in range(0, len(names), AT_ONCE):
                wanted = [(name, kind) for name in names[start : start + AT_ONCE] for kind in KINDS]
                files = [Path(work, f"{name}.{kind}") for name, kind in wanted]
                images = [_on_white(drawn[name]) for name, _ in wanted]
                scales = [KINDS[kind] for _, kind in wanted]
                plotly.io.write_images(images, files, width=900, height=420, scale=scales)
                bar.update(len(wanted))
            for file in Path(work).iterdir():
                os.replace(file, folder / file.name)
    except Exception as error:  # kaleido raises many kinds where it finds no browser
        reason = " ".join(str(error).split())[:160]
        print(f"No PNG and SVG of the figures: {type(error).__name__}: {reason}", file=sys.stderr)


def _on_white(figure: Any) -> Any:
    """A copy on a white ground, for pictures that leave the page."""
    return figure.__class__(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")
