"""Growing sets of domains: which sets, one benchmark each, compared where they were asked the same."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_help import tiny, write_planted
from test_benchmark import CANDIDATES, TARGETS, data, write_cell  # noqa: F401

from recbole_gmc import cli, quick
from recbole_gmc.benchmark import board, command, run, scenario_page, scenarios
from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.running import each_domain, finished, single

SIZES = {"A": 18, "B": 6}  # interactions of the two domains


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    """A browser is started for images, which takes seconds; the report's tests do it."""
    monkeypatch.setitem(sys.modules, "kaleido", None)


def sets_of(root, *more, models="GMC,SASRec", sets="A;A,B"):
    words = [f"--models={models}", "--dataset=both", f"--data_path={root / 'data'}", f"--output={root / 'out'}"]
    return scenarios.parse([*words, f"--domain_sets={sets}" if sets else "--domain_sets", *more])[0]


PLACES = {  # of the held-out items by sorted (domain, user)
    ("GMC", 2020): {"A": [0, 1, -1, 2], "A,B": [0, 0, -1, 2, 0, -1]},
    ("GMC", 2021): {"A": [0, 1, -1, -1], "A,B": [0, 0, 3, 2, 1, -1]},
    ("SASRec", 2020): {"A": [1, 1, 0, 2], "A,B": [1, 1, 0, 2, 0, 2]},
    ("SASRec", 2021): {"A": [1, 1, 0, 2], "A,B": [1, 1, 0, 2, 0, 2]},
}


def write_all(benchmarks):
    """Cells as a run leaves them; a set of A alone has the users and candidates of A alone."""
    for benchmark in benchmarks:
        for cell in benchmark.cells:
            places = PLACES[cell.model, cell.seed][",".join(benchmark.domains)]
            whole = places if len(places) == len(TARGETS) else [*places, -1, -1]
            write_cell(cell, benchmark, whole)
            if benchmark.domains == ("A",):
                only_a(cell)


def only_a(cell):
    file = cell.folder / "topk.tsv"
    file.write_text("".join(line for line in file.open() if not line.startswith("B\t")))
    result = json.loads((cell.folder / "result.json").read_text())
    result["domains"].pop("B")
    result["average"] = {name: result["domains"]["A"][name] for name in result["average"]}
    truth = board.fairness.Truth({}, {"A": frozenset(CANDIDATES["A"])}, {})
    result["hashes"]["candidates"] = truth.candidate_hash
    (cell.folder / "result.json").write_text(json.dumps(result))


def ndcg(places):
    return np.mean([1 / math.log2(place + 2) if place >= 0 else 0.0 for place in places])


def test_sets_are_named_or_grow(data):  # noqa: F811
    assert scenarios.sets_of("A;A, B") == (("A",), ("A", "B"))
    assert [one.domains for one in sets_of(data)] == [("A",), ("A", "B")]
    assert [one.domains for one in sets_of(data, "--domains=B,A", sets="")] == [("B",), ("B", "A")]
    found = sets_of(data, "--seeds=2", "--domains=A,B", sets="B;A,B")
    assert [cell.folder.relative_to(data / "out").as_posix() for cell in found[1].cells][:2] == [
        "A+B/GMC-2020", "A+B/SASRec-2020"]  # fmt: skip
    assert "--domains=A,B" in found[1].cells[0].arguments and "--domains=B" in found[0].cells[0].arguments
    assert len({cell.signature for one in found for cell in one.cells}) == 8
    assert len(scenarios.folder_of(tuple(f"domain{i}" for i in range(40)))) < scenarios.LONGEST


@pytest.mark.parametrize(
    ("sets", "more", "said"),
    [
        ("A;;B", [], "a set without a domain"),
        ("A;A,A", [], "names a domain twice"),
        ("A,B;B,A", [], "names a set twice"),
        ("A;A,C", [], "no domain 'C'"),
        ("A;A,Bb", ["--domains=A,B"], "'Bb' is not among the domains.*They are A, B"),
        ("", ["--domains=A"], "'A' is the only domain"),
        ("A;A,B", ["--epoch=3"], "nearest: 'epochs'"),
    ],
)
def test_bad_sets_are_one_line(data, capsys, sets, more, said):  # noqa: F811
    with pytest.raises((SettingError, DataError), match=said):
        sets_of(data, *more, sets=sets)
    flag = f"--domain_sets={sets}" if sets else "--domain_sets"
    words = ["benchmark", "--models=Pop", "--dataset=both", f"--data_path={data / 'data'}", flag, *more]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def taken(benchmark):
    """Model -> the domains that its first cell takes over, and from where."""
    found = {}
    for cell in benchmark.cells[:2]:
        words = [word.partition("=")[2] for word in cell.arguments if word.startswith("--finished_domains=")]
        found[cell.model] = {
            name: Path(place).parent.name for name, place in json.loads(words[0] if words else "{}").items()
        }
    return found


