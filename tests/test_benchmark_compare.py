"""`benchmark --compare`: runs that are done, by lists written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_gmc import cli
from recbole_gmc.benchmark import command, compare
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.evaluate.significance import Difference

WIDTH = 10


def write_run(folder: Path, places: dict[str, list[int]], file: str = "valid_topk.tsv", target: str = "t") -> None:
    """Users with the held-out item at these places of their lists, by domain."""
    lines = [["domain", "user_id", "target_item", "rank", *["item", "score"] * WIDTH]]
    for domain, ranks in places.items():
        for user, rank in enumerate(ranks):
            items = [f"i{k}" for k in range(WIDTH)]
            items = [*items[:rank], target, *items[rank:]][:WIDTH] if rank >= 0 else items
            pairs = [text for k, item in enumerate(items) for text in (item, str(-k))]
            lines.append([domain, f"u{user}", target, str(rank), *pairs])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join("\t".join(line) + "\n" for line in lines))
    seed = folder.name.rpartition("-")[2]
    (folder / "result.json").write_text(json.dumps({"seed": seed, "budget_limited": False}))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Ours has every target first, the other model has half of those of A lower and none of B's."""
    for seed in (1, 2):
        write_run(tmp_path / f"Ours-{seed}", {"A": [0] * 30, "B": [0] * 10})
    write_run(tmp_path / "Other-1", {"A": [0] * 30, "B": [-1] * 10})
    write_run(tmp_path / "Other-small-1", {"A": [0] * 30})  # a model of another name
    return tmp_path


def test_the_means_are_of_users_and_seeds(output, capsys):
    text = command.run(["--compare=Ours,Other", f"--output={output}"])
    assert capsys.readouterr().out.rstrip("\n") == text
    lines = text.splitlines()
    assert lines[1:3] == ["Ours: seeds 1, 2", "Other: seeds 1"] and "one seed" in lines[3]
    assert len(lines) == 4 + 2 * 3
    average = next(line for line in lines if line.startswith("average, 40 users, ndcg@10"))
    assert "Ours 1.0000, Other 0.7500: +0.2500" in average and average.endswith("Ours is above Other")
    same = next(line for line in lines if line.startswith("A, 30 users, recall@10"))
    assert "Ours 1.0000, Other 1.0000: +0.0000" in same and same.endswith(": no difference shown")
    assert "B, 10 users, recall@10: Ours 1.0000, Other 0.0000" in text
    other = command.run(["--compare=Other,Ours", f"--output={output}"])
    assert "Other 0.7500, Ours 1.0000: -0.2500" in other and "Ours is above Other" in other


