"""Row 15 of the fault matrix: a signal lets the step end, a checkpoint is left, and the run goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from run_help import environment, python, tiny, write_both

from recbole_gmc.files import read_json
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.signals import StopSignals

# A run that sends itself a signal in the middle of its sixth step.
STOPPED = """
import os, signal, sys
from recbole_gmc import cli
from recbole_gmc.train.stages import StageTrainer

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it may be ignored
number, after = int(sys.argv.pop()), [6]
update = StageTrainer.update

def stopped(self, *args):
    after[0] -= 1
    if after[0] == 0:
        os.kill(os.getpid(), number)
    update(self, *args)

StageTrainer.update = stopped
sys.exit(cli.main())
"""


def flags(root, name, model):
    settings = tiny(root, root / name, epochs=3, lora_epochs=1, dropout_rate=0.1, train_batch_size=32)
    if model == "UniSRec":
        kept = ("data_path", "run_dir", "domains", "show_progress", "MAX_ITEM_LIST_LENGTH", "epochs", "text_lsa_dim")
        settings = {key: settings[key] for key in kept}
        settings |= {"pretrain_epochs": 2, "hidden_size": 8, "inner_size": 8, "train_batch_size": 32, "n_exps": 2}
        settings |= {"pretrain_train_batch_size": 32}
    settings["cache_dir"] = str(root / f"cache-{name}")
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    write_both(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "number"), [("GMC", signal.SIGTERM), ("GMC", signal.SIGINT), ("UniSRec", signal.SIGTERM)]
)
def test_a_stopped_run_ends_as_one_that_never_stopped(root, model, number):
    whole, stopped, words = f"{model}-whole", f"{model}-{int(number)}", [f"--model={model}", "--dataset=tiny"]
    if not (root / whole).exists():
        python("-m", "recbole_gmc", *words, *flags(root, whole, model), cwd=root)
    command = [sys.executable, "-c", STOPPED, *words, *flags(root, stopped, model), str(int(number))]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 128 + number, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    stage = Checkpoint(root / stopped).progress().stage
    assert stage.optimiser_steps == 6 and stage.batches > 0, "the step under way was finished"
    assert not (root / stopped / "result.json").exists()
    again = python("-m", "recbole_gmc", f"--resume={root / stopped}", cwd=root)
    assert f", batch {stage.batches}" in again.stdout + again.stderr
    one, two = (read_json(root / name / "result.json") for name in (whole, stopped))
    assert one["hashes"] == two["hashes"] and one["average"] == two["average"]
    losses = [[(e["stage"], e["epoch"], e.get("loss")) for e in part["curve"]] for part in (one, two)]
    assert losses[0] == losses[1]


def test_a_second_signal_ends_at_once_and_others_handlers_stay():
    mine = []
    before = signal.signal(signal.SIGTERM, lambda *_: mine.append("mine"))
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert mine == ["mine"] and stop.received is None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as ended, StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
