"""The benchmark command: cells, fairness, comparison and tables, on results that were written by hand."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from run_help import python, tiny, write_planted
from scipy import stats

from recbole_gmc import cli, lookup, registry, sections
from recbole_gmc.benchmark import board, command, fairness, plan, run, tables
from recbole_gmc.errors import CheckpointError, DataError, RunError, SettingError
from recbole_gmc.evaluate.raw import RawData
from recbole_gmc.files import hash_file

HISTORIES = {
    "A": {"u1": "abcd", "u2": "bcde", "u3": "cdea", "u4": "deab", "u5": "ab"},  # u5 has too few to be tested
    "B": {"u1": "xyz", "u2": "yzx"},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two domains, rows out of order in time; u4's last two have one time, so the later line is the last."""
    for domain, users in HISTORIES.items():
        rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items)]
        rows = [(u, i, 2 if (domain, u, t) == ("A", "u4", 3) else t) for u, i, t in rows]
        rows.sort(key=lambda row: -row[2]) if domain == "B" else None
        folder = tmp_path / "data" / domain
        folder.mkdir(parents=True)
        lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{domain}.inter").write_text("\n".join(lines) + "\n")
    return tmp_path


TARGETS = {("A", "u1"): "d", ("A", "u2"): "e", ("A", "u3"): "a", ("A", "u4"): "b", ("B", "u1"): "z", ("B", "u2"): "x"}
CANDIDATES = {"A": "abcde", "B": "xyz"}


def plan_of(root: Path, *more: str, models: str = "GMC,SASRec,Pop") -> plan.Benchmark:
    words = [f"--models={models}", "--dataset=both", "--domains=A,B", f"--data_path={root / 'data'}", *more]
    return plan.parse([*words, f"--output={root / 'out'}"])[0]


def write_cell(cell: plan.Cell, benchmark: plan.Benchmark, places: list[int], **changes) -> None:
    """A cell whose held-out items, by sorted (domain, user), stand at these places of the lists; -1: at none."""
    lines = [
        ["domain", "user_id", "target_item", "rank", *(f"{w}_{k}" for k in (1, 2, 3, 4) for w in ("item", "score"))]
    ]
    for ((domain, user), target), place in zip(sorted(TARGETS.items()), places, strict=True):
        items = [item for item in CANDIDATES[domain] if item != target][:4]
        items = items[:place] + [target] + items[place:] if place >= 0 else items
        pairs = [[item, f"{-i:.6f}"] for i, item in enumerate(items[:4])]
        pairs += [["-1", ""]] * (4 - len(pairs))
        lines.append([domain, user, target, str(place), *(text for pair in pairs for text in pair)])
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "topk.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    owner = [domain for domain, _ in sorted(TARGETS)]

    def metrics(mine: list[int]) -> dict[str, float]:
        recall = {f"recall@{k}": sum(0 <= p < k for p in mine) / len(mine) for k in (5, 10)}
        ndcg = {f"ndcg@{k}": sum(1 / math.log2(p + 2) for p in mine if 0 <= p < k) / len(mine) for k in (5, 10)}
        return {**recall, **ndcg}

    text = json.dumps([[d, sorted(items)] for d, items in CANDIDATES.items()], separators=(",", ":"))
    domains = {d: metrics([p for p, o in zip(places, owner, strict=True) if o == d]) for d in CANDIDATES}
    report = {
        "model": cell.model,
        "dataset": "both",
        "seed": cell.seed,
        "domains": {d: {"users": owner.count(d), "items": len(CANDIDATES[d]), **m} for d, m in domains.items()},
        "average": metrics(places),
        "label": "",
        "budget_limited": False,
        "parameters": {"model": {"A": 10, "B": 5}, "adapter": 0},
        "seconds": {"train:A": 3.0, "train:B": 4.0, "test:A": 0.5, "test:B": 0.25},
        "epochs": {"A": 2, "B": 3},
        "hashes": {"candidates": hashlib.sha256(text.encode() + b"\x1e").hexdigest()},
        "settings": {"MAX_ITEM_LIST_LENGTH": 20, "text_embedding_path": {"A": "a.npy"}},
        **changes,
    }
    (cell.folder / "result.json").write_text(json.dumps(report))
    note = {"status": "done", "signature": cell.signature, "data": run.data_hashes(benchmark), "seconds": 100.0}
    note["settings"] = dict(cell.settings)
    cell.folder.with_suffix(".json").write_text(json.dumps(note))


