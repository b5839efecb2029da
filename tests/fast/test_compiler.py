"""The compilation of kernels."""

import gc

import numba
import numpy as np
import pytest
from numba.core import config

from twinloss.fast.kernels.cpu.compiled import compiler


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))


@pytest.fixture
def collector():
    yield
    gc.enable()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_collected_after_a_compilation_as_before(before):
    made = compiler.kernel(lambda x: x.size)
    (gc.enable if before else gc.disable)()
    assert made(np.zeros(3)) == 3
    assert gc.isenabled() == before


@pytest.mark.usefixtures("collector")
def test_garbage_is_collected_again_if_a_compilation_fails():
    made = compiler.kernel(lambda x: x.no_such_attribute)
    with pytest.raises(numba.TypingError):
        made(np.zeros(3))
    assert gc.isenabled()


@pytest.mark.usefixtures("collector")
def test_no_garbage_is_collected_while_a_kernel_is_compiled(monkeypatch):
    seen = []
    made = compiler.kernel(lambda x: x.size)
    inner = made._compiler.compile
    monkeypatch.setattr(made._compiler, "compile", lambda *a: seen.append(gc.isenabled()) or inner(*a))
    made(np.zeros(3))
    assert seen == [False]
