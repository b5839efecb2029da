"""Settings of the tests of the kernels for GPUs."""

import pytest
import torch

from twinloss.fast.kernels import gpu_kernels_on_cpu


@pytest.fixture(autouse=True, scope="session")
def fast_interpreter():
    """Let Triton's interpreter prepare a module once per launch, and not in each call of a function."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    function, prepared = interpreter.InterpretedFunction, set()
    run, call = function.run, function.__call__

    def run_afresh(self, *arguments, **options):
        prepared.clear()
        return run(self, *arguments, **options)

    def call_prepared(self, *arguments, **options):
        module = id(self.fn.__globals__)
        if module in prepared:
            return self.rewrite()(*arguments, **options)
        prepared.add(module)
        return call(self, *arguments, **options)

    function.run, function.__call__ = run_afresh, call_prepared
    yield
    function.run, function.__call__ = run, call


@pytest.fixture(autouse=True)
def device():
    """Return the device on which the kernels for GPUs run: a GPU, or the CPU with Triton's interpreter."""
    if torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.importorskip("triton")
        with gpu_kernels_on_cpu():
            yield "cpu"
