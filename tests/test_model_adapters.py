"""Adapters: the identity at the start, an untouched backbone, merging, and folders that fit only their own model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from recbole_gmc.errors import CheckpointError, GMCError, SettingError
from recbole_gmc.model.adapters import DomainAdapters, backbone_fingerprint
from recbole_gmc.model.seq2seq import build_t5, sequence_logits
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.settings import LoraSettings, T5Settings

WORDS = Vocabulary(3, 6)
SMALL = T5Settings(encoder_layers=2, decoder_layers=2, d_model=24, d_ff=32, heads=2, d_kv=8)
DOMAINS = ("Arts", "Office.2014", "Pantry & Co")


def network(seed: int = 0):
    torch.manual_seed(seed)
    return build_t5(SMALL, WORDS).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(2, WORDS.size, (4, 10))
    labels = WORDS.tokens(torch.randint(6, (4, 3)))
    return tokens, torch.ones_like(tokens), labels


@torch.no_grad()
def output(t5) -> torch.Tensor:
    return sequence_logits(t5, *batch())


def trained(t5=None, domains=DOMAINS) -> DomainAdapters:
    """Adapters whose weights are no identity, each different."""
    adapters = DomainAdapters(t5 or network(), domains, LoraSettings())
    for seed, domain in enumerate(domains):
        torch.manual_seed(seed + 10)
        adapters.restore(domain, {k: 0.2 * torch.randn_like(w) for k, w in adapters.snapshot(domain).items()})
    return adapters


def test_default_adapter_has_the_published_size():
    adapters = DomainAdapters(build_t5(T5Settings(), Vocabulary(4, 256)), ("A", "B"), LoraSettings())
    assert adapters.parameters_per_adapter == 172_032


def test_fresh_adapter_is_the_identity_bit_for_bit():
    t5 = network()
    plain, before = output(t5), backbone_fingerprint(t5)
    adapters = DomainAdapters(t5, DOMAINS, LoraSettings())
    for domain in (*DOMAINS, None):
        adapters.activate(domain)
        assert torch.equal(output(t5), plain)
    assert adapters.backbone_fingerprint() == before


def test_training_moves_one_adapter_and_nothing_else():
    t5 = network()
    plain = output(t5)
    adapters = DomainAdapters(t5, DOMAINS, LoraSettings())
    before, others = adapters.backbone_fingerprint(), [adapters.snapshot(d) for d in DOMAINS[::2]]
    adapters.activate(DOMAINS[1])
    optimiser = torch.optim.AdamW(t5.parameters(), lr=0.05, weight_decay=0.5)  # all of them, to be sure
    for _ in range(3):
        optimiser.zero_grad()
        tokens, mask, labels = batch()
        t5.train()(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
        optimiser.step()
    t5.eval()
    assert not torch.equal(output(t5), plain)
    assert adapters.backbone_fingerprint() == before
    for domain, snapshot in zip(DOMAINS[::2], others, strict=True):
        assert all(torch.equal(snapshot[name], w) for name, w in adapters.snapshot(domain).items())
    adapters.activate(None)
    assert torch.equal(output(t5), plain)


def test_only_the_active_adapter_is_trainable():
    adapters = DomainAdapters(network(), DOMAINS, LoraSettings())
    adapters.activate("Office.2014")
    trainable = {id(p) for p in adapters.t5.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapters.train_parameters("Office.2014")}


def test_merged_weights_are_a_plain_t5_with_equal_output():
    adapters = trained()
    backbone = adapters.backbone_fingerprint()
    for domain in (*DOMAINS, None):
        adapters.activate(domain)
        plain = network(seed=99)
        plain.load_state_dict(adapters.merged_state(domain))
        assert torch.allclose(output(plain), output(adapters.t5), atol=1e-4)
    assert adapters.backbone_fingerprint() == backbone


def test_snapshot_identity_and_restore():
    adapters = trained()
    adapters.activate("Arts")
    after, kept = output(adapters.t5), adapters.snapshot("Arts")
    adapters.restore("Arts", adapters.identity("Arts"))
    assert torch.equal(output(adapters.t5), output(network()))
    adapters.restore("Arts", kept)
    assert torch.equal(output(adapters.t5), after)


def test_folders_come_back_and_peft_reads_them(tmp_path):
    adapters = trained()
    adapters.save(tmp_path / "adapters")
    fresh = DomainAdapters(network(), DOMAINS, LoraSettings())
    fresh.load(tmp_path / "adapters")
    for domain in DOMAINS:
        for one in (adapters, fresh):
            one.activate(domain)
        alone = network()
        PeftModel.from_pretrained(alone, tmp_path / "adapters" / domain).eval()
        assert torch.equal(output(fresh.t5), output(adapters.t5))
        assert torch.equal(output(alone), output(adapters.t5))


def test_saving_twice_gives_equal_bytes(tmp_path):
    adapters = trained()
    for name in ("one", "two"):
        adapters.save(tmp_path / name)
    for file in (tmp_path / "one").rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_new_backbone_weights_keep_the_adapters():
    adapters, other = trained(), network(seed=4)
    kept = adapters.snapshot("Arts")
    adapters.load_backbone(other.state_dict())
    assert adapters.backbone_fingerprint() == backbone_fingerprint(other)
    assert all(torch.equal(kept[name], w) for name, w in adapters.snapshot("Arts").items())
    with pytest.raises(CheckpointError):
        adapters.load_backbone({"shared.weight": torch.zeros(1)})


def refused(folder, adapters: DomainAdapters, match: str) -> None:
    before = [adapters.snapshot(domain) for domain in adapters.domains]
    with pytest.raises(CheckpointError, match=match):
        adapters.load(folder)
    for domain, snapshot in zip(adapters.domains, before, strict=True):
        assert all(torch.equal(snapshot[name], w) for name, w in adapters.snapshot(domain).items())


def test_adapter_of_another_base_or_domain_is_refused(tmp_path):
    """Row 24 of the fault matrix: the shapes fit, the fingerprints do not."""
    trained().save(tmp_path / "a")
    refused(tmp_path / "a", DomainAdapters(network(seed=1), DOMAINS, LoraSettings()), "another base model")
    here = DomainAdapters(network(), DOMAINS, LoraSettings())
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "Arts")
    shutil.copytree(tmp_path / "a" / "Office.2014", tmp_path / "moved" / "Arts")
    refused(tmp_path / "moved", here, "made for the domain 'Office.2014'")
    shutil.copytree(tmp_path / "a", tmp_path / "swapped")
    weights = "adapter_model.safetensors"
    shutil.copy(tmp_path / "a" / "Office.2014" / weights, tmp_path / "swapped" / "Arts" / weights)
    refused(tmp_path / "swapped", here, "belong to another adapter")
    refused(tmp_path / "a", DomainAdapters(network(), DOMAINS, LoraSettings(rank=4)), "shape")


def test_damaged_or_missing_adapter_is_refused(tmp_path):
    """Row 23: truncated weights, broken JSON, a missing file; with hashes that agree, wrong tensors too."""
    here = trained()
    for name in ("cut", "json", "missing", "tensors", "partial"):
        here.save(tmp_path / name)
    weights = tmp_path / "cut" / "Pantry & Co" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    refused(tmp_path / "cut", here, "Pantry & Co")
    (tmp_path / "json" / "Arts" / "origin.json").write_text('{"domain": ')
    refused(tmp_path / "json", here, "cannot be read")
    (tmp_path / "partial" / "Arts" / "origin.json").write_text("[]")
    refused(tmp_path / "partial", here, "cannot be read")
    shutil.rmtree(tmp_path / "missing" / "Arts")
    refused(tmp_path / "missing", here, "no adapter of Arts")
    place = tmp_path / "tensors" / "Arts"
    tensors = load_file(place / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), place / "adapter_model.safetensors")
    origin = json.loads((place / "origin.json").read_text())
    from recbole_gmc.files import hash_file

    origin["weights"] = hash_file(place / "adapter_model.safetensors")
    (place / "origin.json").write_text(json.dumps(origin))
    refused(tmp_path / "tensors", here, "do not fit")


def test_names_that_cannot_be_folders_and_unknown_domains_are_refused():
    with pytest.raises(SettingError):
        DomainAdapters(network(), ("../up",), LoraSettings())
    with pytest.raises(GMCError):
        DomainAdapters(network(), ("A", "A"), LoraSettings())
    with pytest.raises(GMCError, match="no adapter"):
        DomainAdapters(network(), ("A",), LoraSettings()).activate("B")
