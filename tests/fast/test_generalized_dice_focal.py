"""The fast generalised Dice + focal loss: its terms, class weights, options and corner cases."""

import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss.fast import FocalLoss, GeneralizedDiceFocalLoss, GeneralizedDiceLoss

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("activation", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.exp}])
@pytest.mark.parametrize("background", [True, False])
def test_it_is_the_weighted_sum_of_generalised_dice_and_of_focal_loss_of_the_logits(
    form, reduction, activation, background
):
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    shared = {"to_onehot_y": True, "reduction": reduction, "include_background": background}
    of_dice = {"w_type": "simple", "normalize_weights": True, "batch": True, "smooth_nr": 0.5}
    of_focal = {"gamma": 1.5, "alpha": 0.3}
    loss = GeneralizedDiceFocalLoss(lambda_gdl=0.5, lambda_focal=2.0, **shared, **activation, **of_dice, **of_focal)
    dice, focal = GeneralizedDiceLoss(**shared, **activation, **of_dice), FocalLoss(**shared, **of_focal)
    expected = value_and_gradient(lambda x, y: 0.5 * dice(x, y) + 2.0 * focal(x, y), x, y, form=form)
    assert_all_close(value_and_gradient(loss, x, y, form=form), expected, 1e-12, 1e-15)


@REDUCTIONS
def test_weight_goes_to_the_focal_term_and_has_a_value_for_the_background(reduction):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"include_background": False, "to_onehot_y": True, "reduction": reduction}
    found = GeneralizedDiceFocalLoss(softmax=True, weight=[0.5, 2.0, 3.0], **options)(x, y)
    expected = GeneralizedDiceLoss(softmax=True, **options)(x, y) + FocalLoss(weight=[2.0, 3.0], **options)(x, y)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="weight has 2 values for 3 classes"):
        GeneralizedDiceFocalLoss(softmax=True, weight=[2.0, 3.0], **options)(x, y)


def test_patch_without_foreground_has_the_gradient_of_the_focal_term():
    x, y = logits(1, 3, 7, dtype=torch.float64), torch.zeros(1, 1, 7, dtype=torch.int64)
    options = {"include_background": False, "to_onehot_y": True, "use_softmax": False}
    _, found = value_and_gradient(GeneralizedDiceFocalLoss(softmax=True, **options), x, y)
    _, expected = value_and_gradient(FocalLoss(**options), x, y)
    assert expected.any()
    torch.testing.assert_close(found, expected)


def test_lambda_gdl_can_be_assigned_and_is_checked_under_its_name():
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    loss = GeneralizedDiceFocalLoss(to_onehot_y=True, softmax=True)
    loss.lambda_gdl = 0.25
    assert torch.equal(loss(x, y), GeneralizedDiceFocalLoss(to_onehot_y=True, softmax=True, lambda_gdl=0.25)(x, y))
    with pytest.raises(ValueError, match="lambda_gdl must be finite and not negative"):
        GeneralizedDiceFocalLoss(lambda_gdl=-1.0)
    for name, value in (("squared_pred", True), ("jaccard", True), ("focal_weight", 2.0)):
        with pytest.raises(TypeError, match=f"no option {name}"):
            setattr(loss, name, value)


def test_all_voxels_are_read_once_for_both_terms(monkeypatch):
    from twinloss.fast.engine.segmentation import voxels

    found, statistics = [], voxels.statistics
    monkeypatch.setattr(voxels, "statistics", lambda *given: found.append(given[1]) or statistics(*given))
    GeneralizedDiceFocalLoss(to_onehot_y=True, softmax=True)(logits(2, 3, 7), labels(2, 1, 7))
    assert [(plan.overlap, plan.surprisal) for plan in found] == [("product", "target")]
