"""Tiny random checkpoints on disk, read by the real loading code."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from recbole_gmc.data.text import ItemTexts
from recbole_gmc.embed import embed, partial, pretrained
from recbole_gmc.errors import EmbeddingError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TextSettings

WORDS = "red blue green pen paper desk lamp chair book toy car doll".split()
KINDS = ("llama", "bert", "t5")
DIM = 16


def save_checkpoint(folder, kind, bos=True):
    """A random network of some architecture with a word-level tokenizer; LLaMA's has no padding token."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A </s>" if kind == "t5" else "<s> $A" if kind == "llama" else "<s> $A </s>"
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    padding = {} if kind == "llama" else {"pad_token": "<unk>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **padding
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(vocabulary), hidden_size=DIM, intermediate_size=32, num_attention_heads=2)
    if kind == "llama":
        network = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_key_value_heads=1))
    elif kind == "bert":
        network = BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=2, max_position_embeddings=32))
    elif kind == "roberta":
        network = RobertaModel(RobertaConfig(**sizes, num_hidden_layers=1, max_position_embeddings=12, pad_token_id=1))
    else:
        network = T5ForConditionalGeneration(
            T5Config(vocab_size=len(vocabulary), d_model=DIM, d_ff=32, d_kv=8, num_heads=2, num_layers=2)
        )
    network.eval().save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: (root / kind, save_checkpoint(root / kind, kind)) for kind in KINDS}


