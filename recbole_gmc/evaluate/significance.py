"""Whether one model is above another: a paired bootstrap over users, then over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
AT_ONCE = 500  # resamples, which bounds memory


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs in the mean over users and seeds, its percentile interval, and a two-sided p."""

    ours: float
    theirs: float
    low: float
    high: float
    p: float

    @property
    def mean(self) -> float:
        return self.ours - self.theirs

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Difference:
    """Draws users with replacement, the same for both sides, then the seeds of each side (Efron and Tibshirani 1993).

    Args:
        ours, theirs: float [S, n], one value a seed and user; the users are the same and in the same order, the seeds
            may differ in number. With one seed nothing is known of the spread over seeds, and the interval is of the
            users alone; with few it is too narrow in this part, by (S - 1) / S in the variance.

    Returns:
        The interval of ``level``. ``p`` is twice the smaller share of resamples on one side of zero, the sample itself
        counted among them, so it is below 1 - ``level`` where the interval leaves out zero.

    Example: users with the differences 1, 1 and 1 give the interval 1 to 1 and the least p, 2 / (resamples + 1).
    """
    draw = np.random.default_rng(seed)
    # Users with equal values are drawn together: most have the target in no list, so there are few groups.
    values, alike = np.unique(np.concatenate([ours, theirs]), axis=1, return_counts=True)
    means, users = [], ours.shape[1]
    for start in range(0, resamples, AT_ONCE):
        times = draw.multinomial(users, alike / users, size=min(AT_ONCE, resamples - start))
        means.append(times.astype(float) @ values.T / users)
    of_seed = np.concatenate(means)  # [resamples, seeds of both]
    sides = of_seed[:, : len(ours)], of_seed[:, len(ours) :]
    first, second = (_over_seeds(side, draw) for side in sides)
    found = np.round(first - second, 12)  # equal sums of unequal terms are equal
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    rarer = min((found <= 0).sum(), (found >= 0).sum())
    p = min(1.0, 2 * (1 + int(rarer)) / (resamples + 1))
    return Difference(float(ours.mean()), float(theirs.mean()), float(low), float(high), p)


def _over_seeds(means: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """[resamples, S] to [resamples]: the mean over S seeds drawn with replacement."""
    picked = draw.integers(means.shape[1], size=means.shape)
    return np.take_along_axis(means, picked, 1).mean(1)
