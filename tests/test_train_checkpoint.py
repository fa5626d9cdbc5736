"""The checkpoint folder: whole or not at all, damage is named, foreign parts are refused, nothing is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recbole_gmc import loading
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import CheckpointError, RunError
from recbole_gmc.files import hash_file, read_json, recover, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.adapters import DomainAdapters
from recbole_gmc.model.seq2seq import build_t5
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import LoraSettings, T5Settings
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train import checkpoint, writing
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.config_json import plain
from recbole_gmc.train.state import Progress, RunRecord, StageState

NETWORK = T5Settings(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=16, heads=2, d_kv=8)
LORA = LoraSettings(rank=2)
ITEMS = ItemIndex.of({"A": [f"a{i}" for i in range(9)], "B": [f"b{i}" for i in range(5)]})
CONFIG = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_model": 16,
    "d_ff": 16,
    "num_heads": 2,
    "d_kv": 8,
    "model": "GMC",
    "dataset": "x",
    "lora_r": 2,
    "MAX_ITEM_LIST_LENGTH": 5,
    "beam_size": 4,
}


def ids(items=ITEMS, size=4) -> SemanticIds:
    row = np.arange(len(items))
    return SemanticIds(items, np.stack([row // size % size, row % size], 1).astype(np.int32), size)


def model(seed: int, domains=ITEMS.domains) -> DomainAdapters:
    torch.manual_seed(seed)
    adapters = DomainAdapters(build_t5(NETWORK, Vocabulary(2, 4)), domains, LORA)
    for domain in domains:
        adapters.restore(domain, {k: torch.randn_like(w) for k, w in adapters.snapshot(domain).items()})
    return adapters


def save(folder: Path, seed: int = 0, made_ids: SemanticIds | None = None) -> DomainAdapters:
    adapters = model(seed)
    progress = Progress({"seed": seed, "stage": None}, {"random": torch.full((3,), seed), "step": torch.tensor(7.0)})
    parts = {"config": CONFIG, "ids": made_ids or ids(), "t5": adapters.merged_state(None)}
    writing.save(folder, **parts, adapters=adapters, progress=progress)
    return adapters


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "run/checkpoint")
    return tmp_path / "run/checkpoint"


def test_everything_comes_back(folder):
    adapters = model(0)
    for given in (folder, folder.parent, str(folder)):
        found = Checkpoint(given)
        assert found.folder == folder and found.config == CONFIG
    assert found.ids.fingerprint == ids().fingerprint and (found.ids.codes == ids().codes).all()
    weights, wanted = found.weights(), adapters.merged_state(None)
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    other = model(5)
    other.load_backbone(weights)
    other.load(found.adapters)
    for domain in ITEMS.domains:
        back, made = other.merged_state(domain), adapters.merged_state(domain)
        assert all(torch.equal(back[name], made[name]) for name in made)
    progress = found.progress()
    assert progress.facts == {"seed": 0, "stage": None}
    assert progress.tensors["random"].tolist() == [0, 0, 0] and progress.tensors["step"].shape == ()


def test_without_adapters_there_are_none(tmp_path):
    t5 = build_t5(NETWORK, Vocabulary(2, 4))
    writing.save(tmp_path / "c", config=CONFIG, ids=ids(), t5=t5.state_dict(), adapters=None, progress=Progress({}))
    assert Checkpoint(tmp_path / "c").adapters is None and Checkpoint(tmp_path / "c").progress().tensors == {}
    assert [token for token, _ in loading.load(tmp_path / "c").recommend("B", ["b1"], 4)]


def test_where_a_stage_stands_comes_back(tmp_path):
    latest, optimiser = {"a.weight": torch.arange(3.0)}, {"0.exp_avg": torch.ones(2), "1.step": torch.tensor(4.0)}
    stage = StageState("lora:A", 2, 1, None, {"ndcg@10": 0.5}, True, 7, latest, optimiser)
    record, shuffle = RunRecord(done=["unified"], cpu_seconds=1.5), torch.Generator().manual_seed(3)
    t5 = build_t5(NETWORK, Vocabulary(2, 4)).state_dict()
    writing.save(
        tmp_path / "c", config=CONFIG, ids=ids(), t5=t5, adapters=None, progress=Progress.of(record, shuffle, stage)
    )
    found = Checkpoint(tmp_path / "c").progress()
    assert found.record == record and found.tensors["random.shuffle"].equal(shuffle.get_state())
    for part, wanted in (("latest", latest), ("optimiser", optimiser)):
        back = getattr(found.stage, part)
        assert back.keys() == wanted.keys() and all(back[name].equal(wanted[name]) for name in wanted)
    assert replace(found.stage, latest={}, optimiser={}) == replace(stage, latest={}, optimiser={})
    assert Progress.of(record, shuffle, None).stage is None


def test_only_safetensors_and_json(folder):
    assert {Path(name).suffix for name in files(folder)} == {".safetensors", ".json"}
    for name in files(folder):
        load_file(folder / name) if name.endswith(".safetensors") else json.loads((folder / name).read_text())
    assert files(folder).keys() == {"manifest.json", *read_json(folder / "manifest.json")["files"]}


def test_the_same_state_gives_the_same_bytes(folder, tmp_path):
    save(tmp_path / "again")
    assert files(folder) == files(tmp_path / "again")


def every_file() -> list[str]:
    names = ["config.json", "manifest.json", "model.safetensors", "progress.json", "progress.safetensors"]
    names += [f"semantic_ids/{name}" for name in ("manifest.json", "A.index.json", "B.index.json")]
    kinds = ("adapter_config.json", "adapter_model.safetensors", "origin.json")
    return names + [f"adapters/{domain}/{name}" for domain in "AB" for name in kinds]


def test_the_list_of_files_is_complete(folder):
    assert sorted(files(folder)) == sorted(every_file())


@pytest.mark.parametrize("name", every_file())
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damage_is_named(folder, name, damage):
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-1], "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    if (name, damage) == ("manifest.json", "cut"):  # only the last line feed went
        Checkpoint(folder)
        return
    with pytest.raises(CheckpointError) as error:
        Checkpoint(folder)
    assert Path(name).name in str(error.value) or name == "manifest.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99 is not"),
        ({"files": {"../outside": "0"}}, "names a file outside"),
        ({"files": {"/etc/passwd": "0"}}, "names a file outside"),
        ({"files": 3}, "manifest is damaged"),
        ({"files": None}, "manifest is damaged"),
        ({"files": {}}, "does not name"),
    ],
)
def test_a_manifest_that_lies(folder, change, message):
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), **change})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)


def test_no_checkpoint_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(CheckpointError, match=f"{path.name}: no checkpoint here. Give a run folder"):
            Checkpoint(path)


# ---- killed while saving -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that ends here: nothing after it runs."""