def test_a_model_run_once_a_domain_is_trained_once_in_each(data):  # noqa: F811
    first, second = benchmarks = sets_of(data, "--seeds=2")
    assert taken(run.taking_over(second, [first])) == {"GMC": {}, "SASRec": {}}  # nothing is done yet
    write_all(benchmarks)
    assert taken(run.taking_over(second, [first])) == {"GMC": {}, "SASRec": {"A": "A"}}
    again = run.taking_over(second, [first])
    assert [cell.signature for cell in again.cells] == [cell.signature for cell in second.cells]
    assert taken(run.taking_over(first, [second])) == {"GMC": {}, "SASRec": {"A": "A+B"}}
    result = second.cells[1].folder / "result.json"
    report = json.loads(result.read_text())
    report["settings"]["finished_domains"] = {"A": "elsewhere"}  # then A was not trained there
    result.write_text(json.dumps(report))
    assert taken(run.taking_over(first, [second]))["SASRec"] == {}
    assert taken(run.taking_over(second, [second]))["SASRec"] == {"B": "A+B"}


@pytest.mark.parametrize("more", [["--budget_minutes=3"], ["--epochs=7"]])
def test_nothing_is_taken_over_from_other_settings_or_data(data, more):  # noqa: F811
    first, second = benchmarks = sets_of(data, "--seeds=2")
    write_all(benchmarks)
    assert taken(run.taking_over(sets_of(data, "--seeds=2", *more)[1], [first]))["SASRec"] == {}
    (data / "data/A/A.inter").write_text((data / "data/A/A.inter").read_text() + "u9\ta\t9\n")
    assert taken(run.taking_over(second, [first]))["SASRec"] == {}


