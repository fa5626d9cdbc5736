"""The report's numbers against hand counts, its page against what must not be in it."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from recbole_gmc import cli
from recbole_gmc.errors import CheckpointError, DataError
from recbole_gmc.evaluate.token_lists import TokenLists
from recbole_gmc.report import command, facts, images, page
from recbole_gmc.report.runs import find_runs, read_domain

EVIL = '<script>window.bad = 1</script><b>bold & "quoted"</b>'
HEAD = "domain\tuser_id\ttarget_item\trank\titem_1\tscore_1\titem_2\tscore_2"


def write_run(folder, model="GMC", ranks=(0, 1, -1), seed=1, data_path="data", **more):
    """A run of one domain with three users and three items, lists of two."""
    folder.mkdir(parents=True)
    lines = [HEAD]
    for user, rank in enumerate(ranks):
        items = ["b", "c"] if rank < 0 else ["a", "b"] if rank == 0 else ["b", "a"]
        last = "\t-1\t" if user == 2 else f"\t{items[1]}\t-2.0"
        lines.append(f"D\tu{user}\ta\t{rank}\t{items[0]}\t-1.0{last}")
    (folder / "topk.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    metrics = {"recall@10": 2 / 3, "ndcg@10": float(np.mean([1 / np.log2(r + 2) if r >= 0 else 0 for r in ranks]))}
    result = {
        "model": model, "dataset": "D", "seed": seed, "average": metrics,
        "domains": {"D": {"users": 3, "items": 3, **metrics}},
        "settings": {"data_path": str(data_path), "code_levels": 2, "codebook_size": 4},
        "curve": [{"stage": "unified", "epoch": epoch, "loss": 2.0 - epoch, "valid": 0.25} for epoch in range(2)],
        "hashes": {"lists": "abc123"}, "parameters": {"model": 1234}, "certified": {"all": 0.5}, **more,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def write_data(root):
    """Three users; item a is the last of each, so it never stands in training rows but by u2."""
    folder = root / "D"
    folder.mkdir(parents=True)
    sequences = {"u0": "bca", "u1": "bcba", "u2": "abca"}
    rows = [f"{user}\t{item}\t{time}" for user, items in sequences.items() for time, item in enumerate(items)]
    (folder / "D.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    titles = {"a": EVIL, "b": "plain b", "c": "plain c"}
    lines = ["item_id:token\ttitle:token_seq", *(f"{item}\t{title}" for item, title in titles.items())]
    (folder / "D.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    """A browser is started for images, which takes seconds; one test below does it."""
    monkeypatch.setitem(sys.modules, "kaleido", None)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", data_path=write_data(tmp_path / "data"))


def test_groups_are_means_of_their_intervals():
    found = facts.group(np.array([1.0, 0.0, 0.5, 0.25]), np.array([0, 1, 4, 60]), (0, 1, 5, 50))
    assert found.labels == ("0", "1-4", "50+") and found.users == (1, 2, 1)
    assert found.means == (1.0, 0.25, 0.25)
    assert found.errors[1] == pytest.approx(np.std([0.0, 0.5], ddof=1) / np.sqrt(2))


def test_users_fall_into_groups_by_hand_counts(run, tmp_path):
    lists = TokenLists.read(run / "topk.tsv")
    data = {"D": read_domain(tmp_path / "data", "D", {})}
    assert data["D"].trained == {"b": 3, "c": 2, "a": 1}  # u0, too short to validate: b, c; u1: b, c; u2: a, b
    popular = facts.by_popularity(lists, data)
    assert popular.labels == ("1-4",) and popular.means[0] == pytest.approx((1 + 1 / np.log2(3)) / 3)
    by_length = facts.by_length(lists, data)
    assert by_length.labels == ("1-2", "3-4") and by_length.users == (1, 2)
    assert facts.rank_counts(lists).tolist() == [1, 1]


def test_examples_are_the_first_hits_and_the_first_miss(run, tmp_path):
    lists = TokenLists.read(run / "topk.tsv")
    data = {"D": read_domain(tmp_path / "data", "D", {})}
    shown = facts.examples(lists, data, facts.chosen(lists, data, hits=1, misses=1))
    assert [(user.user, user.rank) for user in shown] == [("u0", 0), ("u2", -1)]
    assert shown[0].history == ("plain b", "plain c") and shown[0].target == EVIL
    assert shown[1].recommended == ("plain b",)  # a place past the catalogue holds no item


def test_the_page_needs_nothing_else_and_titles_stay_text(run, capsys):
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert str(run / "report.html") in capsys.readouterr().out
    own = page[: page.index('<script type="application/json"')]
    assert not re.search(r'(src|href)="', own) and "window.bad" in own and "<script>window" not in page
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert f'data-value="{result["average"]["ndcg@10"]!r}"' in page
    assert all(word in page for word in ("abc123", "1234", "50.0%", "recbole-gmc --model=GMC --dataset=D"))


def test_several_runs_stand_side_by_side_with_differences(run, tmp_path):
    write_run(tmp_path / "other", model="SASRec", ranks=(0, 0, 0), data_path=tmp_path / "data")
    assert cli.main(["report", str(run), str(tmp_path / "other"), f"--output={tmp_path / 'both'}"]) == 0
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    gain = 1 - (1 + 1 / np.log2(3)) / 3
    assert f"{gain:+.4f}" in page and "GMC and SASRec on D" in page


def test_a_folder_of_runs_is_its_runs_and_names_tell_them_apart(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        write_run(tmp_path / "all" / name, seed=seed)
        write_run(tmp_path / "all" / name / "domains" / "D", seed=seed)  # part of a run, not one of its own
    runs = find_runs([tmp_path / "all"])
    assert [run.folder.name for run in runs] == ["one", "two"] and [run.name for run in runs] == ["GMC 1", "GMC 2"]
    for domains in ("A", "A+B"):
        write_run(tmp_path / "sets" / domains / "GMC-1")
    assert [run.name for run in find_runs([tmp_path / "sets"])] == ["GMC-1 in A", "GMC-1 in A+B"]
    again = find_runs([tmp_path / "all" / "one", tmp_path / "all" / "one" / "domains" / "D"])
    assert len({run.name for run in again}) == 2


def test_without_the_data_there_is_still_a_page(tmp_path, caplog):
    run = write_run(tmp_path / "run", data_path=tmp_path / "gone")
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "no users are shown" in page and "figure-ranks" in page and "figure-popularity" not in page
    assert "--data_path" in caplog.text


def test_a_cell_that_failed_is_said(tmp_path, capsys):
    write_run(tmp_path / "all" / "GMC-1", data_path=tmp_path / "gone", certified={"all": 0.0})
    for name, note in (("SASRec-1", {"status": "failed", "error": EVIL}), ("GMC-1", {"status": "done"})):
        (tmp_path / "all" / f"{name}.json").write_text(json.dumps(note), encoding="utf-8")
    assert cli.main(["report", str(tmp_path / "all")]) == 0
    assert f"Not in the report: SASRec-1: {EVIL}\n" in capsys.readouterr().out
    page = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert "Failed, and so not here: SASRec-1: &lt;script&gt;" in page and EVIL not in page
    assert "<td>0.0%</td>" in page  # none of the lists is certified


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no run folder"),
        (["nowhere"], "no folder"),
        (["empty"], "no result.json"),
        (["run", "--outptu=x"], "nearest: 'output'"),
        (["run", "--tsne_items=x"], "--tsne_items=1000"),
        (["run", "--pictures=no"], "--pictures=False"),
        (["run", "--output=run/result.json"], "/run/result.json' is no folder that can be written"),
    ],
)
def test_bad_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_damaged_files_are_refused_with_their_place(run):
    with (run / "topk.tsv").open("a", encoding="utf-8") as file:
        file.write("D\tu9\ta\n")
    with pytest.raises(DataError, match="topk.tsv:5"):
        command.write(find_runs([run]), run)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    wrong = ({"settings": [1]}, {"curve": 3}, {"domains": {"D": 1}}, {"domains": {}})
    for damaged in ([1], *({**result, **part} for part in wrong)):
        (run / "result.json").write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(CheckpointError, match="result.json"):
            find_runs([run])


def test_a_run_named_twice_is_there_once(run, tmp_path):
    assert [one.folder for one in find_runs([run, run, tmp_path])] == [run]


def test_sequences_are_those_that_the_models_saw(tmp_path):
    """Times in single precision, so the later line is the last of two; columns and core as the run had them."""
    folder = tmp_path / "D"
    folder.mkdir()
    lines = ["who:token\twhat:token\twhen:float", "u\ta\t1", "u\tlate\t1700000031", "u\tearly\t1700000001", "v\ta\t1"]
    (folder / "D.inter").write_text("\n".join(lines) + "\n")
    settings = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "TIME_FIELD": "when"}
    assert read_domain(tmp_path, "D", settings).sequences == {"u": ("a", "late", "early"), "v": ("a",)}
    cored = read_domain(tmp_path, "D", {**settings, "item_inter_num_interval": "[2,inf)"})
    assert cored.sequences == {"u": ("a",), "v": ("a",)} and cored.trained == {"a": 2}
    (folder / "D.inter").write_text("\n".join(lines).replace("\t", ",") + "\n")
    assert read_domain(tmp_path, "D", {**settings, "field_separator": ","}).sequences["v"] == ("a",)


@pytest.mark.parametrize(
    ("domain", "settings", "message"),
    [
        ("D", {"USER_ID_FIELD": "who"}, "its file is not the one of the run"),
        ("E", {}, "its files are not there any more. Name their folder with --data_path"),
        ("D", {"rm_dup_inter": "first"}, "rm_dup_inter: what is left of the raw files by this is not known here"),
        ("D", {"item_inter_num_interval": "[2,9]"}, "item_inter_num_interval: '[2,9]' has another form"),
    ],
)
def test_what_is_missing_in_a_report_is_said_with_its_reason(run, tmp_path, caplog, domain, settings, message):
    result = json.loads((run / "result.json").read_text())
    result["settings"] |= settings
    if domain != "D":
        (tmp_path / "data/D").rename(tmp_path / "data/other")
    (run / "result.json").write_text(json.dumps(result))
    assert cli.main(["report", str(run), "--pictures=False"]) == 0
    assert message in caplog.text and (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ("30 Nov 14:05    INFO  ['run_recbole_gmc.py', '--epochs=3']", "--epochs=3"),
        ("30 Nov 14:05    WARNING  D: 2 users with fewer than 3", "recbole-gmc --model=GMC"),
    ],
)
def test_the_command_is_the_log_s_first_line_only_where_that_is_one(run, first, shown):
    (run / "run.log").write_text(first + "\n")
    assert shown in page.command_of(find_runs([run])[0])


def test_pictures_leave_other_files_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "kaleido")  # which the fixture above hides
    pytest.importorskip("kaleido")
    plotly = pytest.importorskip("plotly")

    def drawn(figures, files, **_):
        for file in files:
            file.write_text("drawn")

    monkeypatch.setattr("plotly.io.write_images", drawn)
    (tmp_path / "mine.pdf").write_text("mine")
    images.write({"a": plotly.graph_objects.Figure()}, tmp_path, progress=False)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "mine.pdf": "mine", "a.png": "drawn", "a.svg": "drawn",
    }  # fmt: skip
