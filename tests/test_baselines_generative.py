"""TIGER, P5CID and IDGenRec: one domain at a time, on the machinery of GMC."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model, get_trainer, init_seed
from run_help import tiny, write_both, write_planted

import recbole_gmc
from recbole_gmc import quick, registry
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.decode.exact import score_all
from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_file, read_json
from recbole_gmc.model.seq2seq import encode_histories
from recbole_gmc.settings import T5Settings, keys_of

pytestmark = pytest.mark.usefixtures("own_arguments")

MODELS = ("TIGER", "P5CID", "IDGenRec")
SMALL = {"cid_clusters": 3, "cid_leaf_size": 4, "lora": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("generative")
    write_both(root)
    return root


def settings_of(root: Path, run_dir: Path | None = None, **changes):
    return tiny(root, run_dir, **{"epochs": 2, **SMALL, "dropout_rate": 0.1, **changes})


def prepared(root: Path, model: str, domain: str, **changes) -> SimpleNamespace:
    """A model with IDs and random weights."""
    settings = settings_of(root, root / f"prepared-{model}", domains=[domain], **changes)
    config = Config(model, domain, config_dict=settings)
    init_seed(config["seed"], True)
    train, _, test = data_preparation(config, create_dataset(config))
    made = get_model(model)(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, made)
    trainer._set_ids(train._dataset, False)
    return SimpleNamespace(model=made.eval(), trainer=trainer, train=train, test=test, config=config)


@pytest.fixture(scope="module", params=MODELS)
def runs(request, root) -> SimpleNamespace:
    """Both domains by the command line's function; one of them alone by RecBole's."""
    model = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        folder, alone = root / model, root / f"{model}-alone"
        both = quick.run(model, "both", [], settings_of(root, folder, cache_dir=str(root / f"cache-{model}-1")))
        single = settings_of(root, alone, cache_dir=str(root / f"cache-{model}-2"))
        del single["domains"]
        returned = run_recbole(model=model, dataset="Small", config_dict=single)
    return SimpleNamespace(
        model=model, folder=folder, alone=alone, both=both, returned=returned, result=read_json(folder / "result.json")
    )


def test_the_command_line_runs_every_domain_and_joins_the_results(runs):
    assert list(runs.both) == ["Big", "Small"]
    lines = (runs.folder / "topk.tsv").read_text().splitlines()
    parts = [(runs.folder / f"domains/{d}/topk.tsv").read_text().splitlines() for d in ("Big", "Small")]
    assert lines == [parts[0][0], *parts[0][1:], *parts[1][1:]] and len(lines) == 1 + 30 + 20
    own = {domain: read_json(runs.folder / f"domains/{domain}/result.json") for domain in ("Big", "Small")}
    for domain, report in own.items():
        told = runs.result["domains"][domain]
        assert told["items"] == {"Big": 18, "Small": 12}[domain]
        assert {name: told[name] for name in report["average"]} == report["average"]
        assert runs.result["parameters"]["model"][domain] == report["parameters"]["model"] > 1000
        assert runs.result["epochs"][domain] == 2 and runs.result["seconds"][f"unified:{domain}"] > 0
    weighted = (30 * own["Big"]["average"]["ndcg@10"] + 20 * own["Small"]["average"]["ndcg@10"]) / 50
    assert runs.result["average"]["ndcg@10"] == pytest.approx(weighted)
    assert runs.result["hashes"].keys() == {"targets", "candidates", "lists"}


def test_the_label_stands_in_results_and_log(runs):
    label = {"TIGER": "", "P5CID": "small from-scratch setting"}
    label = label.get(runs.model, "small from-scratch setting, fallback ids")
    own = read_json(runs.folder / "domains/Big/result.json")
    assert runs.result["label"] == own["label"] == label
    log = (runs.folder / "domains/Big/run.log").read_text()
    assert (f"{runs.model} in a {label}" in log) == bool(label)
    assert "average" in (runs.folder / "run.log").read_text(), "the joint table"


def test_lists_hold_distinct_items_of_the_right_domain(runs):
    for line in (runs.folder / "topk.tsv").read_text().splitlines()[1:]:
        domain, _, target, _, *pairs = line.split("\t")
        items = [item for item, score in zip(pairs[::2], pairs[1::2], strict=True) if score]
        assert len(items) == len(set(items)) == {"Big": 18, "Small": 12}[domain]
        assert all(item.startswith(f"{domain.lower()}-") for item in [target, *items])


def test_one_seed_gives_one_result_whoever_starts_the_run(runs):
    one, other = read_json(runs.folder / "domains/Small/result.json"), read_json(runs.alone / "result.json")
    assert one["hashes"] == other["hashes"] and {"weights", "semantic_ids", "lists"} <= one["hashes"].keys()
    assert one["average"] == other["average"]
    name = "checkpoint/model.safetensors"
    assert hash_file(runs.folder / "domains/Small" / name) == hash_file(runs.alone / name)
    rounded = {name: round(value, 4) for name, value in other["average"].items()}
    assert {name: runs.returned["test_result"][name] for name in rounded} == rounded


def test_a_saved_model_gives_the_same(runs):
    model = recbole_gmc.load(runs.alone)
    histories: dict[str, list[str]] = {}
    for line in (runs.alone.parent / "Small/Small.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(item)
    for line in (runs.alone / "topk.tsv").read_text().splitlines()[1::4]:
        _, user, _, _, *pairs = line.split("\t")
        told = model.recommend("Small", histories[user][:-1], 10)
        assert [item for item, _ in told] == pairs[0:20:2]
        assert [score for _, score in told] == pytest.approx([float(s) for s in pairs[1:20:2]], abs=1e-5)
    config, again, _, _, _, test = load_data_and_model(str(runs.alone / "checkpoint"))
    result = get_trainer(config["MODEL_TYPE"], runs.model)(config, again).evaluate(test, load_best_model=False)
    assert result["ndcg@10"] == runs.returned["test_result"]["ndcg@10"]


def test_ids_do_not_depend_on_the_order_of_rows(runs, root, tmp_path):
    """Rows of .item in another order, and users in another order in .inter."""
    write_planted(tmp_path, "Small", seed=2, users=20, items=12, order=5)
    file = tmp_path / "Small/Small.inter"
    head, *lines = file.read_text().splitlines()
    file.write_text("\n".join([head, *sorted(lines, key=lambda line: line.split("\t")[0][::-1])]) + "\n")
    made = prepared(tmp_path, runs.model, "Small")
    there = runs.alone / "checkpoint/semantic_ids/manifest.json"
    assert made.model.semantic_ids.fingerprint == read_json(there)["fingerprint"]


@pytest.mark.parametrize("model", MODELS)
def test_a_beam_s_score_is_the_exact_log_probability(root, model):
    """Teacher forcing, beam search and scoring every item are three ways to one number."""
    made = prepared(root, model, "Big")
    network = made.model
    for parameter in network.parameters():  # random T5s are all but uniform
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    rows = SequenceRows.of(made.test._dataset).select(torch.arange(6))
    tokens, mask = encode_histories(network.codes, rows.history, rows.length, network.vocabulary)
    trie = Trie.build(network.codes, network.vocabulary.codebook_size)
    search = BeamSearch(network.plain_state(), network.t5.config, trie, network.vocabulary, beam_size=18)
    every = score_all(search, tokens, mask)
    found = search.search(tokens, mask)
    assert found.certified.all() and (found.items.sort(1).values == torch.arange(18)).all()
    torch.testing.assert_close(found.scores, every.gather(1, found.items), atol=1e-4, rtol=1e-5)
    assert (every.std(1) > 0.1).all(), "the items differ"
    batch = made.test._dataset.inter_feat[:6]
    for item in (0, 7, 17):
        batch[network.ITEM_ID] = network.item_of_row[torch.full((6,), item)]
        torch.testing.assert_close(network.predict(batch).detach(), every[:, item], atol=1e-4, rtol=1e-5)


def test_a_word_is_one_token_wherever_it_stands(root):
    network = prepared(root, "IDGenRec", "Big").model
    ids, vocabulary = network.semantic_ids, network.vocabulary
    assert vocabulary.shared and vocabulary.size == 2 + len(ids.words) == network.t5.config.vocab_size
    tokens = vocabulary.tokens(network.codes)
    assert (tokens == network.codes + 2).all() and (vocabulary.codes(tokens) == network.codes).all()
    text = read_json(
        next(Path(path) for path in ids.export(root / "exported") if "Big" in path.name).parent / "Big.text.json"
    )
    assert text["big-7"].split() == [ids.words[code] for code in ids.codes[ids.items.row_of["Big"]["big-7"]]]


def test_the_original_recipe_counts_collisions(root):
    preset = Path(recbole_gmc.lookup.packaged("properties/preset/tiger_orig.yaml"))
    settings = settings_of(root, root / "orig", domains=["Small"])
    for name in ("code_levels", "codebook_size", "code_dim"):
        del settings[name]
    config = Config("TIGER", "Small", [str(preset)], settings)
    assert config["tokenizer_collisions"] == "count" and config["code_levels"] == 4
    made = prepared(root, "TIGER", "Big", tokenizer_collisions="count", code_levels=3, codebook_size=12, code_dim=4)
    codes = made.model.semantic_ids.codes
    assert codes.shape == (18, 3) and len(np.unique(codes, axis=0)) == 18
    groups = {tuple(prefix): codes[(codes[:, :2] == prefix).all(1), 2] for prefix in codes[:, :2]}
    assert all(sorted(last) == list(range(len(last))) for last in groups.values())


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_python_refuses_several_domains_and_names_the_command(root, model):
    with pytest.raises(SettingError, match=f"{model} takes one domain at a time.*run_recbole_gmc.py --model={model}"):
        run_recbole(model=model, dataset="both", config_dict=settings_of(root, root / "refused"))
    assert not (root / "refused").exists()


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("P5CID", {"cid_clusters": 1}, "cid_clusters: 1 is out of range"),
        ("P5CID", {"cid_depth": "deep"}, "cid_depth: 'deep' is not of type int"),
        ("P5CID", {"cid_cluster": 2}, "unknown setting .nearest: 'cid_clusters'"),
        ("IDGenRec", {"idgen_max_words": 20}, "idgen_max_words: 20 is out of range"),
        ("IDGenRec", {"idgen_min_words": 6}, "idgen_min_words: 6 is above idgen_max_words 5"),
        ("IDGenRec", {"idgen_checkpoint": "/no/such"}, "idgen_checkpoint /no/such: no folder"),
        ("TIGER", {"tokenizer_collisions": "drop"}, "tokenizer_collisions: 'drop' is unknown"),
    ],
)
def test_bad_settings_are_refused_before_any_work(root, model, given, message):
    settings = settings_of(root, root / "refused", domains=["Small"], **given)
    with pytest.raises(SettingError, match=message):
        run_recbole(model=model, dataset="one", config_dict=settings)
    assert not (root / "refused").exists()


@pytest.mark.parametrize("model", MODELS)
def test_property_files_explain_every_key_and_keep_the_protocol(model):
    file = registry.entry(model).properties
    ours = recbole_gmc.values.read_yaml(file)
    theirs = recbole_gmc.values.read_yaml(registry.entry("GMC").properties)
    own = {name for kind in get_model(model).own_settings for name in keys_of(kind)}
    assert own | set(keys_of(T5Settings)) <= ours.keys()
    protocol = "MAX_ITEM_LIST_LENGTH load_col metrics topk valid_metric valid_users eval_step stopping_step beam_size"
    assert {name: ours[name] for name in protocol.split()} == {name: theirs[name] for name in protocol.split()}
    if model == "TIGER":
        changed = {name for name in ours if ours[name] != theirs[name]}
        assert changed == {"tokenizer_domain_weight", "lora"}
    for line in file.read_text().splitlines():
        assert not re.match(r"\w+:", line) or " # (" in line or line.startswith(("metrics", "topk")), line