@pytest.mark.parametrize("model", ["SASRec", "TIGER"])
def test_what_is_taken_over_is_what_would_be_trained(tmp_path, monkeypatch, model):
    write_planted(tmp_path, "Big", seed=1, users=12)
    write_planted(tmp_path, "Small", seed=2, users=10, items=12)
    common = {"data_path": str(tmp_path), "show_progress": False, "epochs": 1, "MAX_ITEM_LIST_LENGTH": 5}
    if model == "TIGER":
        common = {name: value for name, value in tiny(tmp_path, **common).items() if not name.startswith("lora_")}
    else:
        common |= {"hidden_size": 8, "inner_size": 8}

    def start(name, domains, **more):
        folder = tmp_path / name
        quick.run(model, "both", (), {**common, "domains": domains, "run_dir": str(folder), **more})
        return folder, json.loads((folder / "result.json").read_text())

    first, _ = start("first", ["Big"])
    whole, wanted = start("whole", ["Big", "Small"])
    trained = []
    for place, name in ((single, "run_domain"), (each_domain, "run_ours")):
        inner = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, _inner=inner: trained.append(args[0].domain) or _inner(*args))
    folder, found = start("found", ["Big", "Small"], finished_domains={"Big": str(first)})
    assert trained == ["Small"] and found["runs"]["Big"]["taken_from"] == str(first)
    for name in ("topk.tsv", "valid_topk.tsv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for name in ("domains", "average", "epochs", "parameters", "label", "budget_limited"):
        assert found[name] == wanted[name]
    assert found["seconds"].keys() == wanted["seconds"].keys()
    assert all(found["hashes"][name] == wanted["hashes"][name] for name in ("targets", "candidates"))
    again, last = start("again", ["Big", "Small"], finished_domains={"Big": str(whole), "Small": str(whole)})
    assert trained == ["Small"] and last["average"] == wanted["average"]
    assert (again / "topk.tsv").read_bytes() == (whole / "topk.tsv").read_bytes()


@pytest.mark.parametrize(("given", "said"), [(["A"], "no mapping"), ({"A": "nowhere"}, "'nowhere' has no results")])
def test_bad_places_of_finished_domains_are_refused(tmp_path, given, said):
    with pytest.raises(SettingError, match=said):
        finished.folders({"finished_domains": given})


def test_each_domain_is_compared_with_the_smallest_set_that_has_it(data, capsys):  # noqa: F811
    benchmarks = sets_of(data, "--seeds=2")
    write_all(benchmarks)
    command.show_sets({one.domains: command.write(one) for one in benchmarks}, data / "out")
    lines = list(csv.DictReader((data / "out" / "domain_sets.csv").open()))
    by = {(line["model"], line["domains"], line["domain"]): line for line in lines if line["metric"] == "ndcg@10"}
    assert set(by) == {(m, d, e) for m in ("GMC", "SASRec") for d, e in (("A", "A"), ("A B", "A"), ("A B", "B"))}
    small = np.mean([ndcg(PLACES["GMC", seed]["A"]) for seed in (2020, 2021)])
    large = np.mean([ndcg(PLACES["GMC", seed]["A,B"][:4]) for seed in (2020, 2021)])
    assert float(by["GMC", "A", "A"]["mean"]) == pytest.approx(small) and by["GMC", "A", "A"]["change"] == ""
    assert float(by["GMC", "A B", "A"]["mean"]) == pytest.approx(large)
    assert float(by["GMC", "A B", "A"]["change"]) == pytest.approx(large / small - 1)
    assert by["GMC", "A B", "B"]["change"] == "" and float(by["SASRec", "A B", "A"]["change"]) == 0
    assert float(by["GMC", "A", "A"]["million_interactions"]) == pytest.approx(SIZES["A"] / 1e6)
    assert float(by["GMC", "A B", "B"]["million_interactions"]) == pytest.approx(sum(SIZES.values()) / 1e6)
    printed = capsys.readouterr().out
    assert f"({100 * (large / small - 1):+.1f}%)" in printed and "A, 4 users" in printed and "B, 2 users" in printed
    assert all((data / "out" / f"domain_sets.{kind}").is_file() for kind in ("txt", "md", "tex"))
    page = (data / "out" / "domain_sets.html").read_text(encoding="utf-8")
    own = page[: page.index('<script type="application/json"')]
    assert (
        'id="figure-domain-1"' in own and 'id="figure-domain-2"' in own and "src=" not in own and f"{large:.4f}" in own
    )
    assert own.count('<td class="left">GMC</td>') == 2  # one row of each table tells the model
    assert '<td class="left"></td><td class="left">+\u00a0B</td>' in own and '<td class="left">A, B</td>' in own


def test_the_plot_stands_over_millions_of_interactions(data):  # noqa: F811
    benchmarks = sets_of(data, "--seeds=2")
    write_all(benchmarks)
    found = scenarios.compare({one.domains: board.build(one) for one in benchmarks})
    figures = scenario_page.figures(found)
    first, second = figures["domain-1"], figures["domain-2"]
    assert [trace.name for trace in first.data] == ["GMC", "SASRec"]
    assert list(first.data[0].x) == [SIZES["A"] / 1e6, sum(SIZES.values()) / 1e6]
    means = [np.mean([ndcg(PLACES["GMC", s][d][:4]) for s in (2020, 2021)]) for d in ("A", "A,B")]
    assert list(first.data[0].y) == pytest.approx(means) and first.layout.title.text == "A"
    for figure in (first, second):
        assert list(figure.layout.xaxis.range) == pytest.approx([0, 1.05 * sum(SIZES.values()) / 1e6])
    assert len(second.data[0].x) == 1 and list(first.data[0].customdata) == ["A", "A, B"]


def test_sets_that_were_asked_something_else_are_not_compared(data):  # noqa: F811
    benchmarks = sets_of(data, "--seeds=2")
    write_all(benchmarks)
    boards = {one.domains: board.build(one) for one in benchmarks}
    other = replace(boards["A", "B"], asked={**boards["A", "B"].asked, "A": ("0", "1")})
    with pytest.raises(DataError, match="not the same in every set"):
        scenarios.compare({**boards, ("A", "B"): other})


def test_from_the_command_line_and_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_planted(tmp_path, "Big", seed=1, users=12)
    write_planted(tmp_path, "Small", seed=2, users=10, items=12)
    settings = tiny(tmp_path, epochs=1, lora=False)
    del settings["run_dir"]
    (tmp_path / "b.yaml").write_text(json.dumps(settings))
    words = ["benchmark", "--models=GMC", "--dataset=both", "--config_files=b.yaml", "--output=out", "--domain_sets"]
    assert cli.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "1 cells on Big, in out/Big" in printed and "1 cells on Big, Small, in out/Big+Small" in printed
    assert not (tmp_path / "out").exists()
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "Set 2 of 2: Big, Small" in printed and "%)" in printed
    one, two = (tmp_path / "out" / name / "GMC-2020" / "result.json" for name in ("Big", "Big+Small"))
    assert list(json.loads(one.read_text())["domains"]) == ["Big"]
    assert list(json.loads(two.read_text())["domains"]) == ["Big", "Small"]
    before = one.stat().st_mtime_ns
    monkeypatch.setattr(run, "run_cell", None)  # nothing is left to run
    assert cli.main(words) == 0
    assert "1 of 1 cells are done" in capsys.readouterr().out and one.stat().st_mtime_ns == before
