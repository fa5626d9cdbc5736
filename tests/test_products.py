"""Which library multiplies matrices: never a choice that a busy machine could turn within a run or between two."""

import itertools

import pytest
import torch

from recbole_gmc import products
from recbole_gmc.errors import SettingError

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not products.onednn_available(CPU), reason="torch has no oneDNN here")


@pytest.fixture
def stopwatch(monkeypatch):
    """Lets the clock say which way is faster: (seconds of torch's products, seconds of oneDNN's), in turn for ever."""

    def set_times(plain, other):
        ticks = itertools.chain.from_iterable(
            (0.0, seconds) for pair in zip(itertools.cycle(plain), itertools.cycle(other)) for seconds in pair
        )
        monkeypatch.setattr(products.time, "perf_counter", lambda: next(ticks))

    products._faster.cache_clear()
    yield set_times
    products._faster.cache_clear()


@needs_onednn
def test_a_busy_moment_does_not_turn_the_choice(stopwatch):
    stopwatch([9.0, 1.0, 9.0, 9.0], [1.0])  # oneDNN is no faster; most of torch's products were held up
    assert products.choose("auto", "fp32", CPU, 192, 768).name == "torch"


@needs_onednn
def test_every_validation_of_a_run_takes_the_same_way(stopwatch):
    stopwatch([2.0], [1.0])
    assert products.choose("auto", "fp32", CPU, 192, 768).name == "onednn"
    stopwatch([1.0], [2.0])
    assert products.choose("auto", "fp32", CPU, 192, 768).name == "onednn"


@needs_onednn
def test_the_tokenizer_measures_nothing(stopwatch):
    stopwatch([9.0], [1.0])
    found = [products.tokenizer_by_onednn(gemm, CPU) for gemm in ("auto", "torch", "onednn")]
    assert found == [False, False, True]


def test_what_is_not_there_is_refused():
    with pytest.raises(SettingError, match="gemm: 'meta' has no oneDNN"):
        products.tokenizer_by_onednn("onednn", torch.device("meta"))
