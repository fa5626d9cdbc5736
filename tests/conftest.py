"""RecBole is imported after the plugin, as in every example; one thread, since small work gains nothing from two."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import torch  # noqa: E402

import recbole_gmc  # noqa: E402, F401

torch.set_num_threads(1)
