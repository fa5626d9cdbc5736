"""The paired bootstrap: against scipy's, and against distributions by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recbole_gmc.evaluate.significance import paired_bootstrap


def test_one_seed_is_scipy_s_interval():
    draw = np.random.default_rng(3)
    ours, theirs = draw.random((1, 400)) * (draw.random((1, 400)) < 0.4), draw.random((1, 400)) * 0.3
    found = paired_bootstrap(ours, theirs)
    theirs_found = stats.bootstrap((ours[0] - theirs[0],), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert found.mean == pytest.approx((ours - theirs).mean())
    interval = theirs_found.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=2e-3)


def test_two_users_by_hand():
    """Of the four draws of two users with the differences 1 and 0 the means are 0, 1/2, 1/2 and 1."""
    found = paired_bootstrap(np.array([[1.0, 0.5]]), np.array([[0.0, 0.5]]))
    assert (found.low, found.high) == (0, 1) and not found.shown
    assert found.p == pytest.approx(2 * 0.25, abs=0.02)


def test_two_seeds_by_hand():
    """Users agree, but one of our seeds is 1 above the other side and one equal to it: 0, 1/2, 1/2 and 1 again."""
    found = paired_bootstrap(np.array([[1.0] * 50, [0.0] * 50]), np.zeros((3, 50)))
    assert (found.ours, found.theirs, found.low, found.high) == (0.5, 0, 0, 1) and not found.shown
    assert found.p == pytest.approx(0.5, abs=0.02)


def test_both_sides_have_the_same_users():
    """Users differ far more than the sides: unpaired, nothing would be shown."""
    draw = np.random.default_rng(5)
    users = draw.random((1, 300)) * 100
    found = paired_bootstrap(users + 0.1 + 0.01 * draw.random((1, 300)), users)
    assert found.shown and found.low > 0.1 and found.p == pytest.approx(2 / 10_001)
    mirrored = paired_bootstrap(users, users + 0.1)
    assert mirrored.shown and mirrored.mean == pytest.approx(-0.1) and mirrored.p == pytest.approx(2 / 10_001)


def test_equal_sides_show_nothing():
    values = np.random.default_rng(7).random((2, 30))
    found = paired_bootstrap(values[:1], values[:1])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1) and not found.shown