PLACES = {
    ("GMC", 2020): [0, 1, -1, 2, 0, -1],
    ("GMC", 2021): [0, 0, -1, 3, 1, -1],
    ("SASRec", 2020): [1, 1, 0, 2, 0, 2],
    ("SASRec", 2021): [1, 2, 0, 2, 1, 2],
    ("Pop", 2020): [-1, -1, 3, -1, 2, -1],
    ("Pop", 2021): [-1, -1, 3, -1, 2, -1],
}


@pytest.fixture
def done(data: Path) -> plan.Benchmark:
    benchmark = plan_of(data, "--seeds=2")
    for cell in benchmark.cells:
        write_cell(cell, benchmark, PLACES[cell.model, cell.seed])
    return benchmark


def test_the_truth_is_read_from_the_raw_files(data):
    truth = fairness.read_truth(data / "data", ["A", "B"], RawData())
    assert truth.targets == TARGETS
    assert truth.candidates == {d: frozenset(items) for d, items in CANDIDATES.items()}
    cored = fairness.read_truth(data / "data", ["A"], RawData(core=(3, 3)))
    assert set(cored.targets) == {key for key in TARGETS if key[0] == "A"}
    assert fairness.read_truth(data / "data", ["A"], RawData(core=(5, 0))).targets == {}


def test_the_truth_is_what_gmc_and_recbole_test(tmp_path):
    from data_help import config_of, random_rows, write_domain
    from recbole.data import create_dataset

    from recbole_gmc.data.domains import GMCDataset

    write_domain(tmp_path, "D", random_rows(3, [f"u{i}" for i in range(30)], [f"i{i}" for i in range(20)]))
    core = {"user_inter_num_interval": "[3,inf)", "item_inter_num_interval": "[4,inf)"}
    truth = fairness.read_truth(tmp_path, ["D"], RawData(core=(3, 4)))
    config = config_of(tmp_path, "D", **core)
    data = GMCDataset(config)
    assert frozenset(data.items.tokens["D"]) == truth.candidates["D"]
    test = data.build()[2]
    items = data.id2token("item_id", test.inter_feat["item_id"].numpy())
    users = data.original_user_token(test.inter_feat["user_id"].numpy())
    assert {("D", user): item for user, item in zip(users, items, strict=True)} == truth.targets
    theirs = create_dataset(config)
    assert set(theirs.field2id_token["item_id"][1:]) == truth.candidates["D"]


def test_means_spreads_and_the_average_are_the_files(done):
    found = board.build(done)
    ranks = np.array([PLACES["SASRec", 2021]])
    assert found.parts == ("A", "B", "average") and found.users == {"A": 4, "B": 2, "average": 6}
    row = found.row("SASRec")
    seeds = [np.mean([1 / math.log2(p + 2) for p in PLACES["SASRec", seed]]) for seed in (2020, 2021)]
    assert row.scores["average"]["ndcg@10"] == pytest.approx(seeds)
    assert row.mean("average", "ndcg@10") == pytest.approx(np.mean(seeds))
    assert row.std("average", "ndcg@10") == pytest.approx(abs(seeds[0] - seeds[1]) / math.sqrt(2))
    assert row.scores["A"]["recall@5"][1] == (ranks[0, :4] >= 0).mean()
    assert found.order("average", "ndcg@10") == ["SASRec", "GMC", "Pop"]
    name, gain = found.gain("average", "ndcg@10")
    ours = found.row("GMC").mean("average", "ndcg@10")
    assert name == "SASRec" and gain == pytest.approx(ours / np.mean(seeds) - 1)
    assert row.facts["parameters"] == 15 and row.facts["train"] == 7.0 and row.facts["test"] == 0.75


