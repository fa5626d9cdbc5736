"""GMCPlus as a run: its stages, its switches, the mix of its two rankings, its checkpoint, and what training sees."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model, get_trainer, init_seed
from recbole.utils.case_study import full_sort_topk
from run_help import histories, python, tiny, write_both

import recbole_gmc
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.windows import Windows
from recbole_gmc.errors import CheckpointError, SettingError
from recbole_gmc.files import read_json
from recbole_gmc.model.code_tree import CodeTree
from recbole_gmc.model.objectives import code_log_probs, dense_loss
from recbole_gmc.model.repeats import SCALE, Seen
from recbole_gmc.settings import T5Settings, keys_of
from recbole_gmc.speed import command
from recbole_gmc.train import config_json
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.gmcplus_trainer import GRID

pytestmark = pytest.mark.usefixtures("own_arguments")

PARTS = ("codes", "mix", "dense")
SIZES = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "readout_size": 16}
DROPOUT = {"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1}

LOAD = """
import json, pickle, sys
import torch
import recbole_gmc.loading
from recbole_gmc.cache import Cache

def forbidden(*args, **kwargs):
    raise AssertionError("something was unpickled, or the cache was asked")

pickle.load = pickle.loads = torch.load = forbidden
Cache.get = Cache.put = forbidden
model = recbole_gmc.load(sys.argv[1])
asked = json.load(open(sys.argv[2]))
json.dump([model.recommend(domain, history, 10) for domain, history in asked], open(sys.argv[3], "w"))
"""


def settings_of(root: Path, run_dir: Path | None = None, **changes: Any) -> dict[str, Any]:
    common = {name: value for name, value in tiny(root, run_dir).items() if name not in keys_of(T5Settings)}
    return {**common, **SIZES, **DROPOUT, "epochs": 2, "lora_epochs": 1, **changes}


def run(root: Path, name: str, **changes: Any) -> SimpleNamespace:
    settings = settings_of(root, root / name, **changes)
    returned = recbole_gmc.run_recbole("GMCPlus", "tiny", None, settings)
    lines = [line.split("\t") for line in (root / name / "topk.tsv").read_text().splitlines()]
    return SimpleNamespace(
        folder=root / name, returned=returned, result=read_json(root / name / "result.json"), lines=lines
    )


def prepared(root: Path, **changes: Any) -> SimpleNamespace:
    """A model with its real inputs and random weights."""
    config = Config("GMCPlus", "tiny", config_dict=settings_of(root, root / "prepared", **changes))
    init_seed(config["seed"], True)
    train, valid, test = data_preparation(config, create_dataset(config))
    model = get_model("GMCPlus")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "GMCPlus")(config, model)
    trainer._set_ids(train._dataset, False)
    rows = SequenceRows.of(train._dataset)
    return SimpleNamespace(model=model.eval(), trainer=trainer, rows=rows, valid=valid, test=test, config=config)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("plus")
    write_both(root)
    return root


@pytest.fixture(scope="module")
def done(root) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        return run(root, "whole")


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_stages_and_files(done):
    assert list(done.result["epochs"]) == ["unified", "lora:Big", "lora:Small"]
    assert {"tokenizer", "unified", "lora:Big", "lora:Small", "dense_weight", "test"} <= done.result["seconds"].keys()
    files = {"result.json", "topk.tsv", "valid_topk.tsv", "semantic_ids", "checkpoint", "run.log", "tensorboard"}
    assert files <= {path.name for path in done.folder.iterdir()}
    assert done.result["certified"]["all"] == 1.0
    assert done.result["parameters"]["adapter"] > 0
    rounded = {name: round(value, 4) for name, value in done.result["average"].items()}
    assert {name: done.returned["test_result"][name] for name in rounded} == rounded


def test_the_speed_command_refuses_it_before_any_work(done):
    with pytest.raises(CheckpointError, match="GMCPlus has no T5"):
        command.parse(["decode", f"--run={done.folder}"])


def test_the_mix_is_told_with_both_rankings_alone(done):
    mixes, mix = done.result["mixes"], read_json(done.folder / "checkpoint/mix.json")
    assert mixes.keys() == {"Big", "Small", "average"} and mix.keys() == {"Big", "Small"}
    for domain, weight in mix.items():
        assert mixes[domain]["weight"] == weight and weight in GRID
        assert mixes[domain]["mix"] == {name: done.result["domains"][domain][name] for name in mixes[domain]["mix"]}
        for sole, name in ((0.0, "codes"), (1.0, "dense")):
            if weight == sole:
                assert mixes[domain][name] == mixes[domain]["mix"]
    for name, value in mixes["average"]["codes"].items():
        mean = (30 * mixes["Big"]["codes"][name] + 20 * mixes["Small"]["codes"][name]) / 50
        assert value == pytest.approx(mean, abs=1e-12)
    log = (done.folder / "run.log").read_text()
    assert "Rankings by the codes, by the chosen mix and by the dense head" in log


def test_weight_0_and_1_are_the_pure_rankings(root, done):
    for weight, name in ((0, "codes"), (1.0, "dense")):
        pure = run(root, f"pure-{name}", dense_weight=weight, lora=False)
        for domain in ("Big", "Small"):
            assert pure.result["mixes"][domain][name] == pure.result["mixes"][domain]["mix"]
            assert pure.result["mixes"][domain]["weight"] == weight
        model = recbole_gmc.load(pure.folder)
        history = torch.tensor([[0, 3, 5]])
        scores = model.scores("Big", history, torch.tensor([3]))
        search = model.searches["Big"]
        with torch.no_grad():
            query = search.query(history, torch.tensor([3]))
            assert torch.allclose(scores, search.codes(query) if weight == 0 else search.dense(query), atol=1e-6)


def test_the_weight_is_the_best_one_on_validation(root, done):
    _, model, _, _, valid, _ = load_data_and_model(str(done.folder))
    config = Config("GMCPlus", "tiny", config_dict=settings_of(root, root / "other"))
    trainer = get_trainer(config["MODEL_TYPE"], "GMCPlus")(config, model)
    rows = SequenceRows.of(valid._dataset)
    for position, domain in enumerate(("Big", "Small")):
        chosen, scores = model.mix[domain], {}
        for weight in GRID:
            model.mix = {**model.mix, domain: weight}
            scores[weight] = trainer._measure(rows.of_domain(position))["ndcg@10"]
        model.mix = {**model.mix, domain: chosen}
        assert scores[chosen] == max(scores.values())


def test_one_seed_gives_one_result(root, done):
    again = run(root, "again", cache_dir=str(root / "other-cache"))
    assert again.result["hashes"] == done.result["hashes"] and again.result["mixes"] == done.result["mixes"]
    assert (again.folder / "topk.tsv").read_bytes() == (done.folder / "topk.tsv").read_bytes()


# ---- what is left on disk --------------------------------------------------------------------------------------------


def test_a_loaded_model_recommends_the_same_in_a_fresh_process(root, done, tmp_path):
    lines = done.lines[1:][::3]
    asked = [(line[0], histories(root, line[0])[line[1]][:-1]) for line in lines]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    shutil.copytree(done.folder / "checkpoint", tmp_path / "elsewhere")
    python("-c", LOAD, "elsewhere", "asked.json", "told.json", cwd=tmp_path)
    for line, told in zip(lines, read_json(tmp_path / "told.json"), strict=True):
        assert [item for item, _ in told] == line[4:24:2]
        assert [score for _, score in told] == pytest.approx([float(score) for score in line[5:24:2]], abs=1e-4)


def test_recbole_functions_take_the_checkpoint_folder(root, done):
    config, model, dataset, _, _, test = load_data_and_model(str(done.folder / "checkpoint"))
    users = test.dataset.inter_feat[test.dataset.uid_field]
    _, found = full_sort_topk(users.numpy(), model, test, 10, device=config["device"])
    tokens = dataset.id2token(dataset.iid_field, found.numpy())
    wanted = {(line[0], line[1]): line[4:24:2] for line in done.lines[1:]}
    names = [str(token).split("/", 1) for token in dataset.id2token(dataset.uid_field, users.numpy())]
    for (domain, user), row in zip(names, tokens, strict=True):
        assert [str(token).split("/", 1)[1] for token in row] == wanted[domain, user]
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    for parameter in model.parameters():
        parameter.data.zero_()
    again = trainer.evaluate(test, load_best_model=True, model_file=str(done.folder / "checkpoint"))
    rounded = {name: round(value, 4) for name, value in done.result["average"].items()}
    assert {name: again[name] for name in rounded} == rounded


def test_text_and_mix_are_in_the_checkpoint_and_damage_is_named(done, tmp_path):
    found = Checkpoint(done.folder)
    assert found.text.items.fingerprint == found.ids.items.fingerprint and found.text.dim == 8
    for name in ("text.safetensors", "mix.json"):
        copy = tmp_path / name.partition(".")[0]
        shutil.copytree(done.folder / "checkpoint", copy)
        (copy / name).write_bytes((copy / name).read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=name):
            Checkpoint(copy)


@pytest.mark.parametrize("stage", ["unified", "lora:Small"])
def test_a_resumed_run_ends_as_one_that_never_stopped(root, done, stage, monkeypatch):
    from recbole_gmc.train import gmcplus_trainer, resume

    class Stopped(KeyboardInterrupt):
        pass

    whole, name = gmcplus_trainer.GMCPlusTrainer.backward, f"stopped-{stage[:4]}"

    def backward(self, rows):
        if self.stage is not None and self.stage.name == stage and self.record.curve:
            last = self.record.curve[-1]
            if stage != "unified" or (last["stage"] == "unified" and last["epoch"] == 0):
                raise Stopped
        return whole(self, rows)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(gmcplus_trainer.GMCPlusTrainer, "backward", backward)
        run(root, name, cache_dir=str(root / f"cache-{name}"))
    shutil.rmtree(root / f"cache-{name}")
    resume.resume(root / name)
    resumed = read_json(root / name / "result.json")
    assert resumed["hashes"] == done.result["hashes"] and resumed["mixes"] == done.result["mixes"]
    assert resumed["epochs"] == done.result["epochs"]


# ---- what training sees and changes ----------------------------------------------------------------------------------


def test_training_never_sees_what_is_held_out(root):
    made = prepared(root)
    windows, items = Windows.of_rows(made.rows), made.model.items
    seen: dict[tuple[str, ...], int] = {}
    for row in range(len(windows)):
        domain = items.domains[int(windows.domain[row])]
        names, start = items.tokens[domain], items.rows(domain).start
        inside = windows.history[row, : windows.length[row]].tolist() + [int(windows.target[row])]
        seen[(domain, *(names[item - start] for item in inside))] = int(windows.fresh[row])
    wanted: dict[tuple[str, ...], int] = {}
    for domain in items.domains:
        for sequence in histories(root, domain).values():
            kept = sequence[:-2]  # the last two are held out
            if len(kept) > 1:
                assert len(kept) <= 7, "one window each"
                wanted[(domain, *kept)] = len(kept) - 1
    assert seen == wanted


def test_the_loss_is_the_sum_of_its_parts(root):
    """Against one user at a time, each with a softmax over the own domain's items only."""
    for among, part in (("tree", 0.1), ("table", 2.0)):
        made = prepared(root, train_softmax=among, code_loss_weight=part)
        model = made.model
        with torch.no_grad():
            model.network.vectors.normal_(std=0.2)
            model.network.repeats.bias.normal_(std=0.02)
            windows = Windows.of_rows(made.rows).select(torch.arange(0, 40, 3))
            found, expected = model.losses(windows), []
            for row in range(len(windows)):
                span = model.items.rows(model.items.domains[int(windows.domain[row])])
                items = model.network.items(model.codes[span], model.text_rows[span], span)
                size = int(windows.length[row])
                mine, _ = model.network.states(
                    items, windows.history[row : row + 1, :size] - span.start, windows.length[row : row + 1]
                )
                after = torch.cat([windows.history[row, 1:size], windows.target[row : row + 1]])
                codes = model.codes[after]
                of_item, of_code = (SCALE * model.network.repeats.bias[int(windows.domain[row])]).tolist()
                own = (windows.history[row, :size] - span.start).tolist()
                logits, dense = model.network.level_logits(mine, codes), mine @ items.T
                tree, length = CodeTree(model.codes[span], model.vocabulary.codebook_size), torch.arange(1, size + 1)
                logits = logits + of_code * tree.seen(after - span.start, Seen.of(torch.tensor([own] * size), length))
                for place in range(size):
                    dense[place, list(set(own[: place + 1]))] += of_item
                allowed = tree.allowed(after - span.start) if among == "tree" else None
                of_codes = -code_log_probs(logits, codes, allowed).sum(1)
                expected.append(dense_loss(dense, after - span.start) + part * of_codes)
        assert torch.allclose(found, torch.cat(expected), atol=1e-4)


