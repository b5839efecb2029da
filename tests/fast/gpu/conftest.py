"""Settings of the tests of the kernels for GPUs."""

import pytest
import torch

from twinloss.fast.kernels import gpu_kernels_on_cpu


@pytest.fixture(autouse=True)
def device():
    """Return the device on which the kernels for GPUs run: a GPU, or the CPU with Triton's interpreter."""
    if torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.importorskip("triton")
        with gpu_kernels_on_cpu():
            yield "cpu"