@pytest.fixture
def texts():
    random = np.random.default_rng(0)
    items = ItemIndex.of({"A": [f"a{i:02}" for i in range(20)], "B": [f"b{i:02}" for i in range(10)]})
    return ItemTexts(items, tuple(" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(30)))


def settings(folder, **changes):
    return TextSettings(**{"encoder": str(folder), "batch_tokens": 64, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_network_run_by_hand_one_text_at_a_time(checkpoints, texts, tmp_path, kind):
    folder, network = checkpoints[kind]
    found = embed(texts, settings(folder), tmp_path, progress=False).vectors
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    body = network.encoder if kind == "t5" else network.base_model
    with torch.no_grad():
        wanted = [body(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0].mean(0) for text in texts.texts]
    np.testing.assert_allclose(found, torch.stack(wanted).numpy(), atol=1e-5)
    assert found.dtype == np.float32 and np.ptp(found, axis=0).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter(checkpoints, texts, tmp_path, kind):
    folder, _ = checkpoints[kind]
    alone = embed(texts, settings(folder, batch_tokens=16), tmp_path / "1", progress=False).vectors
    together = embed(texts, settings(folder, batch_tokens=4096), tmp_path / "2", progress=False).vectors
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_the_key_holds_the_checkpoint_and_the_version_of_its_library(checkpoints, tmp_path, monkeypatch):
    folder, _ = checkpoints["bert"]

    def key(device="cpu", **changes):
        return pretrained.find(settings(folder, **changes), device).identity

    assert key(batch_tokens=16) == key(batch_tokens=4096) and key("cuda", dtype="float32") == key()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= key()["files"].keys()
    before = [key(), key(max_length=9), key(dtype="bfloat16")]
    monkeypatch.setattr(pretrained.transformers, "__version__", "5.0.0")
    assert len({json.dumps(one) for one in [*before, key()]}) == 4


def test_batches_are_sorted_bounded_and_whole():
    lengths = [3, 50, 7, 7, 1, 20]
    rows = list(pretrained.batches(lengths, 24))
    assert rows == [[1], [5], [2, 3, 0], [4]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_goes_on_and_ends_equal(checkpoints, texts, tmp_path, monkeypatch, caplog, error):
    caplog.set_level(logging.INFO)
    folder, _ = checkpoints["llama"]
    whole = embed(texts, settings(folder), tmp_path / "whole", progress=False)
    vectors, calls = pretrained.Encoder.vectors, []

    def counted(self, tokens):
        calls.append(len(tokens))
        if len(calls) == 3:
            raise error
        return vectors(self, tokens)

    monkeypatch.setattr(pretrained.Encoder, "vectors", counted)
    with pytest.raises(error):
        embed(texts, settings(folder), tmp_path / "cut", progress=False)
    first = sum(calls[:2])
    assert not list((tmp_path / "cut").glob("embeddings/*/vectors.npy"))
    resumed = embed(texts, settings(folder), tmp_path / "cut", progress=False)
    assert f"going on from {first} of 30 items" in caplog.text
    assert sum(calls[3:]) == 30 - first
    assert resumed.fingerprint == whole.fingerprint
    assert not list((tmp_path / "cut").glob("embeddings-partial/*"))


def test_partial_results_survive_a_kill_and_damage_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(partial, "SAVE_SECONDS", 0.0)
    rows = {row: np.full(4, row, np.float32) for row in range(4)}
    writer = partial.Partial(tmp_path)
    writer.add({0: rows[0], 1: rows[1]})
    writer.add({2: rows[2], 3: rows[3]})  # no save(): the process is killed here
    assert sorted(partial.Partial(tmp_path).load()) == [0, 1, 2, 3]
    chunk = sorted(tmp_path.iterdir())[0]
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    left = partial.Partial(tmp_path).load()
    assert len(left) == 2 and all((left[row] == rows[row]).all() for row in left)
    assert "damaged" in caplog.text


def test_second_run_reuses_and_never_loads(checkpoints, texts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    folder, _ = checkpoints["bert"]
    first = embed(texts, settings(folder), tmp_path, progress=False)
    monkeypatch.setattr(pretrained.Encoder, "load", None)
    second = embed(texts, settings(folder), tmp_path, progress=False)
    assert "reused 30 x 16" in caplog.text and second.fingerprint == first.fingerprint
    # Weights with other content, another length limit or another type are another key.
    network = save_checkpoint(tmp_path / "other", "bert")
    network.base_model.embeddings.word_embeddings.weight.data += 1.0
    network.save_pretrained(tmp_path / "other")
    for changed in (settings(tmp_path / "other"), settings(folder, max_length=8), settings(folder, dtype="bfloat16")):
        with pytest.raises(TypeError):
            embed(texts, changed, tmp_path, progress=False)


def test_texts_are_cut_at_the_limit_and_at_the_models_positions(tmp_path):
    save_checkpoint(tmp_path / "r", "roberta")
    items = ItemIndex.of({"A": ["a", "b", "c"]})
    texts = ItemTexts(items, ("red " * 40 + "blue", "red " * 40 + "green", "lamp"))
    vectors = embed(texts, settings(tmp_path / "r"), tmp_path, progress=False).vectors
    assert (vectors[0] == vectors[1]).all() and not np.allclose(vectors[0], vectors[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(checkpoints, texts, tmp_path, dtype):
    folder, _ = checkpoints["llama"]
    full = np.asarray(embed(texts, settings(folder), tmp_path, progress=False).vectors)
    half = embed(texts, settings(folder, dtype=dtype), tmp_path, progress=False).vectors
    assert half.dtype == np.float32
    assert 0 < np.abs(full - np.asarray(half)).max() < 0.05


def test_too_large_batches_are_halved_when_memory_runs_out(checkpoints, texts, tmp_path, monkeypatch):
    folder, _ = checkpoints["llama"]
    whole = embed(texts, settings(folder), tmp_path / "1", progress=False).vectors
    mean = pretrained.Encoder._mean

    def small_memory(self, tokens):
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("too large")
        return mean(self, tokens)

    monkeypatch.setattr(pretrained.Encoder, "_mean", small_memory)
    halved = embed(texts, settings(folder), tmp_path / "2", progress=False).vectors
    np.testing.assert_allclose(halved, whole, atol=1e-5)


def refusal(texts, encoder, cache, **changes):
    with pytest.raises(EmbeddingError) as caught:
        embed(texts, settings(encoder, **changes), cache, progress=False)
    return str(caught.value)


def test_missing_folder_and_unknown_name(texts, tmp_path, monkeypatch):
    assert str(tmp_path / "none") in refusal(texts, tmp_path / "none", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(texts, "nobody/no-such-model", tmp_path)
    assert "nobody/no-such-model" in message and "a folder" in message and "\n" not in message
    assert "https://)" not in message, "advice of another library is left out, not cut in the middle"


def test_pickled_weights_are_refused_and_never_opened(checkpoints, texts, tmp_path):
    folder = shutil.copytree(checkpoints["bert"][0], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "marker"

    class Exploit:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"weight": Exploit()}, folder / "pytorch_model.bin")
    assert "safetensors" in refusal(texts, folder, tmp_path / "c")
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_checkpoint_is_never_run_nor_asked_for(checkpoints, texts, tmp_path, monkeypatch, file):
    folder = shutil.copytree(checkpoints["bert"][0], tmp_path / "coded")
    marker = tmp_path / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    content = json.loads((folder / file).read_text())
    names = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    content["auto_map"] = names
    if file == "config.json":
        content["model_type"] = "evil"
    (folder / file).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    if file == "config.json":
        assert "no architecture 'evil'" in refusal(texts, folder, tmp_path / "c")
    else:
        embed(texts, settings(folder), tmp_path / "c", progress=False)
    assert not marker.exists()


def test_tokenizer_with_only_its_own_code_is_refused(checkpoints, texts, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoints["llama"][0], tmp_path / "coded")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    assert "never run" in refusal(texts, folder, tmp_path / "c")


def test_missing_or_truncated_weights_are_refused(checkpoints, texts, tmp_path):
    folder = shutil.copytree(checkpoints["llama"][0], tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert name.removeprefix("model.") in refusal(texts, folder, tmp_path / "c")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot be loaded" in refusal(texts, folder, tmp_path / "c")


def test_nan_zero_and_wordless_rows_are_named(checkpoints, tmp_path):
    items = ItemIndex.of({"A": [f"a{i:02}" for i in range(12)]})
    texts = ItemTexts(items, ("lamp pen",) * 12)
    network = save_checkpoint(tmp_path / "nan", "llama")
    network.model.embed_tokens.weight.data[:] = float("nan")
    network.save_pretrained(tmp_path / "nan")
    message = refusal(texts, tmp_path / "nan", tmp_path / "c")
    assert "12 text embeddings with NaN" in message and "a09 and 2 more" in message
    network.model.norm.weight.data[:] = 0.0
    network.model.embed_tokens.weight.data[:] = 1.0
    network.save_pretrained(tmp_path / "nan")
    assert "all zero: a00, a01" in refusal(texts, tmp_path / "nan", tmp_path / "c")
    save_checkpoint(tmp_path / "plain", "llama", bos=False)
    blank = ItemTexts(items, ("lamp",) * 11 + (" ",))
    assert "1 texts have no token" in refusal(blank, tmp_path / "plain", tmp_path / "c")