@pytest.mark.parametrize("target,sign", [(3, 1), (0, -1)])
def test_where_nobody_comes_back_items_of_the_history_fall_and_where_people_do_they_rise(root, target, sign):
    model = prepared(root).model
    history, one = torch.tensor([[0, 1, 2, 0, 0, 0, 0]]), torch.ones(1, dtype=torch.long)
    windows = Windows(history, 3 * one, target * one, 0 * one, one, fresh=one)
    model.loss(windows).backward()
    gradient = model.network.repeats.bias.grad
    assert (sign * gradient[0] > 0).all(), "descent goes against the gradient"
    assert (gradient[1] == 0).all(), "the other domain learns nothing of it"


def test_smaller_chunks_give_the_same_gradient(root):
    made = prepared(root)
    windows = Windows.of_rows(made.rows)
    gradients = []
    for chunk in (10_000, 25, 1):
        made.model.zero_grad()
        loss = made.model.backward(windows, torch.float32, chunk)
        assert float(loss) == pytest.approx(float(made.model.loss(windows).detach()), rel=1e-5)
        gradients.append({name: p.grad.clone() for name, p in made.model.network.named_parameters()})
    for other in gradients[1:]:
        assert all(torch.allclose(other[name], gradients[0][name], atol=1e-5) for name in gradients[0])


