"""The kinds of numbers in cases; every array comes from a seeded generator.

Simple kinds use few digits, so that shrunk counterexamples are short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from twinloss.harness.model.operand import Array

Rng = np.random.Generator


def rounded(values: Array, dtype: str) -> Array:
    """Round to the nearest numbers of `dtype`; the result is float64."""
    made: Array = torch.from_numpy(np.array(values, np.float64)).to(getattr(torch, dtype)).double().numpy()
    return made


def moderate(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Multiples of 1/4 in [-3, 3]."""
    return rng.integers(-12, 13, shape) / 4


def probabilities(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Multiples of 1/8 in [0, 1]."""
    return rng.integers(0, 9, shape) / 8


def unit(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Probabilities with all digits of the dtype."""
    return rng.random(shape)


def normal(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Normally distributed numbers with all digits of the dtype, like the output of a network."""
    return 3 * rng.standard_normal(shape)


def wide(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Logits whose probabilities span tens of orders of magnitude."""
    return 30 * rng.standard_normal(shape)


def constant(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """The same number everywhere."""
    return np.full(shape, rng.integers(-2, 3) / 2)


def ties(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Numbers that are equal in all channels of a voxel."""
    return np.broadcast_to(rng.integers(-1, 2, (shape[0], 1, *shape[2:])) / 2, shape)


def saturated(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Logits of ±10000, whose probabilities are 0 and 1."""
    return rng.choice([-1e4, 1e4], shape)


def subnormal(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Some of the smallest numbers of the dtype."""
    finfo = torch.finfo(getattr(torch, dtype))
    return rng.integers(-3, 4, shape) * (finfo.eps * finfo.smallest_normal)


def offset(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """A contrast of a few roundoffs on an offset of 8192."""
    return 8192 * (1 + torch.finfo(getattr(torch, dtype)).eps * rng.integers(0, 4, shape))


def not_a_number(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Probabilities, and one NaN in the last channel, which no option excludes."""
    made = probabilities(rng, shape, dtype)
    last = made[rng.integers(shape[0]), -1:]
    last.flat[rng.integers(last.size)] = np.nan
    return made


def infinite(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Logits with one or two infinities."""
    made = np.array(moderate(rng, shape, dtype))
    made.flat[rng.integers(made.size, size=2)] = rng.choice([-np.inf, np.inf], 2)
    return made


def sparse(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Background, and a few voxels that differ from it."""
    return np.where(rng.random(shape) < 0.1, rng.random(shape), 0.0)


def steps(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """A dark and a bright half, each with a contrast of a few roundoffs of 8192."""
    bright = np.arange(shape[-1]) >= shape[-1] // 2
    made: Array = np.where(bright, 8192, 0) + 8192 * torch.finfo(getattr(torch, dtype)).eps * rng.integers(0, 4, shape)
    return made


NUMBERS: dict[str, Callable[[Rng, tuple[int, ...], str], Array]] = {
    f.__name__: f
    for f in (
        moderate,
        probabilities,
        unit,
        normal,
        wide,
        constant,
        ties,
        saturated,
        subnormal,
        offset,
        not_a_number,
        infinite,
    )
}

# The kinds for images and displacements; without the smallest numbers, as their squares underflow in every dtype.
IMAGES = {f.__name__: f for f in (moderate, probabilities, unit, normal, constant, sparse, offset, steps, not_a_number)}


def equal(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """The same probability everywhere in a channel, with all digits of the dtype."""
    return np.broadcast_to(rng.random((1, shape[1], *[1] * len(shape[2:]))), shape)


def alternating(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Zero and another number in turn along every axis: all differences between neighbours have the same size."""
    return np.asarray(equal(rng, shape, dtype) * (np.indices(shape[2:]).sum(0) % 2))


# The kinds of which all terms of a loss are equal. A plain sum of many of them rounds in the same direction each time.
EQUAL = {f.__name__: f for f in (alternating, equal)}

# The kinds that are probabilities, or close to 0.
WITHIN_UNIT = ("probabilities", "unit", "subnormal", "not_a_number")

# Kinds whose probabilities, or the squares of these, may underflow; in bfloat16, `offset` has a contrast of 64 or more.
VANISHING = ("wide", "saturated", "subnormal", "offset")


def any_labels(rng: Rng, shape: tuple[int, ...], classes: int) -> Array:
    """A random class in each voxel."""
    return rng.integers(0, classes, shape)


def background(rng: Rng, shape: tuple[int, ...], classes: int) -> Array:
    """Class 0 everywhere."""
    return np.zeros(shape, np.int64)


def one_voxel(rng: Rng, shape: tuple[int, ...], classes: int) -> Array:
    """Background, except for one voxel of the last class in the first item."""
    made = background(rng, shape, classes)
    made[0].flat[rng.integers(made[0].size)] = classes - 1
    return made


def absent(rng: Rng, shape: tuple[int, ...], classes: int) -> Array:
    """Random classes without the last one."""
    return rng.integers(0, max(classes - 1, 1), shape)


LABELS: dict[str, Callable[[Rng, tuple[int, ...], int], Array]] = {
    f.__name__: f for f in (any_labels, background, one_voxel, absent)
}

# Targets with all channels: exclusive channels, independent channels, and probabilities.
HARD, SOFT = ("one_hot", "independent"), ("soft_eighths", "soft")
TARGETS = HARD + SOFT


def target(rng: Rng, kind: str, labels: Array, classes: int, dtype: str) -> Array:
    """Make a target with all channels, one-hot from `labels` or random; soft targets are rounded to `dtype`."""
    shape = (labels.shape[0], classes, *labels.shape[2:])
    if kind == "one_hot":
        return np.asarray(labels == np.arange(classes).reshape(-1, *[1] * (labels.ndim - 2)), np.int64)
    if kind == "independent":
        return rng.integers(0, 2, shape)
    if kind == "soft_eighths":
        return rng.integers(0, 9, shape) / 8
    return rounded(rng.random(shape), dtype)


MASKS = ("ones", "hard", "zero_item", "soft")


def mask(rng: Rng, kind: str, shape: tuple[int, ...]) -> Array:
    """Make weights of voxels in [0, 1]."""
    if kind == "soft":
        return rng.integers(0, 5, shape) / 4
    made = np.ones(shape, np.int64) if kind == "ones" else rng.integers(0, 2, shape)
    if kind == "zero_item":
        made[0] = 0
    return made


def fitting(values: Array, dtypes: tuple[str, ...], fallback: str) -> list[str]:
    """Return the fallback, and those of `dtypes` that represent all numbers exactly."""
    made = [fallback]
    for name in dtypes:
        if name == fallback:
            continue
        tensor: Any = torch.from_numpy(np.array(values))
        back = tensor.to(getattr(torch, name)).to(tensor.dtype)
        if torch.equal(back, tensor):
            made.append(name)
    return made
