"""Which library multiplies matrices: a rule, which a busy machine cannot turn within a run or between two."""

import time

import pytest
import torch

from recbole_gmc import products
from recbole_gmc.errors import SettingError

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not products.onednn_available(CPU), reason="torch has no oneDNN here")


@pytest.fixture
def no_clock(monkeypatch):
    def refuse():
        raise AssertionError("a stopwatch chooses")

    for name in ("perf_counter", "process_time", "monotonic", "time"):
        monkeypatch.setattr(time, name, refuse)


@needs_onednn
def test_the_choice_is_made_without_a_clock(no_clock):
    chosen = {gemm: products.choose(gemm, "fp32", CPU, 192, 768).name for gemm in ("auto", "torch", "onednn")}
    assert chosen == {"auto": "onednn", "torch": "torch", "onednn": "onednn"}
    able = products.onednn_available(CPU, "bf16")
    assert products.choose("auto", "bf16", CPU, 192, 768).name == ("onednn" if able else "torch")
    assert products.choose("auto", "fp32", CPU, 64, 64).name == "torch", "too small to matter"


@needs_onednn
def test_products_that_are_not_float32_are_not_chosen(monkeypatch):
    rounded = products.OneDnnProducts.linear
    monkeypatch.setattr(
        products.OneDnnProducts, "linear", lambda way, rows, weight: rounded(way, rows, weight).bfloat16().float()
    )
    assert products.choose("auto", "fp32", CPU, 192, 768).name == "torch"


@needs_onednn
def test_the_tokenizer_takes_onednn_only_if_asked():
    found = [products.tokenizer_by_onednn(gemm, CPU) for gemm in ("auto", "torch", "onednn")]
    assert found == [False, False, True]


def test_what_is_not_there_is_refused():
    with pytest.raises(SettingError, match="gemm: oneDNN in this build of torch does not multiply fp32 on this meta"):
        products.tokenizer_by_onednn("onednn", torch.device("meta"))


@needs_onednn
@pytest.mark.parametrize("able", [True, False])
def test_bf16_is_onednns_only_where_the_processor_has_it(monkeypatch, able):
    def reorder(way, weight):
        if way.precision == "bf16" and not able:
            raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw")
        return weight

    monkeypatch.setattr(products.OneDnnProducts, "prepare", reorder)
    monkeypatch.setattr(products.OneDnnProducts, "linear", lambda way, rows, weight: rows @ weight.T)
    assert products.choose("auto", "bf16", CPU, 192, 768).name == ("onednn" if able else "torch")
    assert products.choose("auto", "fp32", CPU, 192, 768).name == "onednn"
    if not able:
        with pytest.raises(SettingError, match="does not multiply bf16 on this cpu"):
            products.choose("onednn", "bf16", CPU, 192, 768)
