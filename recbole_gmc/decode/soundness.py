"""What a network gives must be numbers, or every list made of it would be an accident (faults, row 29)."""

from __future__ import annotations

import torch

from recbole_gmc.errors import GMCError


def refuse_broken(broken: torch.Tensor) -> None:
    """Raises ``GMCError`` if the network's output was no number anywhere, bool [...]."""
    if bool(broken.any()):
        raise GMCError(
            "the recommender's output is not a number",
            mend="Its weights are damaged or training diverged; go back to an earlier checkpoint or lower the "
            "learning rate",
        )
