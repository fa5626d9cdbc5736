"""Variants in the benchmark: cells with other settings, compared with their model and with nothing else."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from run_help import tiny, write_planted
from scipy import stats
from test_benchmark import data, plan_of, write_cell  # noqa: F401 - data is a fixture

from recbole_gmc import cli
from recbole_gmc.benchmark import board, command, tables, variants
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_file
from recbole_gmc.lookup import properties_folder
from recbole_gmc.values import read_yaml


@pytest.mark.parametrize("family", variants.FAMILIES, ids=lambda family: family.flag)
def test_every_file_has_a_name_in_tables(family):
    assert set(family.titles) == {file.stem for file in (properties_folder() / family.folder).glob("*.yaml")}


def test_the_steps_lead_to_gmcplus():
    """Each keeps what the one before it has, changes something, and the last one lacks one switch alone."""
    settings = [variant.settings for variant in variants.FAMILIES[1].chosen("all", ["GMCPlus"])][:6]
    final = read_yaml(properties_folder() / "model" / "GMCPlus.yaml")
    assert len({tuple(step) for step in settings}) == 1, "each says all of them, whatever the flags say"
    for before, after in pairwise(settings):
        changed = {key for key in after if after[key] != before[key]}
        assert changed and all(after[key] == final[key] != before[key] for key in changed)
    assert {key for key, value in settings[-1].items() if value != final[key]} == {"item_drop_ratio"}


def test_an_ablation_is_a_cell_with_the_settings_of_its_file(data):  # noqa: F811
    (data / "b.yaml").write_text("GMC: {lora: True, epochs: 9}\n")
    words = ("--seeds=2", "--tokenizer_domain_weight=2", f"--config_files={data / 'b.yaml'}")
    plain = plan_of(data, *words, models="GMC,Pop")
    found = plan_of(data, *words, "--ablations=all", models="GMC,Pop")
    assert found.models == ("GMC", "Pop") and len(found.cells) == 2 * 7
    titles = [f"GMC {title}" for title in variants.ABLATIONS.values()]
    assert found.rows == ("GMC", "Pop", *titles)
    by_name = {cell.name: cell for cell in found.cells}
    assert [by_name[cell.name] for cell in plain.cells] == list(plain.cells), "the other cells stay what they are"
    cell = by_name["GMC-without_lora-2021"]
    assert cell.row == "GMC without LoRA" and cell.model == "GMC"
    assert {"--model=GMC", "--lora=False", "--seed=2021", "--tokenizer_domain_weight=2"} <= set(cell.arguments)
    cell = by_name["GMC-without_domain_loss-2020"]
    assert "--tokenizer_domain_weight=0.0" in cell.arguments and "--tokenizer_domain_weight=2" not in cell.arguments
    assert len({cell.signature for cell in found.cells}) == len({cell.folder for cell in found.cells}) == 14
    listed = command.listing(found)
    assert "14 cells" in listed and "GMC with full fine-tuning       seed 2020  waiting" in listed


@pytest.mark.parametrize(
    "words, models, message",
    [
        (["--ablations=without_lor"], "GMC", "nearest: 'without_lora'.*Choose from all, without_shared_codebook"),
        (["--ablations=without_lora,without_lora"], "GMC", "names a variant twice"),
        (["--ablations=all"], "Pop", "Name GMC, too"),
        (["--ablations="], "GMC", "has no value"),
        (["--ablations=without_lora,full_finetuning", "--lora=False"], "GMC", "lora is False already"),
        (["--ablations=full_finetuning", "--lora=False"], "GMC", "nothing is trained a domain. Leave --ablations out"),
        (["--ablations=without_domain_loss", "--tokenizer=rkmeans"], "GMC", "rkmeans has no domain loss"),
        (["--ablations=without_shared_codebook", "--semantic_ids_path=x"], "GMC", "imports IDs"),
        (["--ladder=code"], "GMCPlus", "--ladder: 'code' is not known .nearest: 'codes'.*Choose from all, codes"),
        (["--ladder=all"], "GMC", "Name GMCPlus, too"),
        (["--ladder=codes", "--repeat_bias=False"], "GMCPlus", "property file has it, not with repeat_bias False"),
        (["--ladder=codes,rqvae", "--tokenizer=rqvae"], "GMCPlus", "not with tokenizer rqvae. Write --ladder=codes"),
        (["--ladder=codes,rqvae", "--semantic_ids_path=x"], "GMCPlus", "imports IDs.*Write --ladder=codes"),
    ],
)
def test_what_cannot_be_compared_is_refused(data, words, models, message):  # noqa: F811
    with pytest.raises(SettingError, match=message):
        plan_of(data, *words, models=models)


PLACES = {
    "GMC": [0, 1, -1, 2, 0, -1],
    "SASRec": [1, 1, 0, 2, 0, 2],
    "GMC without LoRA": [0, 0, 0, 0, 0, 0],
    "GMC with full fine-tuning": [0, 1, -1, 3, 1, -1],
}


def test_the_table_has_the_change_against_gmc(data):  # noqa: F811
    found = plan_of(data, "--ablations=without_lora,full_finetuning", models="GMC,SASRec")
    for cell in found.cells:
        write_cell(cell, found, PLACES[cell.row])
    made = board.build(found)
    assert [(row.model, row.base) for row in made.rows] == [(n, "GMC" if n.startswith("GMC ") else "") for n in PLACES]

    def ndcg(places: list[int]) -> float:
        return sum(1 / math.log2(place + 2) for place in places if place >= 0) / len(places)

    change = ndcg(PLACES["GMC with full fine-tuning"]) / ndcg(PLACES["GMC"]) - 1
    row = made.row("GMC with full fine-tuning")
    assert made.change(row, "average", "ndcg@10") == pytest.approx(change) and change < 0
    assert made.change(made.row("SASRec"), "average", "ndcg@10") is None
    assert made.order("average", "ndcg@10") == ["SASRec", "GMC"], "the best list is a variant's, which has no place"
    assert made.gain("average", "ndcg@10")[0] == "SASRec"
    assert ("average", "ndcg@10", "GMC without LoRA") in made.adjusted
    alone = plan_of(data, models="GMC,SASRec")
    before = board.build(alone).adjusted
    assert {key: made.adjusted[key] for key in before} == before, "variants are a family of their own"
    average = next(table for table in tables.tables(made) if table.title.startswith("average"))
    column = average.header.index("N@10")
    shown = {fields[0].text: fields[column] for fields in average.rows}
    assert shown["GMC with full fine-tuning"].text.endswith(f"({100 * change:+.1f}%)")
    assert not shown["GMC without LoRA"].mark and "(" not in shown["GMC"].text + shown["SASRec"].text
    assert "the relative change of a variant against GMC" in tables.terminal(made)
    line = next(
        line
        for line in csv.DictReader(tables.as_csv(made).splitlines())
        if (line["model"], line["part"], line["metric"]) == (row.model, "average", "ndcg@10")
    )
    assert float(line["change"]) == pytest.approx(change) and line["place"] == "" and line["budget_limited"] == "False"
    assert row.facts["text"] == made.row("GMC").facts["text"] == "ready embeddings"


def test_a_step_is_compared_with_the_model_it_leads_to(data):  # noqa: F811
    found = plan_of(data, "--ladder=codes", "--ablations=without_lora", models="GMC,GMCPlus")
    step = next(cell for cell in found.cells if cell.name == "GMCPlus-codes-2020")
    assert {"--model=GMCPlus", "--dense_head=False", "--train_softmax=table"} <= set(step.arguments)
    places = {**PLACES, "GMCPlus": [0, 0, 0, 1, 0, 0], "GMCPlus step 1, codes alone": [2, -1, -1, 2, 0, -1]}
    for cell in found.cells:
        write_cell(cell, found, places[cell.row])
    made = board.build(found)
    row = made.row("GMCPlus step 1, codes alone")
    expected = row.mean("average", "ndcg@10") / made.row("GMCPlus").mean("average", "ndcg@10") - 1
    assert made.change(row, "average", "ndcg@10") == pytest.approx(expected)
    assert made.order("average", "ndcg@10") == ["GMCPlus", "GMC"]
    shown = tables.terminal(made)
    assert "the relative change of a variant against GMC or GMCPlus" in shown
    assert "significantly different from GMC or, for a variant, from its model" in shown

    def of_users(model: str, metric: str) -> list[float]:
        gain = (lambda place: 1.0) if metric.startswith("recall") else (lambda place: 1 / math.log2(place + 2))
        return [gain(place) if 0 <= place < int(metric.split("@")[1]) else 0.0 for place in places[model]]

    raw = [stats.ttest_rel(of_users("GMCPlus", m), of_users(row.model, m)).pvalue for m in made.metrics]
    assert [made.adjusted["average", m, row.model] for m in made.metrics] == pytest.approx(board.holm(raw))


def test_from_the_command_line(tmp_path: Path, capsys):
    write_planted(tmp_path, "Big", seed=1, users=12)
    write_planted(tmp_path, "Small", seed=2, users=10, items=12)
    settings = tiny(tmp_path, epochs=1, lora_epochs=1)
    del settings["run_dir"]
    (tmp_path / "b.yaml").write_text(json.dumps(settings))
    words = ["benchmark", "--models=GMC", "--dataset=both", f"--config_files={tmp_path / 'b.yaml'}"]
    words += [f"--output={tmp_path / 'out'}", "--ablations=without_unified,full_finetuning"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "GMC without unified recommender" in out and "%)" in out and "gain on the strongest" not in out
    epochs = [
        json.loads((tmp_path / "out" / name / "result.json").read_text())["epochs"].keys()
        for name in ("GMC-2020", "GMC-without_unified-2020", "GMC-full_finetuning-2020")
    ]
    assert epochs == [
        {"unified", "lora:Big", "lora:Small"},
        {"alone:Big", "alone:Small"},
        {"unified", "full:Big", "full:Small"},
    ]
    note = json.loads((tmp_path / "out/GMC-2020.json").read_text())
    assert note["result"] == hash_file(tmp_path / "out/GMC-2020/result.json")
    assert cli.main(words) == 0
    assert "3 of 3 cells are done" in capsys.readouterr().out
