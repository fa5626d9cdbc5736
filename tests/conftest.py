"""RecBole is imported after the plugin, as in every example; one thread, since small work gains nothing from two."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

import recbole_gmc  # noqa: E402, F401

torch.set_num_threads(1)


@pytest.fixture
def own_arguments(monkeypatch):
    """RecBole reads ``sys.argv``, which is not to be that of pytest."""
    monkeypatch.setattr(sys, "argv", ["test"])
