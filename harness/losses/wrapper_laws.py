"""Laws of the losses that wrap a segmentation loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from twinloss import fast
from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.losses.general_laws import BOUNDED, FLIPS, MEAN, NO_ORDER, NONE_MEAN, NONE_SUM, needing, spatial
from twinloss.harness.losses.segmentation_laws import (
    CLASSES,
    CROPPING,
    CROPPING_BY_CHANNEL,
    MASKED,
    ONE_HOT,
    SOFTMAX,
)
from twinloss.harness.model.twin import Case, Claim, Law, Twin

OF_LEVELS = ("weight_mode", "weights", "interp_mode", "stacked")


def _one_level_is_the_loss(twin: Twin, case: Case) -> Iterator[Claim]:
    wrapped = replace(case, options={k: v for k, v in case.options.items() if k not in OF_LEVELS})
    here, there = ask_fast(twin, case), ask_fast(replace(twin, fast=fast.DiceLoss), wrapped)
    yield Claim("value", here.value, there.value, case)
    yield Claim("gradient", here.gradient, there.gradient, case)


def _linear_in_the_weights(twin: Twin, case: Case) -> Iterator[Claim]:
    weights = case.options["weights"]
    alone = [[float(k == level) for k in range(len(weights))] for level in range(len(weights))]
    answers = [ask_fast(twin, case.having(weights=each)) for each in alone]
    here = ask_fast(twin, case)
    for part in ("value", "gradient"):
        terms = [w * getattr(answer, part).astype(np.float64) for w, answer in zip(weights, answers, strict=True)]
        # Each level is rounded by itself, and the levels may cancel.
        scale = sum(float(np.max(np.abs(term), initial=0)) for term in terms)
        yield Claim(part, getattr(here, part), np.sum(terms, axis=0), case, scale)


def _weight_0_is_left_out(twin: Twin, case: Case) -> Iterator[Claim]:
    """Of two levels, the finer one has a weight of 0, and so have the voxels that the coarser one does not have."""
    seen = np.ones((), bool)
    for n in spatial(case):
        m = -(-n // 2)
        i = np.arange(m)
        of_axis = np.zeros(n, bool)
        of_axis[i * n // m if case.options.get("interp_mode") == "nearest" else (2 * i + 1) * n // (2 * m)] = True
        seen = seen[..., np.newaxis] & of_axis
    poisoned = case.with_values(input=np.where(seen, case.input.values, np.nan)).contiguous()
    here, there = ask_fast(twin, case), ask_fast(twin, poisoned)
    yield Claim("value", there.value, here.value, case, exact=True)
    yield Claim("gradient", there.gradient, here.gradient, case, exact=True)
    outside = np.where(seen, 0, here.gradient)
    yield Claim("gradient", outside, np.zeros_like(outside), case, exact=True)


def _is_finite(case: Case) -> bool:
    return bool(np.isfinite(case.input.values).all())


# Levels that are stacked differ in the order of their classes.
DEEP_SUPERVISION = (
    BOUNDED, MEAN, NONE_MEAN, NONE_SUM, needing(ONE_HOT, other_act=None), needing(CLASSES, stacked=False), *SOFTMAX,
    Law("one level is the wrapped loss", _one_level_is_the_loss, {"weights": [1.0]}),
    Law("the loss is linear in the weights", _linear_in_the_weights, {"weights": [1.0, 0.25, 0.0, 0.5]}),
    Law("a level of weight 0 has no effect", _weight_0_is_left_out, {"weights": [0.0, 1.0], "stacked": False},
        _is_finite),
)  # fmt: skip
# The mean of the values of voxels is one weighted mean over the batch, so that it is not the mean of the items.
MASKED_LOSS = (
    BOUNDED, ONE_HOT, CLASSES, *SOFTMAX,
    *(needing(law, reduction="mean") for law in (NO_ORDER, FLIPS, CROPPING, CROPPING_BY_CHANNEL, *MASKED)),
)  # fmt: skip