def test_training_alone_leaves_items_out(root):
    without = dict(hidden_dropout_prob=0.0, attn_dropout_prob=0.0, readout_dropout_prob=0.0)
    model = (made := prepared(root, item_drop_ratio=0.5, **without)).model
    windows = Windows.of_rows(made.rows)
    whole = float(model.loss(windows).detach())
    assert float(model.backward(windows, torch.float32, 10_000)) == pytest.approx(whole, rel=1e-5), "in evaluation"
    model.train()
    torch.manual_seed(7)
    loss = float(model.backward(windows, torch.float32, 10_000))
    torch.manual_seed(7)
    thin = windows.thinned(0.5)
    assert int(thin.fresh.sum()) < int(windows.fresh.sum())
    assert loss == pytest.approx(float(model.loss(thin).detach()), rel=1e-5) and loss != pytest.approx(whole, rel=1e-4)


def test_adapters_leave_the_unified_decoder_as_it_is(root):
    made = prepared(root)
    before = {name: tensor.clone() for name, tensor in made.model.network.state_dict().items()}
    adapters = made.model.add_adapters()
    fingerprint = adapters.backbone_fingerprint()
    adapters.activate("Small")
    optimiser = torch.optim.Adam(adapters.train_parameters("Small"), lr=0.003)
    windows = Windows.of_rows(made.rows).of_domain(1)
    first = float(made.model.loss(windows).detach())
    for _ in range(5):
        optimiser.zero_grad()
        made.model.backward(windows, torch.float32, 1000)
        optimiser.step()
    assert float(made.model.loss(windows).detach()) < first
    assert adapters.backbone_fingerprint() == fingerprint
    after = adapters.merged_state(None)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    own, other = adapters.merged_state("Small"), adapters.merged_state("Big")
    changed = {name for name in own if not torch.equal(own[name], before[name])}
    assert {name.split(".")[-2] for name in changed} == {"q", "k", "v", "o", "wi", "wo"}
    assert any(name.startswith("readouts.") for name in changed)
    assert all(torch.equal(other[name], before[name]) for name in before)


