"""Tests on real images: the judge sees a block, and further comparisons find errors that only whole volumes have."""

from dataclasses import replace

import numpy as np
import pytest
from site_parts import SHAPE, small_brain

from twinloss import fast
from twinloss.harness.data import brain, warp
from twinloss.harness.hunting import real_images
from twinloss.harness.losses.catalogue import TWINS, find

PLANES = 4


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Use a brain of a few voxels. The reference gets only some of its planes."""
    monkeypatch.setattr(brain, "load_brain", small_brain)
    monkeypatch.setattr(real_images, "PLANES", PLANES)
    monkeypatch.setattr(warp, "load_brain", small_brain)
    warp.load_warped.cache_clear()
    yield
    warp.load_warped.cache_clear()


def trials(twin, *dtypes):
    return list(real_images.trials(twin, dtypes))


def beyond_the_block(cls):
    """Return a subclass of a loss that is wrong if its input is as large as a whole volume."""

    class WrongOnWholeVolumes(cls):
        def forward(self, input, *rest):
            value = super().forward(input, *rest)
            return value * 1.5 if input[0, 0].numel() == np.prod(SHAPE) else value

    return WrongOnWholeVolumes


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_every_loss_is_judged_on_a_block_and_all_but_wrappers_on_a_whole_volume(twin):
    found = trials(twin, "float32", "float64")
    assert [trial.message for trial in found if trial.kind] == []
    judged = {trial.case.traits["judged"] for trial in found}
    assert any("x4 voxels" in text for text in judged)
    assert any("24x20x12" in text for text in judged) == (twin.name not in ("multi_scale", "deep_supervision"))
    assert {trial.case.dtype for trial in found} == {"float32", "float64"}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_the_judge_can_fail_on_real_images(twin):
    class SlightlyWrong(twin.fast):
        def forward(self, *arguments):
            return super().forward(*arguments) * 1.001

    assert all(trial.kind for trial in trials(replace(twin, fast=SlightlyWrong), "float64"))


def test_an_error_of_large_volumes_is_seen_even_if_all_dtypes_have_it():
    twin = replace(find("dice"), fast=beyond_the_block(fast.DiceLoss))
    failed = {trial.case.traits["judged"] for trial in trials(twin, "float64") if trial.kind}
    assert len(failed) == 1
    assert "24x20x12, the others ignored" in failed.pop()


def test_an_error_of_large_volumes_in_float32_is_seen_by_the_fast_twin_in_float64():
    class WrongInFloat32(fast.DiffusionLoss):
        def forward(self, pred):
            large = pred[0, 0].numel() == np.prod(SHAPE) and pred.dtype.itemsize == 4
            return super().forward(pred) * (1.5 if large else 1)

    twin = replace(find("diffusion"), fast=WrongInFloat32)
    found = trials(twin, "float32", "float64")
    assert [trial.case.traits["judged"] for trial in found if trial.kind] == [
        "24x20x12 voxels by the fast twin in float64"
    ]


def test_halves_are_rounded_before_either_twin_sees_them():
    assert [trial.kind for trial in trials(find("dice"), "bfloat16", "float16")] == [None] * 6


def test_the_block_holds_the_brain_in_its_middle_planes():
    mask = np.zeros((20, 20, 20), bool)
    mask[8:10, 6:15, 2:18] = True
    assert real_images.block_of_brain(mask[None, None]) == (slice(4, 14), slice(2, 19), slice(8, 12))