def test_items_of_the_histories_can_be_left_out(tmp_path, caplog):
    """The list is i0 to i9 with t at its place; the user has taken i0, i2, then what was held out for each split."""
    domain = tmp_path / "data" / "A"
    domain.mkdir(parents=True)
    lines = ["item_id:token\tuser_id:token\ttimestamp:float", "i0\tu0\t1", "t\tu0\t3", "i2\tu0\t2", "last\tu0\t4"]
    (domain / "A.inter").write_text("\n".join(lines) + "\n")
    write_run(tmp_path / "Run-1", {"A": [5]})
    write_run(tmp_path / "Run-1", {"A": [5]}, "topk.tsv", target="last")
    report = {"seed": 1, "budget_limited": False, "domains": {"A": {}}, "settings": {"USER_ID_FIELD": "user_id"}}
    (tmp_path / "Run-1" / "result.json").write_text(json.dumps(report))
    for on in ("valid", "test"):
        assert compare.read_side(tmp_path / "Run", on).ranks.tolist() == [[5]]
        assert compare.read_side(tmp_path / "Run", on, tmp_path / "data").ranks.tolist() == [[3]], "i0 and i2 are gone"
    write_run(tmp_path / "Run-1", {"A": [-1]}, "topk.tsv", target="last")
    (tmp_path / "Run-1" / "result.json").write_text(json.dumps(report))
    assert compare.read_side(tmp_path / "Run", "test", tmp_path / "data").ranks.tolist() == [[-1]]
    assert "1 lists have fewer than 10 new items" in caplog.text
    write_run(tmp_path / "Run-1", {"A": [0, 0]}, "topk.tsv")
    (tmp_path / "Run-1" / "result.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="item of user 'u0' of A is 't', but in .* 'last'"):
        compare.read_side(tmp_path / "Run", "test", tmp_path / "data")
    with pytest.raises(DataError, match="no domain 'A'"):
        compare.read_side(tmp_path / "Run", "test", tmp_path)


def test_items_that_the_run_filtered_out_are_in_no_history(tmp_path):
    """Nobody but u0 takes `rare`, which the run's core removes: t is the last one, and no part of the history."""
    domain = tmp_path / "data" / "A"
    domain.mkdir(parents=True)
    rows = [("u0", "i0", 1), ("u0", "t", 2), ("u0", "rare", 3), ("u1", "i0", 1), ("u1", "t", 2)]
    lines = ["\t".join(map(str, row)) for row in [("user_id:token", "item_id:token", "timestamp:float"), *rows]]
    (domain / "A.inter").write_text("\n".join(lines) + "\n")
    write_run(tmp_path / "Run-1", {"A": [5]}, "topk.tsv")
    report = {"seed": 1, "budget_limited": False, "domains": {"A": {}}, "settings": {}}
    (tmp_path / "Run-1" / "result.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="'t', but in .* 'rare'"):
        compare.read_side(tmp_path / "Run", "test", tmp_path / "data")
    report["settings"] = {"item_inter_num_interval": "[2,inf)"}
    (tmp_path / "Run-1" / "result.json").write_text(json.dumps(report))
    assert compare.read_side(tmp_path / "Run", "test", tmp_path / "data").ranks.tolist() == [[4]], "i0 is gone"


def test_what_is_within_the_noise_is_no_gain():
    assert compare.sentence("A", "B", Difference(0.06, 0.05, -0.001, 0.02, 0.08)).endswith("no difference shown")
    assert compare.sentence("A", "B", Difference(0.06, 0.05, 0.001, 0.02, 0.03)).endswith("A is above B")
    assert compare.sentence("A", "B", Difference(0.05, 0.06, -0.02, -0.001, 0.03)).endswith("B is above A")


def test_places_become_metrics(output):
    write_run(output / "Mixed-5", {"A": [0, 2, -1, 9]})
    side = compare.read_side(output / "Mixed", "valid")
    assert side.ranks.tolist() == [[0, 2, -1, 9]]
    assert side.of_user("ndcg@10")[0] == pytest.approx([1, 0.5, 0, 1 / np.log2(11)])
    assert side.of_user("recall@10")[0].tolist() == [1, 1, 0, 1]


def test_a_run_folder_is_a_side_and_users_are_matched_by_name(output):
    file = output / "Other-1/valid_topk.tsv"
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *rows[::-1]]) + "\n")
    text = compare.run([f"--compare={output}/Ours-2,{output}/Other-1"])
    assert "Ours-2 1.0000, Other-1 0.7500" in text


def test_the_test_lists_are_read_only_where_asked_for(output):
    with pytest.raises(DataError, match="no such lists.*--on=test"):
        write_run(output / "Tested-1", {"A": [0]}, "topk.tsv")
        compare.run(["--compare=Tested,Tested-1", f"--output={output}"])
    assert "on test" in compare.run(["--compare=Tested,Tested-1", f"--output={output}", "--on=test"])


def test_other_users_or_items_are_refused(output):
    write_run(output / "Elsewhere-1", {"A": [0] * 30, "B": [0] * 9})
    with pytest.raises(DataError, match="other users or items than Ours"):
        compare.run(["--compare=Ours,Elsewhere", f"--output={output}"])
    write_run(output / "Ours-3", {"A": [0] * 30, "B": [0] * 10}, target="x")
    with pytest.raises(DataError, match="other users or items than in Ours-1"):
        compare.run(["--compare=Ours,Other", f"--output={output}"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--compare=Ours"], "names no two"),
        (["--compare=Ours,Ours"], "names no two"),
        (["--compare=Ours,Nobody"], "no finished run in"),
        (["--compare=Ours,Other", "--on=train"], "valid or test"),
        (["--compare=Ours,Other", "--epochs=3"], "does not go with --compare"),
        (["--compare=Ours,Other", "--compare=Ours,Other"], "does not go with --compare"),
    ],
)
def test_bad_words_are_refused(output, words, message):
    with pytest.raises(SettingError, match=message):
        command.run([*words, f"--output={output}"])


def test_the_command_line(output, capsys):
    assert cli.main(["benchmark", "--compare=Ours,Nobody", f"--output={output}"]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize("change", [("\t0\t", "\tx\t"), ("\t0\t", "\t")])
def test_a_damaged_line_is_named(output, change):
    file = output / "Ours-1/valid_topk.tsv"
    head, first, rest = file.read_text().split("\n", 2)
    file.write_text("\n".join([head, first.replace(*change, 1), rest]))
    with pytest.raises(DataError, match=r"valid_topk.tsv:2: not a line of a top-k table"):
        command.run(["--compare=Ours,Other", f"--output={output}"])
