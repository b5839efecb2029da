r"""The smallest and largest possible values of each loss, up to rounding; checking them needs no reference.

Each function takes all options of a loss, including defaults, and the shape of its input. It returns the smallest and
the largest possible value of an element of the result. Bounds hold for predictions and targets in [0, 1], and for any
images. :math:`\nu` is the smoothing term of the numerator, and :math:`\delta` that of the denominator:

* Dice, Jaccard, Tversky: a ratio :math:`(T + \nu)/(N + \delta)` with :math:`0 \le T \le N` lies between 0 and
  :math:`\max(1, \nu/\delta)`, and the loss is 1 minus the ratio.
* Cross entropy and focal loss are sums of :math:`-\log p \ge 0`.
* Correlation: :math:`\mathrm{cross}^2 \le \mathrm{var}_t \mathrm{var}_p` (Cauchy-Schwarz); with ``clamp`` the
  denominator is at least that product and at least :math:`\delta^2`.
* Mutual information of n bins: at most the entropy of one image, :math:`\log n`, and at least 0, both up to the
  smoothing terms of all :math:`n^2` bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Options = Mapping[str, Any]
Bounds = tuple[float, float]


def _summed(bounds: Bounds, options: Options, count: int) -> Bounds:
    """Return the bounds of a result from those of its elements; ``sum`` adds up at most `count` of these."""
    return (bounds[0] * count, bounds[1] * count) if options.get("reduction") == "sum" else bounds


def _largest_ratio(options: Options) -> float:
    nu, delta = options["smooth_nr"], options["smooth_dr"]
    if nu <= delta:
        return 1.0
    return float(nu / delta) if delta > 0 else math.inf


def overlap(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of Dice, Jaccard and Tversky, generalised or not, with class weights."""
    weight = options.get("weight")
    largest = 1.0 if weight is None else float(np.max(weight))
    low = 1 - _largest_ratio(options)
    return _summed((min(low, 0.0) * largest, largest), options, shape[0] * shape[1])


def matthews_correlation(options: Options, shape: tuple[int, ...]) -> Bounds:
    r"""Return the bounds of one minus :math:`(T + \nu)/\sqrt{PQ}`, where :math:`|T| + \delta \le \sqrt{PQ}`."""
    low, high = overlap(options, shape)
    return low, 2 * high


def power_of_overlap(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of a power of such a loss, which is 0 where the loss is negative."""
    return 0.0, overlap(options, shape)[1]


def not_negative(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of cross entropy, focal loss and sums of squares."""
    return 0.0, math.inf


def overlap_and_entropy(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of Dice with cross entropy or focal loss."""
    dice = overlap(options, shape)[0] if options["lambda_dice"] else 0.0
    return options["lambda_dice"] * dice if dice else 0.0, math.inf


def deep_supervision(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of the wrapper around Dice, whose weights sum to at most 3 by default."""
    total = 3.0 if options["weights"] is None else sum(options["weights"])
    low, high = overlap(options, shape)
    return total * low if low else 0.0, total * high


def generalized_overlap_and_entropy(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of generalised Dice with focal loss, whose class weights belong to the focal term."""
    return overlap_and_entropy({**options, "weight": None, "lambda_dice": options["lambda_gdl"]}, shape)


def correlation(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of local normalised cross-correlation."""
    largest = _largest_ratio(options)
    if options["denominator"] == "clamp":
        nu, delta = options["smooth_nr"], options["smooth_dr"]
        largest = 1 + (nu / delta**2 if delta else math.inf if nu else 0.0)
    return _summed((-largest, 0.0), options, math.prod(shape))


def information(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of global mutual information."""
    bins, nu, delta = options["num_bins"] ** 2, options["smooth_nr"], options["smooth_dr"]
    most = math.log(options["num_bins"]) + bins * nu + delta * (1 + bins * delta)
    return _summed((-most, math.log1p(bins * delta)), options, shape[0])


def multi_scale(options: Options, shape: tuple[int, ...]) -> Bounds:
    """Return the bounds of the wrapper around LNCC, with default options, or around squared differences."""
    if options["loss"] != "lncc":
        return 0.0, math.inf
    return _summed((-1.0, 0.0), options, len(options["scales"] or [0]))
