"""Labels outside the range of classes: the kernels detect them, and the tests measure what that costs."""

from __future__ import annotations

import importlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from twinloss.fast.kernels.cpu import compiled, voxel_call
from twinloss.harness.reliability.everyday import everyday, step
from twinloss.harness.reliability.registry import Row, line

CHECK, UNCHECKED = "bad += not (known | ignored)", "bad += 0"
# The tolerated ratio of CPU times with and without the check. Builds of the same code differ by a few percent.
COST = 1.05


@line("NaN and infinity")
def labels_out_of_range(quick: bool) -> Iterator[Row]:
    """A label outside the range of classes raises an error; the kernel detects it in its only pass."""
    caught, tried = 0, 0
    for each in everyday():
        if each.twin.of_registration:
            continue
        for bad in (-1, 4, 2**31 + 1):
            arguments = each.arguments(8 if quick else 96)
            arguments[1][-1, 0, -1, -1, -1] = bad
            tried += 1
            try:
                step(each.module(), arguments)
            except ValueError as error:
                caught += "labels must be whole numbers" in str(error)
    yield Row(f"{tried} calls, last label -1, 4 (of 4 classes), 2³¹ + 1", f"{caught} errors about it", caught == tried)


@contextmanager
def unchecked() -> Iterator[ModuleType]:
    """Compile copies of the segmentation kernels without the check of labels."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(sys, "path", [folder, *sys.path]):
        package = Path(folder, "unchecked_kernels")
        shutil.copytree(Path(compiled.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        for path in package.glob("*.py"):
            text = path.read_text(encoding="utf-8").replace(compiled.__name__, package.name)
            if path.name == "reading.py" and CHECK not in text:
                raise RuntimeError(f"{path.name} no longer contains the check of labels: {CHECK!r}")
            path.write_text(text.replace(CHECK, UNCHECKED), encoding="utf-8")
        yield importlib.import_module(f"{package.name}.voxel")


def using(voxel: ModuleType) -> Any:
    """Return a context in which the segmentation losses use these kernels."""
    return mock.patch.object(voxel_call, "voxel", voxel)


@line("NaN and infinity")
def cost_of_the_check(quick: bool) -> Iterator[Row]:
    """CPU time of a forward call, relative to kernels that do not check the labels."""
    each = next(each for each in everyday() if each.name == "dice")
    size, calls = (32, 5) if quick else (96, 200)
    loss, arguments, threads = each.module(), each.arguments(size), torch.get_num_threads()
    from twinloss.fast.kernels.cpu.compiled import voxel

    torch.set_num_threads(1)
    with unchecked() as without:
        least = {voxel: math.inf, without: math.inf}
        for _ in range(calls):
            for module in least:  # alternating, so that other load affects both
                with using(module):
                    start = time.thread_time()
                    loss(*arguments)
                    least[module] = min(least[module], time.thread_time() - start)
        arguments[1][-1, 0, -1, -1, -1] = -1
        with using(without):
            loss(*arguments)  # no error, as these kernels do not check
    torch.set_num_threads(threads)
    ratio = least[voxel] / least[without]
    yield Row(
        f"cost of checking labels: Dice, 4 classes, {size}³, minimum of {calls} alternating forward calls each",
        f"{ratio:.3f} × the CPU time without the check",
        quick or ratio <= COST,
    )
