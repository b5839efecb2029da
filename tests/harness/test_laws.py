"""Tests that laws, and finite differences in further arguments, detect losses with a bug."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from twinloss.fast import DiceCELoss, FocalLoss
from twinloss.harness.judging import law_check
from twinloss.harness.judging.trial import examine, outside_its_bounds
from twinloss.harness.losses.catalogue import TWINS, find
from twinloss.harness.losses.general_laws import NONE_MEAN
from twinloss.harness.losses.module_laws import ROUNDED_ONCE
from twinloss.harness.model.operand import Elementwise, Operand
from twinloss.harness.model.twin import Case, unbounded


class RoundedTwice(torch.nn.Module):
    """Dice and cross entropy, each converted to float32 separately, so that each rounds its gradient."""

    def __init__(self, **options):
        super().__init__()
        self.dice, self.ce = DiceCELoss(lambda_ce=0.0, **options), DiceCELoss(lambda_dice=0.0, **options)

    def forward(self, input, target):
        return self.dice(input, target) + self.ce(input, target)


class NoSlopeAtZero(FocalLoss):
    """Focal loss whose gradient in the target is 0 where the target is 0."""

    def forward(self, input, target):
        return super().forward(input, torch.where(target == 0, 0.0, target))


class MeanOfTheFinite(FocalLoss):
    """Focal loss whose mean leaves out voxels that are not finite."""

    def forward(self, input, target):
        value = super().forward(input, target)
        return torch.where(value.isfinite(), value, 0 * input.nan_to_num().sum()) if self.reduction == "mean" else value


def soft_case(dtype="float64", **options):
    rng = np.random.default_rng(0)
    x, g = rng.integers(-12, 13, (2, 3, 5)) / 4, rng.integers(0, 2, (2, 3, 5))
    operands = {"input": Operand(x, dtype), "target": Operand(g, "int64")}
    return Case(operands, options, traits={"input": "moderate"})


def test_terms_that_are_rounded_to_the_half_one_by_one_break_the_law_of_one_rounding():
    twin, case = find("dice_ce"), soft_case("bfloat16", sigmoid=True)
    assert law_check.breach(ROUNDED_ONCE, twin, case) is None
    assert "law 'half precision is rounded once'" in law_check.breach(
        ROUNDED_ONCE, replace(twin, fast=RoundedTwice), case
    )


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_every_loss_is_held_to_one_rounding_of_a_half(twin):
    assert ROUNDED_ONCE in twin.laws


def test_a_slope_in_the_target_that_is_dropped_where_it_is_0_contradicts_the_differences():
    twin, case = find("focal"), soft_case()
    assert examine(twin, case).kind is None
    trial = examine(replace(twin, fast=NoSlopeAtZero), case)
    assert trial.kind == "differences"
    assert "fast gradient of target" in trial.message


@pytest.mark.parametrize("twin", [twin for twin in TWINS if len(twin.operands) > 1], ids=lambda twin: twin.name)
def test_gradient_of_every_further_argument_except_labels_is_checked(twin):
    values = {name: Operand(np.full((1, 1, 4), 0.5), "float64") for name in twin.operands}
    if twin.channels > 1:
        values["input"] = Operand(np.zeros((1, twin.channels, 4)), "float64")
    expected = () if twin.name == "generalized_wasserstein_dice" else twin.operands[1:]
    assert twin.slopes(twin, Case(values)) == expected


def test_labels_have_no_gradient():
    operands = {"input": Operand(np.zeros((1, 3, 4)), "float64"), "target": Operand(np.zeros((1, 1, 4)), "float64")}
    assert find("dice").slopes(find("dice"), Case(operands, {"to_onehot_y": True})) == ()


def test_a_mean_that_is_finite_where_the_voxels_are_not_breaks_the_law_of_the_mean():
    twin, case = find("focal"), soft_case(reduction="none")
    x, g = case.input.values.copy(), case.operands["target"].values.copy()
    x[0, 0, 0], g[0, 0, 0] = np.nan, 1
    case = case.with_values(input=x, target=g)
    assert law_check.breach(NONE_MEAN, twin, case) is None
    assert "NaN or infinity in other places" in law_check.breach(NONE_MEAN, replace(twin, fast=MeanOfTheFinite), case)


class Detached(FocalLoss):
    """Focal loss whose target is cut off from the graph."""

    def forward(self, input, target):
        return super().forward(input, target.detach())


def test_a_gradient_that_is_missing_contradicts_the_differences():
    trial = examine(replace(find("focal"), fast=Detached), soft_case())
    assert (trial.kind, trial.message) == ("differences", "the fast twin has no gradient with respect to target")


class ClampedTarget(FocalLoss):
    """Focal loss that writes into its target."""

    def forward(self, input, target):
        return super().forward(input, target.clamp_(0, 1))


def test_error_in_the_gradient_of_the_target_is_reported():
    trial = examine(replace(find("focal"), fast=ClampedTarget), soft_case())
    assert trial.kind == "differences"
    assert "raised RuntimeError for the gradient with respect to target" in trial.message


def test_a_loss_without_bounds_is_never_outside_them():
    twin = replace(find("focal"), bounds=unbounded)
    assert outside_its_bounds(twin, examine(twin, soft_case())) is None


def test_no_slope_follows_from_a_value_that_jumps():
    # Cross entropy is 0 by definition if the target is 0 everywhere, and a mean of -log p next to that.
    case = soft_case()
    case = case.with_values(target=0 * case.operands["target"].values)
    assert examine(find("dice_ce"), case).message == ""


def test_no_differences_are_taken_in_an_argument_with_few_digits_beside_the_step():
    twin = replace(find("focal"), fast=NoSlopeAtZero)
    case = soft_case()
    assert examine(twin, replace(case, traits={**case.traits, "target": "offset"})).kind is None


def test_law_of_sums_does_not_blame_a_loss_for_the_rounding_of_NumPy():
    twin = find("dice_focal")
    law = next(law for law in twin.laws if law.name == "sum adds up the means over voxels")
    rng, shape = np.random.default_rng(1), (1, 3, 4096)
    x, target = rng.integers(-12, 13, shape) / 4, rng.integers(0, 2, shape)
    operands = {"input": Operand(x, "float64", "transposed"), "target": Operand(target, "int64", "transposed")}
    assert law_check.breach(law, twin, Case(operands, {"sigmoid": True, "reduction": "none"})) is None


def test_differences_do_not_blame_the_rounding_of_a_slope_that_is_0():
    # With p = 1, alpha = 0 and equal smoothing the loss is 0 for every target, as its slopes there cancel.
    x, target = np.zeros((1, 1, 2)), np.array([[[0.0, 1.0]]])
    operands = {"input": Operand(x, "float64"), "target": Operand(target, "float64")}
    ones = Elementwise("1 / (1 + x * x)", "1 / (1 + x * x)", "-2 * x / (1 + x * x) ** 2")
    case = Case(operands, {"other_act": ones, "alpha": 0.0}, traits={"input": "constant"})
    assert examine(find("tversky"), case).kind is None