def test_significance_is_scipy_s_and_holm_s(done):
    found = board.build(done)

    def of_user(model, metric):
        kind, k = metric.split("@")
        each = [
            [(0 <= p < int(k)) * (1.0 if kind == "recall" else 1 / math.log2(max(p, 0) + 2)) for p in PLACES[model, s]]
            for s in (2020, 2021)
        ]
        return np.mean(each, 0)

    raw = {
        (m, o): stats.ttest_rel(of_user("GMC", m), of_user(o, m)).pvalue
        for m in found.metrics
        for o in ("SASRec", "Pop")
    }
    assert not any(math.isnan(p) for p in raw.values())
    order = sorted(raw, key=raw.get)
    for place, (metric, other) in enumerate(order):
        expected = max(min(1, (len(order) - i) * raw[key]) for i, key in enumerate(order[: place + 1]))
        assert found.adjusted["average", metric, other] == pytest.approx(expected)


def test_holm_by_hand():
    assert board.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert board.holm([]) == [] and board.holm([0.9, 0.8]) == [1.0, 1.0]


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


TAMPERED = {
    "another target": ("topk.tsv", "A\tu1\td\t", "A\tu1\tc\t", "last interaction of 'u1' is 'd'"),
    "another rank": ("topk.tsv", "A\tu1\td\t1\t", "A\tu1\td\t0\t", "rank 0, but the target's place is 1"),
    "another user": ("topk.tsv", "A\tu1\t", "A\tu5\t", "no test user"),
    "a foreign item": ("topk.tsv", "\ta\t0.000000\td\t", "\tz\t0.000000\td\t", "no candidate"),
    "an item twice": ("topk.tsv", "\ta\t0.000000\td\t", "\td\t0.000000\td\t", "twice"),
    "another metric": ("result.json", '"recall@5": 1.0', '"recall@5": 0.9', "but its lists give"),
    "other candidates": ("result.json", '"candidates": "', '"candidates": "0', "other candidates"),
    "another model": ("result.json", '"model": "SASRec"', '"model": "GMC"', "model is 'GMC', not 'SASRec'"),
    "another seed": ("result.json", '"seed": 2020', '"seed": 2021', "seed is 2021, not 2020"),
    "another history": ("result.json", 'LIST_LENGTH": 20', 'LIST_LENGTH": 50', "GMC 20, SASRec 50"),
    "a metric gone": ("result.json", '"recall@5": ', '"mrr@5": ', "no readable result .KeyError.'recall@5'"),
    "a metric in words": ("result.json", '"recall@5": 1.0', '"recall@5": "high"', "no readable result .TypeError"),
    "a fact gone": ("result.json", '"epochs": ', '"epoch": ', "no readable result .KeyError.'epochs'"),
    "no settings": ("result.json", '"settings": {', '"settings": null, "x": {', "settings is None"),
    "parameters in words": ("result.json", '"parameters": {', '"parameters": "few", "x": {', "parameters is 'few'"),
    "another header": ("topk.tsv", "item_2\tscore_2", "score_2\titem_2", "topk.tsv:1: not the header"),
    "rising scores": ("topk.tsv", "\t0.000000\t", "\t-7.000000\t", "topk.tsv:2: the scores are not numbers, or they"),
    "no score": ("topk.tsv", "\t0.000000\t", "\tnan\t", "topk.tsv:2: the scores are not numbers, or they"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_cell_means_no_table(done, what, capsys):
    name, old, new, message = TAMPERED[what]
    command.show(done)
    assert (done.output / "table.md").is_file()
    changed(done.output / "SASRec-2020" / name, old, new)
    with pytest.raises(DataError, match=message):
        command.show(done)
    assert not list(done.output.glob("table.*"))


def test_a_result_that_is_not_what_the_cell_wrote_means_no_table(done):
    """Also where nothing else could tell, as in seconds."""
    file, note = done.output / "SASRec-2020/result.json", done.output / "SASRec-2020.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "result": hash_file(file)}))
    board.build(done)
    changed(file, '"train:A": 3.0', '"train:A": 0.3')
    with pytest.raises(DataError, match="SASRec-2020/result.json: changed after the cell had run"):
        board.build(done)


def test_a_model_of_which_a_seed_is_missing_has_no_marks(done):
    (done.output / "SASRec-2021/result.json").unlink()
    found = board.build(done)
    assert found.row("SASRec").mean("average", "ndcg@10") > found.row("GMC").mean("average", "ndcg@10")
    assert found.order("average", "ndcg@10") == ["GMC", "Pop"] and found.gain("average", "ndcg@10")[0] == "Pop"
    assert not [key for key in found.adjusted if key[2] == "SASRec"]
    assert "SASRec (1 of 2 seeds)" in tables.terminal(found)


@pytest.mark.parametrize(
    "models, reference",
    [("SASRec,GMC", "GMC"), ("SASRec,GMCPlus,Pop", "GMCPlus"), ("GMCPlus,GMC", "GMC"), ("Pop,SASRec", "Pop")],
)
def test_the_gain_is_that_of_our_model(data, models, reference):
    assert plan_of(data, models=models).reference == reference


def test_lists_that_are_no_text_mean_no_table(done):
    (done.output / "SASRec-2020/topk.tsv").write_bytes(b"domain\xff")
    with pytest.raises(DataError, match="topk.tsv: cannot be read .*utf-8"):
        board.build(done)


def test_gmcplus_is_no_baseline_of_gmc(data):
    benchmark = plan_of(data, models="GMC,GMCPlus,Pop")
    for cell in benchmark.cells:
        write_cell(cell, benchmark, {"GMC": [0, 1, 2, 0, 1, 2], "GMCPlus": [0] * 6, "Pop": [-1] * 6}[cell.model])
    found = board.build(benchmark)
    assert found.order("A", "ndcg@10") == ["GMCPlus", "GMC", "Pop"] and found.gain("A", "ndcg@10")[0] == "Pop"
    assert "GMC's gain on the strongest baseline" in tables.terminal(found)


def test_labels_stand_at_every_row(done):
    cells = [cell for cell in done.cells if cell.model == "SASRec"]
    for cell in cells:
        write_cell(cell, done, PLACES["SASRec", cell.seed], label="small setting")
    text = tables.terminal(board.build(done))
    assert text.count("SASRec [1]") == 3 and "[1] small setting." in text


@pytest.mark.parametrize(
    "settings, said", [((8, 1), "8"), ((10, 2), "10 x 2"), ((8, None), "8"), ((None, None), "-")]
)
def test_how_long_a_model_waits_for_a_better_score(settings, said):
    assert board.patience(dict(zip(("stopping_step", "eval_step"), settings, strict=True))) == said


def test_a_user_left_out_means_no_table(done):
    file = done.output / "Pop-2021/topk.tsv"
    file.write_text("".join(line for line in file.open() if not line.startswith("B\tu2")))
    with pytest.raises(DataError, match="1 test users are not in it"):
        board.build(done)


def test_changed_data_or_settings_are_refused(done, data):
    run.refuse_other(done)
    with pytest.raises(SettingError, match=r"other settings \(epochs: None, now 3\)"):
        run.refuse_other(plan_of(data, "--seeds=2", "--epochs=3"))
    run.refuse_other(plan_of(data, "--seeds=2", "--show_progress=False", f"--cache_dir={data / 'cache'}"))
    with (data / "data/A/A.inter").open("a") as file:
        file.write("u9\ta\t0\n")
    with pytest.raises(SettingError, match=r"other data \(A.inter\)"):
        run.refuse_other(done)


def test_a_limited_model_has_no_marks_and_no_tests(done, data):
    cell = next(cell for cell in done.cells if cell.name == "SASRec-2021")
    write_cell(cell, done, PLACES["SASRec", 2021], budget_limited=True)
    found = board.build(done)
    assert found.order("A", "recall@5") == ["GMC", "Pop"] and found.gain("A", "ndcg@10")[0] == "Pop"
    assert not any(model == "SASRec" for _, _, model in found.adjusted)
    row = next(r for r in tables.tables(found)[0].rows if r[0].text == "SASRec (budget-limited)")
    assert all(not field.mark for field in row) and row[1].text.startswith("1.0000")


def test_a_failed_cell_is_shown_and_the_rest_compared(done):
    cell = next(cell for cell in done.cells if cell.name == "Pop-2021")
    (cell.folder / "result.json").unlink()
    note = {"status": "failed", "error": "disk full", "signature": cell.signature, "seconds": 1.0}
    cell.folder.with_suffix(".json").write_text(json.dumps(note))
    found = board.build(done)
    assert found.row("Pop").seeds == (2020,) and "seed 2021 FAILED: disk full" in tables.markdown(found)
    assert "failed: disk full" in command.listing(done)


def test_every_form_says_the_same(done):
    found = board.build(done)
    value = found.row("SASRec").mean("average", "ndcg@10")
    lines = list(csv.DictReader(tables.as_csv(found).splitlines()))
    line = next(x for x in lines if (x["model"], x["part"], x["metric"]) == ("SASRec", "average", "ndcg@10"))
    assert float(line["mean"]) == value and line["place"] == "1" and len(lines) == 3 * 3 * 4
    assert float(line["p"]) == found.adjusted["average", "ndcg@10", "SASRec"]
    text = f"{value:.4f} ± {found.row('SASRec').std('average', 'ndcg@10'):.4f}"
    assert f"**{text}**" in tables.markdown(found) and f"{text}*" in tables.terminal(found)
    latex = tables.latex(found)
    assert rf"\textbf{{{text.replace('±', '$' + chr(92) + 'pm$')}}}" in latex and r"GMC's gain" in latex
    second = f"{found.row('GMC').mean('average', 'ndcg@10'):.4f}"
    assert f"<u>{second}" in tables.markdown(found) and rf"\underline{{{second}" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4


def test_the_plan(data):
    benchmark = plan_of(data, "--seeds=2", "--seed=7", "--epochs=3")
    assert [cell.name for cell in benchmark.cells][:4] == ["GMC-7", "SASRec-7", "Pop-7", "GMC-8"]
    assert {"--epochs=3", "--seed=7", "--model=GMC", "--domains=A,B"} <= set(benchmark.cells[0].arguments)
    assert [cell.seed for cell in plan_of(data, "--seeds=7,9", models="Pop").cells] == [7, 9]
    (data / "b.yaml").write_text("GMC: {epochs: 9}\nuser_inter_num_interval: '[5,inf)'\n")
    with_section = plan_of(data, f"--config_files={data / 'b.yaml'}", models="GMC,Pop")
    assert with_section.raw.core == (5, 0)
    (data / "b.yaml").write_text("GMC: {epochs: 8}\nuser_inter_num_interval: '[5,inf)'\n")
    again = plan_of(data, f"--config_files={data / 'b.yaml'}", models="GMC,Pop")
    same = [a.signature == b.signature for a, b in zip(with_section.cells, again.cells, strict=True)]
    assert same == [False, True]  # a section is its model's business alone


def test_the_packaged_settings_of_a_table():
    file = lookup.read_files(["properties/benchmark/two_domains.yaml"])
    models = set(file) - {"budget_minutes", "cpu_threads"}
    assert models <= {*registry.entries(), *registry.recbole_names()}
    settings = {model: sections.for_model(file, model) for model in (*models, "SASRec")}
    assert settings["SASRec"] == {"budget_minutes": 90, "cpu_threads": 1}
    assert settings["GMC"]["budget_minutes"] is None and settings["GMC"]["d_model"] == 128  # of the file it names
    assert [settings[model]["epochs"] for model in ("GMC", "TIGER")] == [100, 60]  # its own come on top
    short = sections.for_model(lookup.read_files(["properties/benchmark/ablations.yaml"]), "GMC")
    assert (short["epochs"], short["lora_epochs"], short["d_model"]) == (20, 5, 128)


def test_a_domain_that_is_not_there_is_told_with_the_nearest(data):
    (data / "data" / "Alpha").mkdir()
    (data / "data" / "Alpha" / "Alpha.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n")
    with pytest.raises(DataError, match="no domain 'Alhpa' in .*nearest: 'Alpha'.*Alhpa.inter"):
        plan.parse(["--models=Pop", "--dataset=x", "--domains=A,Alhpa", f"--data_path={data / 'data'}"])


def test_damaged_cells_are_refused_with_the_file(done):
    for name, text in (("SASRec-2020/result.json", "{}"), ("SASRec-2020/topk.tsv", ""), ("SASRec-2020.json", "[")):
        file = done.output / name
        before = file.read_text()
        file.write_text(text)
        with pytest.raises((DataError, CheckpointError), match=file.name):
            board.build(done)
        file.write_text(before)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seeds=0"], "no seed"),
        (["--seeds=x"], "are no seeds"),
        (["--seeds=2021"], "write --seed=2021"),
        (["--models=GMC"], "given twice"),
        (["--run_dir=x"], "decides this itself"),
        (["--epoch=3"], "nearest: 'epochs'"),
        (["--domain_set=A"], "nearest: 'domain_sets'"),
        (["--ablation=all"], "nearest: 'ablations'"),
        (["--rm_dup_inter=first"], "Filter the files beforehand"),
        (["--user_inter_num_interval=[5,9]"], "takes intervals such as"),
        (["--topk=ten"], "'ten' are no lengths of lists"),
        (["--topk=[5,0]"], "are no lengths of lists"),
    ],
)
def test_bad_words_are_refused(data, words, message):
    with pytest.raises(SettingError, match=message):
        plan_of(data, *words)


