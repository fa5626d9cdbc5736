"""Row 17 of the fault matrix: a disk that is full while a run saves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from run_help import python, run, tiny, write_planted
from safetensors.numpy import save_file

from recbole_gmc.cache import Cache
from recbole_gmc.errors import CheckpointError, RunError
from recbole_gmc.files import hash_file, telling_where
from recbole_gmc.train.checkpoint import Checkpoint

RESUME = """
import resource, sys
import recbole_gmc.cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a disk on which no more fits
sys.exit(recbole_gmc.cli.main(["--resume=" + sys.argv.pop()]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
def test_the_last_good_checkpoint_stays(tmp_path):
    write_planted(tmp_path, "Big", seed=1)
    write_planted(tmp_path, "Small", seed=2)
    folder = tmp_path / "run"
    before = run(tiny(tmp_path, folder, epochs=1, lora_epochs=1))
    files = {path: hash_file(path) for path in folder.rglob("*") if path.is_file() and path.name != "run.log"}
    assert max(path.stat().st_size for path in files) > 20_000

    done = python("-c", RESUME, str(folder), cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Logging error" not in done.stderr
    said = (
        f"recbole-gmc: {folder / 'checkpoint'}: cannot be written (Error while serializing: I/O error: File too large"
    )
    assert done.stderr.splitlines()[-1].startswith(said), done.stderr[-500:]
    assert "The last good checkpoint there is untouched: free some space, then go on with --resume" in done.stderr
    assert {path: hash_file(path) for path in files} == files
    assert not list(folder.rglob(".partial-*")) and not list(folder.rglob(".retired-*"))

    Checkpoint(folder)
    again = run({"resume": str(folder), **tiny(tmp_path, folder, epochs=1, lora_epochs=1)})
    assert again["test_result"] == before["test_result"]
    with pytest.raises(CheckpointError, match="made with learning_rate: 0.01, not 0.5"):
        run({"resume": str(folder), **tiny(tmp_path, folder, epochs=1, lora_epochs=1, learning_rate=0.5)})


def test_what_the_writers_say_becomes_one_error(tmp_path):
    """numpy gives an OSError without a number, safetensors an error of its own."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = np.zeros(10_000)
    writers = {
        "numpy": lambda folder: np.save(folder / "x.npy", big),
        "safetensors": lambda folder: save_file({"x": big}, folder / "x.safetensors"),
        "python": lambda folder: (folder / "x").write_bytes(big.tobytes()),
    }
    for name, write in writers.items():
        cache = Cache(tmp_path / name)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            with pytest.raises(RunError, match=f"{name}: cannot be written .*[Ff]ree some space") as raised:
                with cache.put("made", "0a1b") as folder:
                    write(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert raised.value.exit_status == 1 and cache.get("made", "0a1b") is None
        assert not [path for path in (tmp_path / name).rglob("*") if path.is_file()]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(ZeroDivisionError), telling_where(tmp_path, ""):
        _ = 1 / 0
    with pytest.raises(FileNotFoundError), Cache(tmp_path).put("made", "0a1b"):
        torch.load(tmp_path / "nothing")
