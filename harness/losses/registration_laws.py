"""Laws of registration losses, whose arguments are a displacement field (B, C, *S) or two images (B, C, *S)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twinloss.harness.drawing.input_kinds import rounded
from twinloss.harness.judging.answers import ask_fast, fast_options
from twinloss.harness.judging.law_check import both
from twinloss.harness.losses.general_laws import BOUNDED, FLIPS, MEAN, NO_ORDER, NONE_MEAN, NONE_SUM, needing, spatial
from twinloss.harness.model.operand import Array, widened
from twinloss.harness.model.twin import Case, Claim, Law, Twin


def _grid(case: Case) -> list[Array]:
    """Return the coordinates of the voxels, each of shape S."""
    return list(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in spatial(case)), indexing="ij"))


def _field(case: Case, component: Array) -> Case:
    """Return the case with `component`, of shape S, as every component of the field."""
    return case.contiguous().with_values(pred=np.broadcast_to(component, case.input.values.shape).copy())


# --- fields: bending energy, diffusion -------------------------------------------------------------------------------


def _affine(case: Case) -> Array:
    return np.asarray(0.5 + np.sum([(k + 1) * x for k, x in enumerate(_grid(case))], axis=0))


def _quadratic(case: Case) -> Array:
    axes = _grid(case)
    return np.asarray(np.sum([x * y for i, x in enumerate(axes) for y in axes[: i + 1]], axis=0))


def _holds(field: Callable[[Case], Array]) -> Callable[[Case], bool]:
    """Return a predicate: whether the dtype under test represents a field and its square exactly."""

    def applies(case: Case) -> bool:
        exact = field(case)
        return bool((exact**2).max() < 6e4 and (rounded(exact, case.dtype) == exact).all())

    return applies


def _affine_costs_nothing(twin: Twin, case: Case) -> Iterator[Claim]:
    affine = _field(case, _affine(case))
    answer = ask_fast(twin, affine)
    yield Claim("value", answer.value, np.zeros_like(answer.value), affine, exact=True)
    yield Claim("gradient", answer.gradient, np.zeros_like(answer.gradient), affine, exact=True)


def _quadratic_is_known(twin: Twin, case: Case) -> Iterator[Claim]:
    """The field is the sum of all x_d^2 and x_d x_e. With unit voxels, pure derivatives are 2 and mixed ones 1."""
    rank = len(spatial(case))
    quadratic = _field(case, _quadratic(case))
    h = case.options.get("spacing") or [1.0] * rank
    pure = sum((2 / h[d] ** 2) ** 2 for d in range(rank))
    mixed = sum((1 / (h[d] * h[e])) ** 2 for d in range(rank) for e in range(d))
    value = ask_fast(twin, quadratic).value
    yield Claim("value", value, np.full_like(value, pure + 2 * mixed), quadratic)


def _checkerboard(twin: Twin, case: Case) -> Iterator[Claim]:
    """The signs alternate: second differences have size 4, mixed ones cancel, and a wide stencil gives 0."""
    board = _field(case, (-1.0) ** np.sum(_grid(case), axis=0))
    value = ask_fast(twin, board).value
    h = case.options.get("spacing") or [1.0] * len(spatial(case))
    known = 0.0 if case.options.get("stencil") == "wide" else sum((4 / d**2) ** 2 for d in h)
    yield Claim("value", value, np.full_like(value, known), board)


def _translation_adds_nothing(twin: Twin, case: Case) -> Iterator[Claim]:
    here, there = ask_fast(twin, case), ask_fast(twin, case.with_values(pred=case.input.values + 1))
    yield Claim("value", there.value, here.value, case, exact=True)
    yield Claim("gradient", there.gradient, here.gradient, case, exact=True)


def _few_digits(case: Case) -> bool:
    """Return whether all dtypes represent the numbers, and the numbers plus 1, exactly."""
    x = case.input.values
    return bool((np.isfinite(x) & (np.abs(x) <= 8) & (4 * x == np.round(4 * x))).all())


def _slopes_are_known(twin: Twin, case: Case) -> Iterator[Claim]:
    """The field is the sum of (d + 1) x_d, so its slopes are d + 1."""
    affine = _field(case, _affine(case))
    h = case.options.get("spacing") or [1.0] * len(spatial(case))
    value = ask_fast(twin, affine).value
    known = sum(((d + 1) / size) ** 2 for d, size in enumerate(h))
    yield Claim("value", value, np.full_like(value, known), affine)


def _checkerboard_of_slopes(twin: Twin, case: Case) -> Iterator[Claim]:
    """The signs alternate: neighbours differ by 2, and wide differences are 0."""
    board = _field(case, (-1.0) ** np.sum(_grid(case), axis=0))
    value = ask_fast(twin, board).value
    h = case.options.get("spacing") or [1.0] * len(spatial(case))
    known = 0.0 if case.options.get("stencil") == "wide" else sum((2 / d) ** 2 for d in h)
    yield Claim("value", value, np.full_like(value, known), board)


def _doubling_quadruples(twin: Twin, case: Case) -> Iterator[Claim]:
    doubled = case.with_values(pred=2 * case.input.values)
    here, there = ask_fast(twin, case), ask_fast(twin, doubled)
    yield Claim("value", there.value, 4 * here.value.astype(np.float64), doubled)
    yield Claim("gradient", there.gradient, 2 * here.gradient.astype(np.float64), doubled)


def _ordinary(case: Case) -> bool:
    """Return whether all dtypes represent the numbers times 2 and 4, and their squares, in their normal range."""
    size = np.abs(case.input.values)
    return bool((size <= 16).all() and ((size == 0) | (size >= 2.0**-6)).all())


# --- two images ------------------------------------------------------------------------------------------------------


def _swapped(case: Case) -> Case:
    """Return the case with its images exchanged, both in the dtype under test."""
    (first, a), (second, b) = case.operands.items()
    return replace(case.contiguous(), operands={first: replace(b, dtype=a.dtype), second: a}).contiguous()


def _same_type(case: Case) -> bool:
    return len({operand.dtype for operand in case.operands.values()}) == 1


def _symmetric(twin: Twin, case: Case) -> Iterator[Claim]:
    """Exchanging the images does not change the loss, and exchanges the gradients."""
    swapped = _swapped(case)
    pred, target = (operand.tensor().requires_grad_() for operand in swapped.operands.values())
    value = twin.fast(**fast_options(swapped.options))(pred, target)
    weights = torch.tensor(swapped.weights(tuple(value.shape)), dtype=value.dtype, device=value.device)
    (gradient,) = torch.autograd.grad(value, target, weights)
    here = ask_fast(twin, case)
    yield Claim("value", widened(value), here.value, case)
    yield Claim("gradient", widened(gradient), here.gradient, case)


def _matches_its_affine_copy(twin: Twin, case: Case) -> Iterator[Claim]:
    """An image matches 2 times itself plus 1, in windows that lie within the image and without smoothing terms."""
    first, second = case.operands
    size = int(case.options.get("kernel_size", 3))
    # Neighbours differ, and the values have few digits.
    image = np.sum([(k + 1) * x for k, x in enumerate(_grid(case))], axis=0) % 4
    image = np.broadcast_to(image, case.input.values.shape).copy()
    match = case.contiguous().with_values(**{first: image, second: 2 * image + 1})
    match = match.with_operand(second, replace(match.operands[second], dtype=case.dtype))
    interior: tuple[Any, ...] = (..., *[slice(size // 2, n - size // 2) for n in spatial(case)])
    inside = ask_fast(twin, match).value[interior]
    yield Claim("value", inside, np.full_like(inside, -1), match)


def _room_for_a_window(case: Case) -> bool:
    size = int(case.options.get("kernel_size", 3))
    return 1 < size <= min(spatial(case))


def _independent(twin: Twin, case: Case) -> Iterator[Claim]:
    """Each intensity of one image meets each of the other: P_ab = P_a P_b, so only the smoothing terms remain."""
    first, second = np.meshgrid(np.arange(9) / 8, np.arange(5) / 4, indexing="ij")
    product = replace(
        case, operands={
            name: replace(operand, values=numbers[np.newaxis, np.newaxis].copy(), dtype=case.dtype, layout="contiguous")
            for (name, operand), numbers in zip(case.operands.items(), (first, second), strict=True)
        },
    )  # fmt: skip
    value = ask_fast(twin, product).value
    yield Claim("value", value, np.full_like(value, -math.log1p(1e-7)), product, scale=1.0)


def _range_is_ignored(twin: Twin, case: Case) -> Iterator[Claim]:
    """The range is taken from each image, so that brightness and contrast do not matter."""
    brighter = case.contiguous().with_values(**{name: 2 * o.values + 1 for name, o in case.operands.items()})
    yield from both(twin, case, brighter, lambda g: 2 * g)


def _exactly_brighter(case: Case) -> bool:
    """Return whether 2 times the images plus 1 is exact in all dtypes, and both images have one dtype."""
    numbers = [o.values for o in case.operands.values()]
    quarters = all(bool((np.isfinite(x) & (np.abs(x) <= 8) & (4 * x == np.round(4 * x))).all()) for x in numbers)
    return quarters and _same_type(case)


# --- the wrapper -----------------------------------------------------------------------------------------------------


def _scale_zero_is_the_loss(twin: Twin, case: Case) -> Iterator[Claim]:
    yield from both(twin, case, case.having(scales=None))


def _a_point_becomes_the_kernel(twin: Twin, case: Case) -> Iterator[Claim]:
    """A smoothed point is the kernel, so its squared difference to an empty image is the square of the kernel."""
    sigma, rank = 1.5, len(spatial(case))
    point = np.zeros((1, 1, *[21] * rank))
    point[(0, 0, *[10] * rank)] = 1
    j = np.arange(-10, 11)
    if case.options.get("kernel") == "cauchy":
        taps = np.where(abs(j) <= int(5 * sigma), 1 / ((j / sigma) ** 2 + 1), 0)
        taps /= taps.sum()
    else:
        taps = np.where(abs(j) <= int(3 * sigma + 0.5), np.exp(-(j**2) / (2 * sigma**2)), 0)
        taps /= sigma * math.sqrt(2 * math.pi)
    numbers = dict(zip(case.operands, (point, np.zeros_like(point)), strict=True))
    operands = {
        k: replace(o, values=numbers[k], dtype=case.dtype, layout="contiguous") for k, o in case.operands.items()
    }
    smoothed = replace(case, operands=operands).having(scales=[sigma])
    want = np.sum(taps**2) ** rank / point.size
    yield Claim("value", ask_fast(twin, smoothed).value, np.asarray(want), smoothed)


BENDING_ENERGY = (
    BOUNDED, MEAN, NONE_MEAN, NONE_SUM, needing(FLIPS, reduction="mean"),
    Law("an affine field has no energy", _affine_costs_nothing, {"normalize": False, "spacing": None},
        _holds(_affine)),
    Law("a quadratic field has the known energy", _quadratic_is_known, {"normalize": False, "reduction": "mean"},
        _holds(_quadratic)),
    Law("a checkerboard has a cost, except with wide stencils", _checkerboard,
        {"normalize": False, "reduction": "mean"}),
    Law("doubling the field quadruples the cost", _doubling_quadruples, {}, _ordinary),
)  # fmt: skip
DIFFUSION = (
    BOUNDED, MEAN, NONE_MEAN, NONE_SUM, needing(FLIPS, reduction="mean"),
    Law("a translation changes nothing", _translation_adds_nothing, {}, _few_digits),
    Law("a linear field has the known cost", _slopes_are_known, {"normalize": False, "reduction": "none"},
        _holds(_affine)),
    Law("a checkerboard has a cost, except with wide stencils", _checkerboard_of_slopes,
        {"normalize": False, "reduction": "mean"}),
    Law("doubling the field quadruples the cost", _doubling_quadruples, {}, _ordinary),
)  # fmt: skip
LNCC = (
    BOUNDED, MEAN, NONE_MEAN, NONE_SUM, needing(FLIPS, reduction="mean"),
    Law("the two images can be exchanged", _symmetric, {}, _same_type),
    Law("an image fully matches 2 times itself plus 1", _matches_its_affine_copy,
        {"smooth_nr": 0.0, "smooth_dr": 0.0, "reduction": "none"}, _room_for_a_window),
)  # fmt: skip
GAUSSIAN = {"kernel_type": "gaussian"}
MUTUAL_INFORMATION = (
    BOUNDED, MEAN, NONE_MEAN, NONE_SUM, NO_ORDER, FLIPS,
    Law("the two images can be exchanged", _symmetric, GAUSSIAN, _same_type),
    Law("independent images have no mutual information", _independent,
        {**GAUSSIAN, "smooth_nr": 1e-7, "smooth_dr": 1e-7}),
    Law("brightness and contrast do not matter", _range_is_ignored, {"kernel_type": "b-spline"}, _exactly_brighter),
)  # fmt: skip
MULTI_SCALE = (
    BOUNDED, needing(FLIPS, reduction="mean"),
    Law("scale 0 gives the wrapped loss itself", _scale_zero_is_the_loss, {"scales": [0], "reduction": "mean"}),
    Law("a smoothed point is the kernel", _a_point_becomes_the_kernel,
        {"loss": "squares", "normalize_kernel": False, "reduction": "mean"}),
)  # fmt: skip