@pytest.mark.parametrize(
    "section",
    [
        *("SASRec: {MAX_ITEM_LIST_LENGTH: 50}", "SASRec: {max_prefixes: 1}", "SASRec: {valid_metric: MRR@5}"),
        *("SASRec: {repeatable: False}", "SASRec: {USER_ID_FIELD: user}", "SASRec: {seed: 5}"),
        *("GMC: {missing_text: drop}", "GMC: {text_fields: [brand]}", "GMC: {text_embedding_path: {A: a.npy}}"),
    ],
)
def test_a_section_cannot_change_the_protocol(data, section):
    (data / "b.yaml").write_text(section)
    with pytest.raises(SettingError, match=f"for {section[: section.index(':')]} alone"):
        plan_of(data, f"--config_files={data / 'b.yaml'}")


def test_one_length_of_lists_may_stand_alone(data):
    assert plan_of(data, "--topk=10").topk == (10,) and plan_of(data, "--topk=[10,5]").topk == (5, 10)


def test_a_cell_knows_the_property_files_that_it_was_made_with(data):
    """Of the data set, in which a section holds for one model, and of a domain."""

    def signatures():
        words = [f"--models={','.join(models)}", "--dataset=ab", f"--data_path={data / 'data'}"]
        return [cell.signature for cell in plan.parse([*words, f"--output={data / 'out'}"])[0].cells]

    models, (file, domain) = ("GMC", "SASRec", "FDSA"), (data / "data/ab.yaml", data / "data/A.yaml")
    file.write_text("domains: [A, B]\ntext_fields: [title]\n")
    first = signatures()
    file.write_text("domains: [A, B]\ntext_fields: [brand]\n")
    second = signatures()
    file.write_text("domains: [A, B]\ntext_fields: [brand]\nGMC: {epochs: 1}\n")
    third = signatures()
    domain.write_text("FDSA: {selected_features: [brand]}\n")
    fourth = signatures()
    assert all(one != two for one, two in zip(first, second, strict=True))
    assert [one == two for one, two in zip(second, third, strict=True)] == [False, True, True]
    assert [one == two for one, two in zip(third, fourth, strict=True)] == [True, True, False]


