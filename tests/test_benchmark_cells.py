"""Cells of a benchmark: what may be gone on with, what starts over, and what else than the data decides a result."""

from __future__ import annotations

import subprocess

import pytest
from run_help import write_both
from test_benchmark import data, plan_of  # noqa: F401 - a fixture

from recbole_gmc.benchmark import plan, run
from recbole_gmc.errors import SettingError
from recbole_gmc.files import read_json, write_json


@pytest.mark.parametrize(
    ("codes", "starts", "kept"), [([1], ["--resume"], True), ([2, 1], ["--resume", "--model"], False)]
)
def test_only_a_checkpoint_that_is_refused_is_thrown_away(data, monkeypatch, codes, starts, kept):  # noqa: F811
    """A full disk, or a process that was killed, costs nothing of what was trained."""
    started, left = [], iter(codes)

    class Child:
        def __init__(self, words, **_):
            started.append(next(word.partition("=")[0] for word in words if word.startswith(("--model", "--resume"))))
            self.code = next(left)

        def wait(self):
            return self.code

        poll = wait

    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr(run, "_resumable", lambda folder: folder.is_dir())
    benchmark = plan_of(data, models="GMC")
    cell, hashes = benchmark.cells[0], run.data_hashes(benchmark)
    (cell.folder / "checkpoint").mkdir(parents=True)
    note = {"status": run.WAITING, "signature": cell.signature, "data": hashes, "seconds": 5.0}
    write_json(cell.folder.with_suffix(".json"), note)
    assert run.run_cell(cell, hashes, note).startswith("FAILED")
    assert started == starts and (cell.folder / "checkpoint").is_dir() == kept
    assert read_json(cell.folder.with_suffix(".json"))["seconds"] >= 5.0


def test_files_that_settings_name_are_part_of_a_cell(data):  # noqa: F811
    folder = data / "ids"
    folder.mkdir()
    (folder / "A.index.json").write_text("{}")
    (data / "b.yaml").write_text(f"GMC: {{semantic_ids_path: {folder}}}\n")

    def signatures() -> list[str]:
        return [cell.signature for cell in plan_of(data, f"--config_files={data / 'b.yaml'}", models="GMC,Pop").cells]

    before = signatures()
    (folder / "A.index.json").write_text('{"a": ["<a_1>"]}')
    gmc, pop = (one == other for one, other in zip(before, signatures(), strict=True))
    assert not gmc and pop


def test_names_of_rows_of_ready_embeddings_are_part_of_the_data(data):  # noqa: F811
    for name in ("a", "b"):
        (data / f"{name}.npy").write_bytes(b"x")
    words = (f"--text_embedding_path={{A: {data / 'a.npy'}, B: {data / 'b.npy'}}}",)
    before = run.data_hashes(plan_of(data, *words))
    (data / "a.ids").write_text("a\nb\n")
    after = run.data_hashes(plan_of(data, *words))
    assert after == {**before, "A.ids": after.get("A.ids")} and after["A.ids"]


def test_films_that_recbole_carries_need_no_data_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--models=GMC,SASRec", "--dataset=ml-100k-genres", f"--cache_dir={tmp_path / 'c'}", "--dry-run"]
    found, _ = plan.parse([*words, "--data_path=elsewhere"])
    assert found.data_path.is_dir() and "elsewhere" not in str(found.data_path)


def test_separators_of_the_raw_files_are_the_run_s(tmp_path):
    write_both(tmp_path)
    for file in tmp_path.glob("*/*.*"):
        file.write_text(file.read_text().replace("\t", ";"))
    words = ["--models=Pop", "--dataset=both", "--domains=Big,Small", f"--data_path={tmp_path}", "--field_separator=;"]
    found, _ = plan.parse([*words, f"--output={tmp_path / 'out'}"])
    run.refuse_bad(found)
    assert found.raw.sequences(tmp_path, "Big")["u0"]
    with pytest.raises(SettingError, match="val_interval"):
        plan.parse([*words, "--val_interval={timestamp: '[1,inf)'}"])
