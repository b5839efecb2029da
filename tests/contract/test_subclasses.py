"""Methods that a subclass overrides are always called, also where kernels compute the whole loss."""

import inspect

import pytest
import torch
from loss_options import SOFTMAX, for_labels, taking
from support import BACKENDS, labels, logits, value_and_gradient

from twinloss import fast

COMPOUND = {
    fast.DiceCELoss: "lambda_ce",
    fast.DiceFocalLoss: "lambda_focal",
    fast.GeneralizedDiceFocalLoss: "lambda_focal",
}
FRACTIONS = [loss_class for loss_class in taking("smooth_nr") if loss_class not in COMPOUND]
OVERRIDES = [
    *((loss_class, name) for loss_class in FRACTIONS for name in ("by_class", "answer", "reduce", "reduced")),
    *((loss_class, name) for loss_class in COMPOUND for name in ("dice", "reduced", "total")),
    *((loss_class, "by_class") for loss_class in COMPOUND if loss_class is not fast.GeneralizedDiceFocalLoss),
]


def doubled(loss_class, name):
    """Return a subclass in which the result of a method is twice that of the base class."""
    original = getattr(loss_class, name)
    return type("Doubled", (loss_class,), {name: lambda self, *arguments: 2 * original(self, *arguments)})


@BACKENDS
@pytest.mark.parametrize(("loss_class", "name"), OVERRIDES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 3.0]])
def test_method_of_a_subclass_is_called_with_and_without_a_weight(form, loss_class, name, weight):
    options = for_labels(loss_class, {})
    if loss_class is not fast.GeneralizedWassersteinDiceLoss:
        options |= SOFTMAX
    if loss_class in COMPOUND:
        options[COMPOUND[loss_class]] = 0.0
    if weight is not None:
        if "weight" not in inspect.signature(loss_class).parameters:
            pytest.skip("this loss has no weight")
        options["weight"] = weight
    x, y = logits(2, 3, 40, dtype=torch.float64), labels(2, 1, 40)
    expected = value_and_gradient(loss_class(**options), x, y, form=form)
    found = value_and_gradient(doubled(loss_class, name)(**options), x, y, form=form)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, 2 * other, rtol=1e-12, atol=1e-15)