def test_ready_embeddings_are_part_of_the_data(data):
    files = {domain: data / f"{domain}.npy" for domain in "AB"}
    words = f"--text_embedding_path={{A: {files['A']}, B: {files['B']}}}"
    with pytest.raises(DataError, match="text_embedding_path: no file .*A.npy' for A"):
        plan_of(data, words)
    for file in files.values():
        file.write_bytes(b"one")
    found = plan_of(data, words)
    before = run.data_hashes(found)
    files["B"].write_bytes(b"two")
    changed = {name for name, digest in run.data_hashes(found).items() if before[name] != digest}
    assert changed == {"B.embeddings"}


@pytest.mark.parametrize(
    ("words", "file", "where", "row"),
    [
        (["--epochs=abc"], "", "epochs", "Pop"),
        (["--learning_rate=-1"], "", "learning_rate", "Pop"),
        (["--domain_sets", "--metrics=[AUC]"], "", "metrics", "Pop"),
        (["--dry-run"], "SASRec: {hidden_size: big}", "hidden_size", "SASRec"),
        ([], "SASRec: {n_layers: two}", "n_layers", "SASRec"),
        ([], "GMC: {lora_r: 0}", "lora_r", "GMC"),
        (["--ablations=without_lora"], "GMC: {d_ff: wide}", "d_ff", "GMC"),
        ([], "P5CID: {num_heads: 0}", "num_heads", "P5CID"),
    ],
)
def test_a_bad_value_is_refused_before_any_cell(data, monkeypatch, words, file, where, row):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    (data / "b.yaml").write_text(file)
    words = [*words, "--models=Pop,SASRec,GMC,P5CID", "--dataset=both", "--domains=A,B", f"--output={data / 'out'}"]
    with pytest.raises(SettingError) as error:
        command.run([*words, f"--data_path={data / 'data'}", f"--config_files={data / 'b.yaml'}"])
    assert error.value.where == where and f"(for {row})" in str(error.value)
    assert not (data / "out").exists()


