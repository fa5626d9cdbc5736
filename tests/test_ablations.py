"""The paper's ablations: what is not shared any more, and that runs without it are saved, resumed and loaded as any."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_help import run, tiny, write_planted
from safetensors.torch import load_file
from test_train_resume import Stopped, stop_at

import recbole_gmc
from recbole_gmc import cli, keys
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import CheckpointError, GMCError, SettingError
from recbole_gmc.files import read_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.lookup import properties_folder
from recbole_gmc.model.adapters import backbone_fingerprint
from recbole_gmc.model.copies import DomainCopies
from recbole_gmc.model.seq2seq import build_t5
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import T5Settings, TokenizerSettings
from recbole_gmc.tokenizer import tokenize
from recbole_gmc.tokenizer.apart import tokenize_apart
from recbole_gmc.values import read_yaml

pytestmark = pytest.mark.usefixtures("own_arguments")

FILES = {file.stem: read_yaml(file) for file in (properties_folder() / "ablation").glob("*.yaml")}
PLAIN = {"shared_tokenizer": True, "unified_recommender": True, "tokenizer_domain_weight": 1.0}
SMALL = {
    "epochs": 3,
    "lora_epochs": 2,
    "train_batch_size": 30,
    "lora_train_batch_size": 16,
    "lora_learning_rate": 0.003,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two domains and a run of every ablation that changes what is trained."""
    root = tmp_path_factory.mktemp("ablations")
    write_planted(root, "Big", seed=1, users=20)
    write_planted(root, "Small", seed=2, users=14, items=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        for name in ("without_shared_codebook", "without_unified", "without_lora", "full_finetuning"):
            run({**tiny(root, root / name, **SMALL), **FILES[name]})
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- the property files ------------------------------------------------------------------------------------------


def test_each_file_changes_what_its_name_says_and_nothing_else():
    plain = read_yaml(properties_folder() / "model/GMC.yaml")
    assert {name: plain[name] for name in PLAIN} == PLAIN and plain["lora"] is True and plain["adaptation"] == "lora"
    assert FILES == {
        "without_shared_codebook": {"shared_tokenizer": False, "unified_recommender": False},
        "without_unified": {"unified_recommender": False},
        "without_domain_loss": {"tokenizer_domain_weight": 0.0},
        "without_lora": {"lora": False},
        "full_finetuning": {"adaptation": "full"},
    }


def test_imported_ids_have_no_tokenizer_a_domain():
    with pytest.raises(SettingError, match="shared_tokenizer.*semantic_ids_path"):
        keys.check({"shared_tokenizer": False, "semantic_ids_path": "ids", "topk": [5]}, "one")


# ---- a tokenizer a domain ----------------------------------------------------------------------------------------


def embeddings(seed: int, sizes: dict[str, int]) -> TextEmbeddings:
    items = ItemIndex.of({domain: [f"{i:03d}" for i in range(n)] for domain, n in sizes.items()})
    parts = [np.random.default_rng([seed, n]).normal(size=(n, 6)) for n in sizes.values()]
    return TextEmbeddings(items, np.concatenate(parts).astype(np.float32))


def test_codes_of_a_domain_follow_from_its_own_items_alone():
    settings = TokenizerSettings(kind="rkmeans", levels=3, codebook_size=16, dim=4)
    how = {"seed": 5, "cache_dir": None, "progress": False}
    both = embeddings(0, {"A": 50, "B": 20})
    made = tokenize_apart(both, settings, **how)
    for position, (domain, n) in enumerate((("A", 50), ("B", 20))):
        alone = tokenize(embeddings(0, {domain: n}), settings, **how)
        assert np.array_equal(made.ids.for_domain(domain), alone.ids.codes + 16 * position)
        assert made.quality["of_domain"][domain]["collision_rate"] == alone.quality["collision_rate"]
    assert made.ids.codebook_size == 32 and made.quality["codebook_size"] == 32
    assert made.quality["domain_purity"] == [1.0, 1.0, 1.0]
    rates = made.quality["collision_rate_by_domain"]
    assert made.quality["collision_rate"] == pytest.approx((50 * rates["A"] + 20 * rates["B"]) / 70)
    assert made.quality["moved_items"] == 0, "so the figures are those of the codes at hand"
    for level, column in enumerate(made.ids.codes.T):
        share = np.unique(column, return_counts=True)[1] / 70
        assert made.quality["perplexity"][level] == pytest.approx(math.exp(-(share * np.log(share)).sum()))
        assert made.quality["codes_used"][level] == len(share)


def test_no_code_token_is_shared_between_domains(root):
    folder = root / "without_shared_codebook"
    used = {}
    for domain in ("Big", "Small"):
        index = json.loads((folder / f"semantic_ids/{domain}.index.json").read_text())
        used[domain] = {word for codes in index.values() for word in codes}
    assert used["Big"] and used["Small"] and not used["Big"] & used["Small"]
    assert read_json(folder / "result.json")["tokenizer"]["codebook_size"] == 16


def test_one_recommender_may_read_the_tokens_of_all(root):
    run(tiny(root, root / "one-t5", shared_tokenizer=False, **SMALL))
    report = read_json(root / "one-t5/result.json")
    assert report["epochs"].keys() == {"unified", "lora:Big", "lora:Small"}
    assert (root / "one-t5/checkpoint/adapters/Big").is_dir()


# ---- a recommender a domain --------------------------------------------------------------------------------------


def test_a_recommender_of_its_own_knows_nothing_of_the_other_domain(root, tmp_path):
    shutil.copytree(root / "Big", tmp_path / "Big")
    shutil.copytree(root / "Small", tmp_path / "Small")
    file = tmp_path / "Small/Small.inter"
    head, *rows = file.read_text().splitlines()
    reverse = ["\t".join((user, item, f"-{time}")) for user, item, time in (row.split("\t") for row in rows)]
    file.write_text("\n".join([head, *reverse]) + "\n")  # the same items, every user backwards
    run({**tiny(tmp_path, **SMALL), **FILES["without_unified"]})
    before, after = root / "without_unified/checkpoint", tmp_path / "run/checkpoint"
    assert equal(weights(before / "domains/Big"), weights(after / "domains/Big"))
    assert not equal(weights(before / "domains/Small"), weights(after / "domains/Small"))
    start = weights(after)
    assert equal(weights(before), start), "the fresh T5 that both begin with"
    assert not equal(start, weights(after / "domains/Big"))


def test_a_budget_is_shared_by_the_recommenders(root, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("recbole_gmc.train.budget.process_time", lambda: next(clock))  # a second a look
    settings = tiny(root, tmp_path / "run", **SMALL | {"epochs": 40, "stopping_step": 40}, budget_minutes=20 / 60)
    run({**settings, **FILES["without_unified"]})
    report = read_json(tmp_path / "run/result.json")
    assert report["budget_limited"] and all(2 <= epochs < 20 for epochs in report["epochs"].values()), report["epochs"]


def test_stages_and_sizes_are_told(root):
    alone, full = (read_json(root / name / "result.json") for name in ("without_unified", "full_finetuning"))
    assert alone["epochs"] == {"alone:Big": 3, "alone:Small": 3}
    assert full["epochs"] == {"unified": 3, "full:Big": 2, "full:Small": 2}
    for report in (alone, full):
        sizes = report["parameters"]
        assert sizes["adapter"] == 0 and sizes["domains"] == {"Big": sizes["model"], "Small": sizes["model"]}


# ---- all weights a domain ----------------------------------------------------------------------------------------


def test_full_fine_tuning_leaves_the_unified_recommender(root):
    full, plain = root / "full_finetuning/checkpoint", root / "without_lora/checkpoint"
    assert equal(weights(full), weights(plain)) and not (plain / "domains").exists()
    log = (root / "full_finetuning/run.log").read_text()
    for domain in ("Big", "Small"):
        tuned, unified = weights(full / "domains" / domain), weights(full)
        kept = f"Fine-tuning of {domain} kept" in log
        assert all(torch.equal(tuned[name], unified[name]) != kept for name in unified)
    assert "Fine-tuning of Big kept" in log or "Fine-tuning of Small kept" in log


WORDS = Vocabulary(3, 6)
DOMAINS = ("Arts", "Office.2014")


def network(seed: int = 0):
    torch.manual_seed(seed)
    return build_t5(T5Settings(encoder_layers=1, decoder_layers=1, d_model=8, d_ff=8, heads=2, d_kv=4), WORDS).eval()


def trained(t5=None) -> DomainCopies:
    copies = DomainCopies(t5 or network(), DOMAINS)
    copies.activate("Office.2014")
    torch.manual_seed(1)
    tokens, labels = torch.randint(2, WORDS.size, (4, 10)), WORDS.tokens(torch.randint(6, (4, 3)))
    optimiser = torch.optim.AdamW(copies.train_parameters("Office.2014"), lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        copies.t5(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss.backward()
        optimiser.step()
    return copies


def test_training_moves_all_weights_of_one_domain_and_nothing_else():
    t5 = network()
    before = {name: tensor.clone() for name, tensor in t5.state_dict().items()}
    fingerprint = backbone_fingerprint(t5)
    copies = trained(t5)
    held = copies.merged_state("Office.2014")
    assert all(not torch.equal(held[name], before[name]) for name in before)
    assert equal(copies.merged_state("Arts"), before) and equal(copies.merged_state(None), before)
    assert copies.backbone_fingerprint() == fingerprint and equal(copies.identity("Office.2014"), before)
    copies.activate(None)
    assert equal(dict(t5.state_dict()), before) and equal(copies.merged_state("Office.2014"), held)
    copies.restore("Office.2014", copies.identity("Office.2014"))
    assert equal(copies.merged_state("Office.2014"), before) and not equal(held, before)


def test_tied_weights_are_counted_once():
    t5 = network()
    own = {tensor.data_ptr(): tensor for tensor in DomainCopies(t5, DOMAINS).merged_state("Arts").values()}
    assert sum(tensor.numel() for tensor in own.values()) == sum(p.numel() for p in t5.parameters())


def test_copies_come_back_and_fit_only_their_own_domain_and_base(tmp_path):
    copies = trained()
    copies.save(tmp_path / "a")
    fresh = DomainCopies(network(), DOMAINS)
    fresh.load(tmp_path / "a")
    assert all(equal(fresh.merged_state(domain), copies.merged_state(domain)) for domain in DOMAINS)
    with pytest.raises(CheckpointError, match="another base model"):
        DomainCopies(network(seed=1), DOMAINS).load(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/Arts")
    shutil.copytree(tmp_path / "a/Office.2014", tmp_path / "moved/Arts")
    with pytest.raises(CheckpointError, match="made for the domain 'Office.2014'"):
        fresh.load(tmp_path / "moved")
    file = tmp_path / "a/Office.2014/model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    before = fresh.merged_state("Arts")
    with pytest.raises(CheckpointError, match="recommender of Office.2014"):
        fresh.load(tmp_path / "a")
    assert equal(fresh.merged_state("Arts"), before)


def test_unknown_domains_and_bad_names_are_refused():
    with pytest.raises(SettingError):
        DomainCopies(network(), ("../up",))
    with pytest.raises(GMCError, match="distinct"):
        DomainCopies(network(), ("A", "A"))
    with pytest.raises(GMCError, match="no weights"):
        DomainCopies(network(), ("A",)).activate("B")
    with pytest.raises(GMCError, match="Activate it first"):
        DomainCopies(network(), ("A",)).train_parameters("A")


# ---- the files of a run ------------------------------------------------------------------------------------------

STOPS = {
    "without_shared_codebook": ("alone:Small", 1),
    "without_unified": ("alone:Big", 2),
    "full_finetuning": ("full:Small", 1),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_resumed_run_ends_as_one_that_never_stopped(root, name, tmp_path, monkeypatch):
    with monkeypatch.context() as stopping:
        stop_at(stopping, *STOPS[name])
        with pytest.raises(Stopped):
            run({**tiny(root, tmp_path / "cut", **SMALL, cache_dir=str(tmp_path / "cache")), **FILES[name]})
    assert cli.main([f"--resume={tmp_path / 'cut'}"]) == 0
    assert f"Going on with {STOPS[name][0]} at epoch {STOPS[name][1]}" in (tmp_path / "cut/run.log").read_text()
    whole, resumed = (read_json(folder / "result.json") for folder in (root / name, tmp_path / "cut"))
    for part in ("hashes", "domains", "average", "validation", "epochs", "parameters"):
        assert resumed[part] == whole[part], part
    assert (tmp_path / "cut/topk.tsv").read_bytes() == (root / name / "topk.tsv").read_bytes()


@pytest.mark.parametrize("name", STOPS)
def test_what_is_loaded_recommends_what_was_tested(root, name):
    loaded = recbole_gmc.load(root / name)
    histories: dict[tuple[str, str], list[str]] = {}
    for domain in ("Big", "Small"):
        for line in (root / domain / f"{domain}.inter").read_text().splitlines()[1:]:  # in order of time already
            user, item, _ = line.split("\t")
            histories.setdefault((domain, user), []).append(item)
    lines = [line.split("\t") for line in (root / name / "topk.tsv").read_text().splitlines()[1:]]
    assert len(lines) == 34
    for line in lines:
        found = loaded.recommend(line[0], histories[line[0], line[1]][:-1], 5)
        assert [item for item, _ in found] == line[4:14:2]
        assert [score for _, score in found] == pytest.approx([float(score) for score in line[5:14:2]], abs=1e-4)


def test_recbole_s_own_loading_gives_the_weights_of_each_domain(root):
    from recbole.quick_start import load_data_and_model

    folder = root / "full_finetuning/checkpoint"
    model = load_data_and_model(str(folder))[1]
    for domain in ("Big", "Small"):
        assert equal(model.plain_state(domain), weights(folder / "domains" / domain))
    assert equal(model.plain_state(None), weights(folder))