def steps(monkeypatch, stop: int | None) -> list[str]:
    """Counts the moves and removals of a save, and ends it before number ``stop``, its own clean-up included."""
    seen: list[str] = []

    def wrap(module, name):
        real = getattr(module, name)

        def call(*args, **kwargs):
            if stop is not None and len(seen) >= stop:
                raise Killed
            seen.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for module, name in ((os, "replace"), (shutil, "rmtree"), (os, "fsync")):
        wrap(module, name)
    return seen


def test_killed_at_any_step_one_checkpoint_is_whole(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        save(tmp_path / "old/checkpoint", seed=1)
        seen = steps(patch, None)
        save(tmp_path / "old/checkpoint", seed=2)
        total = len(seen)
    new = files(tmp_path / "old/checkpoint")
    outcomes = []
    for stop in (*range(0, total - 6, 5), *range(total - 6, total)):  # the moves are at the end
        run = tmp_path / f"run{stop}"
        save(run / "checkpoint", seed=1)
        old = files(run / "checkpoint")
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, stop)
            with pytest.raises(Killed):
                save(run / "checkpoint", seed=2)
        killed = files(run)
        found = Checkpoint(run)  # as `--resume=<run folder>` finds it
        outcomes.append(found.progress().facts["seed"])
        assert files(found._place) == (old if outcomes[-1] == 1 else new)
        assert files(run) == killed, "reading changes nothing: another process may be saving"
        recover(found.folder)
        assert files(run / "checkpoint") == (old if outcomes[-1] == 1 else new)
        assert [path.name for path in run.iterdir()] == ["checkpoint"], f"leftovers after step {stop}"
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2} and total > 20


