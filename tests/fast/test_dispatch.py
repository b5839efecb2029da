"""Which kernels are picked: a set that registers for a device is called, and no loss is changed for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import labels, logits

from twinloss.fast import BendingEnergyLoss, DiceLoss, FocalLoss, GlobalMutualInformationLoss, MultiScaleLoss
from twinloss.fast import LocalNormalizedCrossCorrelationLoss as LNCC
from twinloss.fast.kernels import contract
from twinloss.fast.kernels.cpu.compiled import compiler, voxel
from twinloss.fast.runtime.dispatch import Statistic
from twinloss.fast.runtime.torch_operator import Once


class FakeKernels:
    """A set for the meta device, whose results have shapes and no numbers, that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def _like(self, name, *made):
        self.asked.append(name)
        return made if len(made) > 1 else made[0]

    # segmentation
    def sums(self, inputs, plan, ahead, slopes):
        shape = (len(contract.ROWS), *inputs.x.shape[:2])
        return self._like("sums", torch.empty(shape, dtype=torch.float64, device="meta"), "kept")

    def gradient(self, upstream, x, *rest):
        return self._like("gradient", torch.empty_like(getattr(x, "x", x)))

    def loss(self, inputs, asked, ahead):
        return self._like("loss", torch.empty((), dtype=asked.dtype, device="meta"), Once("kept"))

    def loss_gradient(self, upstream, inputs, asked, kept):
        assert kept.take() == "kept"
        return self._like("loss_gradient", torch.empty_like(inputs.x))

    def compound(self, inputs, asked, ahead):
        return self._like("compound", torch.empty((), dtype=asked.dtype, device="meta"), "kept")

    def compound_gradient(self, upstream, inputs, asked, kept):
        return self._like("compound_gradient", torch.empty_like(inputs.x))

    # fields and correlation
    def value(self, u, *rest):
        return self._like("value", torch.empty((), dtype=rest[-1], device="meta"))

    def value_and_gradient(self, u, *rest):
        return self._like("value_and_gradient", torch.empty((), dtype=rest[-1], device="meta"), torch.empty_like(u))

    # histogram and smoothing
    def histogram(self, x, y, plan):
        shape = (len(x), plan.bins, plan.bins)
        return self._like("histogram", torch.empty(shape, dtype=torch.float64, device="meta"))

    def smooth(self, images, taps, rank):
        return self._like("smooth", torch.empty_like(images))


@pytest.fixture
def fake(monkeypatch):
    """Kernels for the meta device, registered for all statistics."""
    made, statistics = FakeKernels(), [each for each in vars(contract).values() if isinstance(each, Statistic)]
    assert len(statistics) == 7
    for each in statistics:
        each.register("meta", (torch.float32,), lambda: made)
    yield made
    for each in statistics:
        each.unregister("meta")


CASES = pytest.mark.parametrize(
    ("loss", "arguments", "asked"),
    [
        (DiceLoss(softmax=True, to_onehot_y=True), (logits(1, 3, 5), labels(1, 1, 5)), ["loss", "loss_gradient"]),
        (
            DiceLoss(softmax=True, to_onehot_y=True, weight=[1.0, 2.0, 3.0]), (logits(1, 3, 5), labels(1, 1, 5)),
            ["sums", "gradient"],
        ),
        (FocalLoss(to_onehot_y=True), (logits(1, 3, 5), labels(1, 1, 5)), ["compound", "compound_gradient"]),
        (BendingEnergyLoss(), (logits(1, 3, 5, 5, 5),), ["value_and_gradient"]),
        (LNCC(1), (logits(1, 1, 9), logits(1, 1, 9)), ["value_and_gradient"]),
        (GlobalMutualInformationLoss(4), (logits(1, 1, 9), logits(1, 1, 9)), ["histogram", "gradient"]),
        (
            MultiScaleLoss(LNCC(1), [1.0]), (logits(1, 1, 9), logits(1, 1, 9)),
            ["smooth", "smooth", "value_and_gradient", "smooth"],
        ),
    ],
    ids=["fraction", "sums", "compound", "field", "correlation", "histogram", "smoothing"],
)  # fmt: skip


def on_meta(arguments):
    x, *rest = (each.to("meta") for each in arguments)
    return x.requires_grad_(), *rest


@CASES
def test_kernels_that_register_for_a_device_are_called_and_the_plain_form_is_not(fake, loss, arguments, asked):
    given = on_meta(arguments)
    slot = 1 if isinstance(loss, MultiScaleLoss) else 0
    value = loss(*(reversed(given) if slot else given))
    value.backward()
    assert fake.asked == asked
    assert given[0].grad.shape == given[0].shape


@CASES
def test_without_such_kernels_or_in_another_dtype_the_plain_form_computes(request, loss, arguments, asked):
    given = on_meta(arguments)
    assert loss(*given).is_meta
    fake = request.getfixturevalue("fake")
    assert loss(*(each.double() if each.is_floating_point() else each for each in given)).is_meta
    assert fake.asked == []


def test_kernels_are_loaded_once_and_when_they_are_first_needed():
    statistic, loads = Statistic("example"), []
    statistic.register("meta", (torch.float32,), lambda: loads.append(1) or "kernels")
    x = torch.empty(1, device="meta")
    assert statistic.serves(x)
    assert not statistic.serves(x.half())
    assert loads == []
    assert statistic.kernels(x) == statistic.kernels(x) == "kernels"
    assert loads == [1]


def test_numba_is_imported_with_the_first_kernel_and_no_sooner():
    script = "import sys, twinloss.fast; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_kernels_close_over_the_hash_of_all_sources():
    assert [cell.cell_contents for cell in voxel.forward.py_func.__closure__] == [compiler.SOURCES]


@pytest.mark.parametrize("name", ["window.py", "status.py", "deeper/new.py"])
def test_a_change_of_any_source_changes_the_hash(tmp_path, name):
    folder = Path(compiler.__file__).parent
    copied = shutil.copytree(folder, tmp_path / "compiled", ignore=shutil.ignore_patterns("__pycache__"))
    assert compiler.hash_of(copied) == compiler.SOURCES
    changed = copied / name
    changed.parent.mkdir(exist_ok=True)
    changed.write_text((changed.read_text() if changed.exists() else "") + "\n")
    assert compiler.hash_of(copied) != compiler.SOURCES
