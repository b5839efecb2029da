"""Peak memory of a forward and backward pass, measured in a separate process.

The result is the high-water mark minus the memory in use before the forward pass, divided by the size of the gradient.
A result of 1 means that the gradient is the only memory that was allocated.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.competitors import Step, step_of
from twinloss.harness.bench.timing import quiet, threads
from twinloss.harness.system.memory import process_status


def memory_of(case: BenchmarkCase, name: str) -> float | None:
    """Measure the peak extra memory of a competitor, in multiples of the gradient's size.

    Returns None if it cannot be measured.
    """
    if case.device == "cuda":
        return _on_gpu(case, name)
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "monai.losses"])  # importing these takes seconds
    with _large_blocks_returned(), ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(measure, case, name).result()
        except Exception:  # such as running out of memory, which ends only the child process
            return None


@contextmanager
def _large_blocks_returned() -> Iterator[None]:
    """Make child processes return large blocks to the system as soon as they are freed."""
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        yield


def measure(case: BenchmarkCase, name: str) -> float:
    """Measure the peak extra memory of one step in this process. Works on Linux only."""
    operands = case.operands()
    with threads(case.threads), quiet():
        step = step_of(case, name, operands)
        step()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
        before = process_status("VmRSS")
        step()
    return (process_status("VmHWM") - before) / _gradient(operands)


def _gradient(operands: list[torch.Tensor]) -> int:
    return operands[0].numel() * operands[0].element_size()


def _on_gpu(case: BenchmarkCase, name: str) -> float:
    operands = case.operands()
    with quiet():
        step: Step = step_of(case, name, operands)
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
    return (torch.cuda.max_memory_allocated() - before) / _gradient(operands)