def test_sigkill_leaves_a_whole_checkpoint(tmp_path):
    wanted, parts = [], []
    for seed in range(3):
        adapters = save(tmp_path / f"{seed}/checkpoint", seed)
        wanted.append(files(tmp_path / f"{seed}/checkpoint"))
        progress = Checkpoint(tmp_path / f"{seed}").progress()
        parts.append({"t5": adapters.merged_state(None), "adapters": adapters, "progress": progress})
    run = tmp_path / "run"
    writing.save(run / "checkpoint", config=CONFIG, ids=ids(), **parts[0])
    process = os.fork()
    if process == 0:
        try:
            for count in range(1, 100_000):
                writing.save(run / "checkpoint", config=CONFIG, ids=ids(), **parts[count % 3])
        finally:
            os._exit(0)
    try:
        for delay in range(8):  # stopped at many moments, and seen as the disk is then
            time.sleep(0.05 + 0.0037 * delay)
            os.kill(process, signal.SIGSTOP)
            os.waitpid(process, os.WUNTRACED)
            state = tmp_path / f"state{delay}"
            shutil.copytree(run, state)
            os.kill(process, signal.SIGCONT)
            assert files(Checkpoint(state)._place) in wanted
            recover(state / "checkpoint")
            assert files(state / "checkpoint") in wanted and [p.name for p in state.iterdir()] == ["checkpoint"]
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert files(Checkpoint(run)._place) in wanted
    writing.save(run / "checkpoint", config=CONFIG, ids=ids(), **parts[1])
    assert files(run / "checkpoint") == wanted[1] and [p.name for p in run.iterdir()] == ["checkpoint"]