@pytest.mark.parametrize("tested_before", [False, True])
def test_predict_is_the_score_in_the_list(root, done, tested_before):
    """Also once the best weights were read back into the model, as RecBole's quick start does before its test."""
    config, model, dataset, _, _, test = load_data_and_model(str(done.folder))
    if tested_before:
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.evaluate(test, load_best_model=True, model_file=str(done.folder / "checkpoint"))
        assert model.adapters.t5 is model.network
    interaction = test.dataset.inter_feat
    model.eval()
    with torch.no_grad():
        one, every = model.predict(interaction), model.full_sort_predict(interaction)
    item = interaction[model.ITEM_ID]
    assert torch.allclose(one, every[torch.arange(len(item)), item], atol=1e-4)
    outside = model.domain_of_row[model.row_of_item[1:]] != model.domain_of_row[model.row_of_item[item]][:, None]
    assert torch.isinf(every[:, 1:][outside]).all() and torch.isfinite(every[:, 1:][~outside]).all()
    assert torch.isinf(every[:, 0]).all()


# ---- switches --------------------------------------------------------------------------------------------------------

SWITCHES = {
    "codes alone": {"dense_head": False},
    "no table": {"dense_head": False, "item_vectors": False},
    "no text": {"text_input": False},
    "prefix loss": {"prefix_beta": 0.1, "prefix_eta": 0.01},
    "trained among all codes": {"train_softmax": "table"},
    "ranked in the table": {"rank_softmax": "table"},
    "beam": {"beam_search": "beam", "dense_weight": 0.3},
    "bf16": {"precision": "bf16", "chunk_tokens": 40},
    "apart": {"unified_recommender": False},
    "full": {"adaptation": "full"},
    "one layer apart": {"n_layers": 2, "n_heads": 4, "max_prefixes": 3, "shared_tokenizer": False},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_alone_runs(root, name, tmp_path):
    made = run(root, f"switch-{name.replace(' ', '-')}", epochs=1, **SWITCHES[name])
    assert np.isfinite(made.result["average"]["ndcg@10"])
    assert ("mixes" in made.result) == ("dense_head" not in SWITCHES[name])
    model = recbole_gmc.load(made.folder)
    assert len(model.recommend("Small", ["small-1"], 10)) == 10
    weights = Checkpoint(made.folder).weights()
    assert ("vectors" in weights) == (name != "no table")
    assert (Checkpoint(made.folder).text is None) == (name == "no text")


def test_without_a_table_no_weight_has_a_row_an_item(root):
    made = prepared(root, dense_head=False, item_vectors=False, n_layers=2)
    assert not any(len(made.model.items) in tensor.shape for tensor in made.model.network.state_dict().values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dense_weight": "some"}, "dense_weight: 'some' is no weight. Write auto, or a number from 0 to 1"),
        ({"dense_weight": 1.5}, "dense_weight: 1.5 is no weight"),
        ({"hidden_size": 15}, "hidden_size: 15 is not a multiple of n_heads 2"),
        ({"code_loss_weight": 0}, "code_loss_weight: 0.0 is out of range. It must be > 0"),
        ({"lora_target_modules": ["wi_0"]}, "'wi_0' is no matrix"),
        ({"beam_search": "best"}, "beam_search: 'best' is unknown. Choose one of: auto, beam, exact"),
        ({"d_modell": 3}, "d_modell: unknown setting"),
    ],
)
def test_bad_settings_are_refused(root, given, message):
    with pytest.raises(SettingError) as error:
        Config("GMCPlus", "tiny", config_dict=settings_of(root, **given))
    assert message in str(error.value)


def test_every_key_is_known_and_explained():
    from recbole_gmc import keys, registry
    from recbole_gmc.settings import GROUPS
    from recbole_gmc.values import read_yaml

    path = registry.entry("GMCPlus").properties
    file = read_yaml(path)
    keys.refuse_unknown(file)
    groups = [group for group in GROUPS if group is not T5Settings]
    own = registry.load(registry.entry("GMCPlus").model).own_settings
    assert {name for group in (*groups, *own) for name in keys_of(group)} <= set(file)
    text = path.read_text()
    assert all("#" in line for line in text.splitlines() if line and not line.startswith((" ", "#")))


def test_a_checkpoint_that_names_a_setting_that_is_gone_is_still_read(root):
    made = config_json.to_json(Config("GMCPlus", "tiny", config_dict=settings_of(root)))
    assert config_json.from_json({**made, "alignment_weight": 0.0, "alignment_temperature": 0.07})["hidden_size"]
    with pytest.raises(SettingError, match="alignment_weight: unknown setting"):
        Config("GMCPlus", "tiny", config_dict=settings_of(root, alignment_weight=0.0))