def test_what_is_done_is_not_done_again_and_a_failure_stops_nothing(done, monkeypatch, capsys):
    started = []

    class Child:
        def __init__(self, words, **_):
            started.append([word for word in words if word.startswith("--model=")][0])
            self.code = 1

        def wait(self):
            return self.code

        poll = wait

    monkeypatch.setattr(subprocess, "Popen", Child)
    for name in ("SASRec-2021", "Pop-2021"):
        (done.output / name / "result.json").unlink()
        (done.output / f"{name}.log").write_text("something\nrecbole-gmc: no such file\n")
    run.run_all(done)
    assert started == ["--model=SASRec", "--model=Pop"]
    out = capsys.readouterr().out
    assert (
        "4 of 6 cells are done" in out and out.count("FAILED: no such file") == 2 and "1.7 min left for 1 cells" in out
    )
    run.run_all(done)
    assert len(started) == 4  # failed ones are tried again


def test_a_cell_that_runs_elsewhere_is_left_alone(done, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    cell = done.cells[0]
    with run.locked(cell.folder.with_suffix(".lock")):
        assert run.run_cell(cell, {}, {}) == "is run by another process"
    assert run.status(cell) == run.DONE


def test_a_cell_that_was_done_elsewhere_meanwhile_is_not_done_again(done, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    cell = done.cells[0]
    before = {file: file.stat().st_mtime_ns for file in done.output.rglob("*") if file.is_file()}
    data = run.data_hashes(done)
    assert run.run_cell(cell, data, {}) == "was run by another process meanwhile"
    after = {file: file.stat().st_mtime_ns for file in before}
    assert {file for file in before if before[file] != after[file]} <= {cell.folder.with_suffix(".lock")}
    failed = {**run.note_of(cell), "status": run.FAILED}
    cell.folder.with_suffix(".json").write_text(json.dumps(failed))
    assert run.run_cell(cell, data, {**failed, "seconds": 0}) == "was run by another process meanwhile"
    with pytest.raises(pytest.fail.Exception, match="started"):  # one that had failed before is tried again
        run.run_cell(cell, data, failed)


def test_an_interrupted_cell_goes_on_and_gives_what_it_would_have_given(tmp_path, monkeypatch, capsys):
    write_planted(tmp_path, "Big", seed=1)
    settings = {key: value for key, value in tiny(tmp_path, domains=["Big"], epochs=24).items() if key != "run_dir"}
    (tmp_path / "b.yaml").write_text(json.dumps(settings))
    words = ["benchmark", "--models=GMC", "--dataset=Big", f"--config_files={tmp_path / 'b.yaml'}"]
    assert cli.main([*words, f"--output={tmp_path / 'whole'}"]) == 0
    shutil.rmtree(tmp_path / "cache")
    started = []

    class Killed(subprocess.Popen):
        """Killed once an epoch is on disk, unless it resumes."""

        def wait(self, *args):
            progress = tmp_path / "cut/GMC-2020/checkpoint/progress.json"
            started.append([word for word in self.args if word.startswith(("--resume", "--model"))])
            while len(started) == 1 and self.poll() is None:
                with contextlib.suppress(OSError):  # the folder changes places while it is read
                    if json.loads(progress.read_text()).get("next_epoch"):
                        self.kill()
            return super().wait(*args)

    monkeypatch.setattr(subprocess, "Popen", Killed)
    assert cli.main([*words, f"--output={tmp_path / 'cut'}"]) == 1
    assert "FAILED: killed by signal 9" in capsys.readouterr().out
    assert cli.main([*words, f"--output={tmp_path / 'cut'}"]) == 0
    assert started == [["--model=GMC"], [f"--resume={tmp_path / 'cut/GMC-2020'}"]]
    same = [(tmp_path / name / "GMC-2020/topk.tsv").read_text() for name in ("whole", "cut")]
    assert same[0] == same[1]


def test_what_text_a_model_reads():
    columns = {"of_domain": {"A": {"load_col": {"item": ["item_id", "categories", "brand"]}}}}
    assert board.text_of("FDSA", columns) == "attributes: categories, brand"
    assert board.text_of("SASRec", {"text_embedding_path": {"A": "a.npy"}}) == "none"
    assert board.text_of("TIGER", {"text_encoder": "lsa"}) == "lsa embeddings" and board.text_of("P5CID", {}) == "none"
    assert board.text_of("GMC", {"text_embedding_path": {"A": "a.npy"}}) == "ready embeddings"
    assert board.text_of("RecFormer", {}) == "raw text"


def test_no_cell_done_is_said(data):
    with pytest.raises(RunError, match="no cell is done"):
        command.show(plan_of(data))


def test_the_command_from_the_command_line(data):
    words = ["--models=Pop,GRU4Rec", "--dataset=both", "--domains=A,B", f"--data_path={data / 'data'}", "--epochs=1"]
    shown = python("-m", "recbole_gmc", "benchmark", *words, "--output=out", "--dry-run", cwd=data)
    assert "2 cells on A, B, in out" in shown.stdout and not (data / "out").exists()
    made = python("-m", "recbole_gmc", "benchmark", *words, "--output=out", "--show_progress=False", cwd=data)
    assert "2 of 2" not in made.stdout and "Pop's gain" in made.stdout
    again = python("-m", "recbole_gmc", "benchmark", *words, "--output=out", "--show_progress=False", cwd=data)
    assert "2 of 2 cells are done" in again.stdout
    with pytest.raises(SettingError, match="other settings"):  # a list must not call done what a run would refuse
        command.run([*words[:-1], "--epochs=2", f"--output={data / 'out'}", "--dry-run"])
    assert (data / "out/table.md").read_text().count("| GRU4Rec |") == 4
    held_out = [line.split("\t")[:3] for line in (data / "out/Pop-2020/valid_topk.tsv").read_text().splitlines()[1:]]
    assert sorted(held_out) == [["A", "u1", "c"], ["A", "u2", "d"], ["A", "u3", "e"], ["A", "u4", "a"]]
