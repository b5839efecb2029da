"""All losses, with options that lead to different code paths, and arguments for each.

The contract tests use them to check what all losses have in common.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support import labels, logits, soft

from twinloss import fast
from twinloss.harness.losses.catalogue import TWINS

DISTANCES = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]


@dataclass(frozen=True)
class Each:
    """A loss with its options, and a function that makes its arguments, given a dtype.

    The first argument is the one that gets a gradient.
    """

    make: Callable[[], torch.nn.Module]
    arguments: Callable[[torch.dtype], tuple[torch.Tensor, ...]]

    def __call__(self, *arguments):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "single channel prediction")
            return self.make()(*arguments)


def _of_labels(dtype):
    return logits(2, 3, 4, 3, dtype=dtype), labels(2, 1, 4, 3)


def _soft(dtype):
    return logits(2, 3, 4, dtype=dtype), soft(2, 3, 4, dtype=dtype)


def _binary(dtype):
    return logits(2, 1, 4, 3, dtype=dtype), labels(2, 1, 4, 3, classes=2)


def _masked(dtype):
    return *_of_labels(dtype), torch.tensor([1.0, 0.5, 0.0]).expand(2, 1, 4, 3).to(dtype)


def _stacked(dtype):
    return logits(2, 2, 3, 3, 3, dtype=dtype), labels(2, 1, 6, 3)


def _field(dtype):
    return (logits(1, 3, 5, 5, 5, dtype=dtype),)


def _images(dtype):
    return logits(1, 2, 5, 4, dtype=dtype).sigmoid(), logits(1, 2, 5, 4, dtype=dtype, seed=3).sigmoid()


def _scaled_images(dtype):
    return _images(dtype)[::-1]


def _lncc(**options):
    return fast.LocalNormalizedCrossCorrelationLoss(ndim=2, **options)


_ON_LABELS = {"softmax": True, "to_onehot_y": True}
LOSSES = {
    "dice": Each(lambda: fast.DiceLoss(**_ON_LABELS), _of_labels),
    "dice sigmoid": Each(lambda: fast.DiceLoss(sigmoid=True, squared_pred=True, batch=True), _soft),
    "dice binary none": Each(lambda: fast.DiceLoss(sigmoid=True, jaccard=True, reduction="none"), _binary),
    "dice weighted": Each(lambda: fast.DiceLoss(**_ON_LABELS, weight=[1.0, 2.0, 3.0], ignore_index=1), _of_labels),
    "dice other_act": Each(lambda: fast.DiceLoss(other_act=torch.sigmoid, to_onehot_y=True), _of_labels),
    "masked dice": Each(lambda: fast.MaskedDiceLoss(**_ON_LABELS), _masked),
    "masked": Each(lambda: fast.MaskedLoss(fast.DiceCELoss(**_ON_LABELS)), _masked),
    "masked none": Each(lambda: fast.MaskedLoss(fast.FocalLoss(to_onehot_y=True, reduction="none")), _masked),
    "tversky": Each(lambda: fast.TverskyLoss(False, **_ON_LABELS, alpha=0.3, beta=0.7), _of_labels),
    "tversky soft": Each(lambda: fast.TverskyLoss(softmax=True, soft_label=True), _soft),
    "tversky weighted": Each(lambda: fast.TverskyLoss(**_ON_LABELS, weight=[1.0, 2.0, 3.0]), _of_labels),
    "focal tversky": Each(lambda: fast.FocalTverskyLoss(**_ON_LABELS, gamma=[0.5, 1.0, 2.0]), _of_labels),
    "focal tversky none": Each(lambda: fast.FocalTverskyLoss(sigmoid=True, reduction="none"), _soft),
    "matthews": Each(lambda: fast.MatthewsCorrelationLoss(**_ON_LABELS, weight=[1.0, 2.0, 3.0]), _of_labels),
    "matthews soft none": Each(
        lambda: fast.MatthewsCorrelationLoss(sigmoid=True, soft_label=True, reduction="none"), _soft
    ),
    "generalized dice": Each(lambda: fast.GeneralizedDiceLoss(**_ON_LABELS), _of_labels),
    "generalized dice simple none": Each(
        lambda: fast.GeneralizedDiceLoss(sigmoid=True, w_type="simple", reduction="none"), _soft
    ),
    "wasserstein": Each(lambda: fast.GeneralizedWassersteinDiceLoss(DISTANCES), _of_labels),
    "wasserstein GDL": Each(
        lambda: fast.GeneralizedWassersteinDiceLoss(DISTANCES, weighting_mode="GDL", reduction="none"), _of_labels
    ),
    "focal": Each(lambda: fast.FocalLoss(to_onehot_y=True), _of_labels),
    "focal none": Each(lambda: fast.FocalLoss(reduction="none", alpha=0.25), _soft),
    "focal binary": Each(lambda: fast.FocalLoss(use_softmax=False, gamma=1.5, alpha=0.25), _binary),
    "dice ce": Each(lambda: fast.DiceCELoss(**_ON_LABELS), _of_labels),
    "dice ce smoothed": Each(lambda: fast.DiceCELoss(sigmoid=True, label_smoothing=0.1), _binary),
    "dice focal": Each(lambda: fast.DiceFocalLoss(**_ON_LABELS, gamma=1.0), _of_labels),
    "dice focal none": Each(lambda: fast.DiceFocalLoss(sigmoid=True, use_softmax=False, reduction="none"), _soft),
    "bending energy": Each(lambda: fast.BendingEnergyLoss(), _field),
    "bending energy none": Each(lambda: fast.BendingEnergyLoss(reduction="none", stencil="wide"), _field),
    "diffusion": Each(lambda: fast.DiffusionLoss(normalize=True), _field),
    "diffusion none": Each(lambda: fast.DiffusionLoss(reduction="none", stencil="wide"), _field),
    "lncc": Each(lambda: _lncc(kernel_type="gaussian"), _images),
    "lncc none": Each(lambda: _lncc(reduction="none", denominator="clamp"), _images),
    "mutual information": Each(lambda: fast.GlobalMutualInformationLoss(num_bins=8), _images),
    "mutual information none": Each(
        lambda: fast.GlobalMutualInformationLoss(num_bins=8, kernel_type="b-spline", reduction="none"), _images
    ),
    "generalized dice focal": Each(
        lambda: fast.GeneralizedDiceFocalLoss(**_ON_LABELS, weight=[1.0, 2.0, 3.0]), _of_labels
    ),
    "generalized dice focal none": Each(
        lambda: fast.GeneralizedDiceFocalLoss(sigmoid=True, use_softmax=False, reduction="none"), _soft
    ),
    "deep supervision": Each(lambda: fast.DeepSupervisionLoss(fast.DiceCELoss(**_ON_LABELS), stacked=True), _stacked),
    "deep supervision weights": Each(
        lambda: fast.DeepSupervisionLoss(
            fast.DiceLoss(**_ON_LABELS, reduction="none"), weights=[0.0, 0.5], stacked=True
        ),
        _stacked,
    ),
    "multi-scale": Each(lambda: fast.MultiScaleLoss(_lncc(), scales=[0, 1.0]), _scaled_images),
    "multi-scale none": Each(
        lambda: fast.MultiScaleLoss(torch.nn.L1Loss(), scales=[1.0], kernel="cauchy", reduction="none"), _scaled_images
    ),
}


def _usual(twin, **options):
    """Return a loss with the options of its record and others."""
    arguments = {("input", "target"): _of_labels, ("input", "target", "mask"): _masked, ("pred",): _field}
    given = {name: value for name, value in twin.usual.options.items() if name in twin.options} | options
    given |= {"ndim": 2} if "ndim" in twin.options else {}
    return Each(lambda: twin.fast(**given), arguments.get(twin.operands, _images))


# Losses without a row have the usual options, and are also computed without a reduction.
_LISTED = {type(each.make()) for each in LOSSES.values()}
for _twin in TWINS:
    if _twin.public not in _LISTED:
        LOSSES[_twin.name] = _usual(_twin)
        if "none" in _twin.options.get("reduction", ()):
            LOSSES[f"{_twin.name} none"] = _usual(_twin, reduction="none")
EVERY_LOSS = pytest.mark.parametrize("each", [pytest.param(each, id=name) for name, each in LOSSES.items()])