def test_a_full_disk_keeps_the_old_one(folder, monkeypatch):
    old = files(folder)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        save(folder, seed=2)
    assert files(folder) == old and [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


# ---- text that training does not change --------------------------------------------------------------------------


def save_text(folder: Path, step: int, value: float = 0.5) -> TextEmbeddings:
    text = TextEmbeddings(ITEMS, np.full((len(ITEMS), 3), value, np.float32))
    parts = {"config": CONFIG, "ids": ids(), "t5": {"w": torch.tensor(float(step))}, "adapters": None}
    writing.save(folder, **parts, progress=Progress({"step": step}), text=text)
    return text


def test_text_is_written_once_and_every_checkpoint_has_it(tmp_path):
    folder, text = tmp_path / "run/checkpoint", tmp_path / "run/checkpoint/text.safetensors"
    save_text(folder, 0)
    written = text.stat().st_ino
    shutil.copytree(folder, tmp_path / "earlier")
    wanted = save_text(folder, 1)
    assert text.stat().st_ino == written and text.stat().st_nlink == 1  # the one before is gone
    shutil.copytree(folder, tmp_path / "copy")
    for name, step in (("earlier", 0), ("copy", 1), ("run", 1)):
        found = Checkpoint(tmp_path / name)
        assert found.progress().facts == {"step": step} and found.text.fingerprint == wanted.fingerprint
    other = save_text(folder, 2, value=0.25)
    assert text.stat().st_ino != written and Checkpoint(folder).text.fingerprint == other.fingerprint
    assert Checkpoint(tmp_path / "copy").text.fingerprint == wanted.fingerprint


@pytest.mark.parametrize("trouble", ["damaged", "gone", "no links", "older manifest", "no manifest"])
def test_text_is_written_again_where_it_cannot_be_linked(tmp_path, monkeypatch, trouble):
    folder = tmp_path / "run/checkpoint"
    save_text(folder, 0)
    text, manifest = folder / "text.safetensors", folder / "manifest.json"
    if trouble == "damaged":
        text.write_bytes(text.read_bytes()[:-1] + b"x")
    elif trouble == "gone":
        text.unlink()
    elif trouble == "older manifest":
        write_json(manifest, {name: part for name, part in read_json(manifest).items() if name != "constants"})
    elif trouble == "no manifest":
        manifest.write_text("{")
    else:
        monkeypatch.setattr(os, "link", no_links)
    wanted = save_text(folder, 1)
    assert Checkpoint(folder).text.fingerprint == wanted.fingerprint
    assert Checkpoint(folder).progress().facts == {"step": 1}


def no_links(*args, **kwargs):
    raise PermissionError(1, "Operation not permitted")


# ---- parts of another run ----------------------------------------------------------------------------------------


def resign(folder: Path) -> None:
    """A manifest that is right again after files were exchanged on purpose."""
    names = [name for name in files(folder) if name != "manifest.json"]
    write_json(folder / "manifest.json", {"format": 1, "files": {name: hash_file(folder / name) for name in names}})


def exchange(folder: Path, source: Path, what: str, to: str | None = None) -> None:
    target = folder / (to or what)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    (shutil.copytree if (source / what).is_dir() else shutil.copy)(source / what, target)
    resign(folder)


def test_parts_of_another_run_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    save(other, seed=9)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    for what, to, message in [
        ("adapters", None, "made on another base model"),
        ("adapters/A", None, "made on another base model"),
        ("model.safetensors", None, "made on another base model"),
    ]:
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        exchange(folder, other, what, to)
        with pytest.raises(CheckpointError, match=message):
            loading.load(folder)
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    exchange(folder, whole, "adapters/A", "adapters/B")
    with pytest.raises(CheckpointError, match="made for the domain 'A', not 'B'"):
        loading.load(folder)


def test_ids_of_other_items_are_refused_by_the_adapters_and_the_model(folder, tmp_path):
    other = ItemIndex.of({"A": [f"a{i}" for i in range(9)], "C": [f"b{i}" for i in range(5)]})
    save(tmp_path / "other", made_ids=ids(other))
    exchange(folder, tmp_path / "other", "semantic_ids")
    with pytest.raises(CheckpointError, match="C"):
        loading.load(folder)


def test_other_ids_of_the_same_items_are_refused(folder, tmp_path):
    """Row 24 of the fault matrix: same items, same sizes, codes that the weights were not trained on."""
    note = json.loads((folder / "progress.json").read_text())
    note["record"] = {**RunRecord().facts(), "inputs": {"semantic_ids": ids().fingerprint}}
    (folder / "progress.json").write_text(json.dumps(note))
    resign(folder)
    assert loading.load(folder).recommend("A", ["a1"], 3)
    row = np.arange(len(ITEMS))[::-1]
    save(tmp_path / "other", made_ids=SemanticIds(ITEMS, np.stack([row // 4, row % 4], 1).astype(np.int32), 4))
    exchange(folder, tmp_path / "other", "semantic_ids")
    with pytest.raises(CheckpointError, match="trained on other semantic IDs"):
        loading.load(folder)


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    t5 = build_t5(
        T5Settings(encoder_layers=2, decoder_layers=1, d_model=16, d_ff=16, heads=2, d_kv=8), Vocabulary(2, 4)
    )
    parts = {"config": CONFIG, "ids": ids(), "t5": t5.state_dict()}
    writing.save(tmp_path / "other", **parts, adapters=None, progress=Progress({}))
    with pytest.raises(CheckpointError, match="does not fit|do not fit"):
        loading.load(tmp_path / "other")


# ---- pickles -----------------------------------------------------------------------------------------------------


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickles_are_never_opened(folder, tmp_path):
    marker = tmp_path / "marker"
    evil = pickle.dumps(Exploit(marker))
    pickle.loads(evil)
    assert marker.exists(), "the exploit works"
    marker.unlink()
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)

    def try_all() -> None:
        for act in (Checkpoint, loading.load, lambda place: Checkpoint(place).progress()):
            try:
                act(folder)
            except CheckpointError:
                pass
        assert not marker.exists()

    for name in ["model.pth", "training_args.bin", "adapters/A/adapter_model.bin", "adapters/A/x.pt"]:
        (folder / name).write_bytes(evil)  # beside the real files: left alone
        resign(folder)
        assert loading.load(folder) and not marker.exists()
    for name in every_file():
        for signed in (True, False):
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            (folder / name).write_bytes(evil)
            if signed and name != "manifest.json":
                resign(folder)
            if not (signed and name.startswith("progress")):  # which serves resuming only
                with pytest.raises(CheckpointError):
                    loading.load(folder)
            try_all()
    for name in (n for n in every_file() if n.endswith(".safetensors")):  # torch's own zip of a pickle
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        torch.save({"x": Exploit(marker)}, folder / name)
        resign(folder)
        try_all()


def test_a_pickle_given_as_checkpoint_is_refused(tmp_path):
    marker = tmp_path / "marker"
    torch.save({"config": Exploit(marker)}, tmp_path / "GMC.pth")
    with pytest.raises(CheckpointError):
        loading.load(tmp_path / "GMC.pth")
    assert not marker.exists()


def test_a_run_folder_points_to_a_checkpoint_kept_elsewhere(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "models" / "run"
    writing.point(run, run / "checkpoint")
    assert not (run / checkpoint.POINTER).exists()
    writing.point(run, elsewhere)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.Checkpoint(run)
    assert checkpoint._of_run(run) == elsewhere
    (run / checkpoint.POINTER).write_text("{")
    with pytest.raises(CheckpointError, match="note is damaged"):
        checkpoint.Checkpoint(run)


def test_settings_that_are_paths_are_kept_as_text() -> None:
    assert plain({"Big": Path("a") / "b.npy"}) == {"Big": "a/b.npy"} and plain([object()]) is ...
