"""The base class of losses of a displacement field: options, errors, shapes, reduction, and their energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.loss import Loss, entry_point
from twinloss.fast.kernels.contract import Differences, EnergyKernels
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import as_tuples, check_tensors, checked_flag, numbers
from twinloss.fast.runtime.constants import accumulator, constant
from twinloss.fast.runtime.dispatch import Statistic
from twinloss.fast.runtime.options import one_of
from twinloss.fast.runtime.torch_operator import (
    Computation,
    InputsAndValue,
    Once,
    Operator,
    gradients,
    is_traced,
    one_node,
    operator,
    scaled,
)

# A function that returns the energy of fields (N, D, H, W) in the dtype of the weights, or that of each voxel. Its
# arguments are u, weights (C, differences), the number of voxels at each border that have no energy, and whether to
# return voxels.
PlainEnergy = Callable[[Tensor, Tensor, int, bool], Tensor]


class Grid(NamedTuple):
    """The properties of a field (C, *S) that the weights of its differences depend on, besides the stencil."""

    shape: tuple[int, ...]
    normalize: bool
    spacing: tuple[float, ...] | None

    def scale(self, c: int, axes: Sequence[int]) -> float:
        """Return the factor that makes a difference of component c along some axes a derivative.

        With `normalize`, lengths are measured in units of the extent of the grid.
        """
        sizes = self.shape[1:]
        h = self.spacing or (1.0,) * len(sizes)
        scale = 1 / math.prod([h[d] for d in axes])
        if self.normalize:
            extent = [n * size for n, size in zip(sizes, h, strict=True)]
            scale *= math.prod([extent[d] for d in axes]) / extent[c]
        return scale


def _checked_spacing(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    sizes = numbers(value, name)
    if sizes.ndim != 1:
        raise TypeError(f"{name} must be None or a list with the size of a voxel along each axis, got {value!r}")
    spacing: tuple[float, ...] = as_tuples(sizes)
    if not all(1e-50 <= size <= 1e50 for size in spacing):  # so that the weights are finite
        raise ValueError(f"{name} must be positive and finite along each axis, from 1e-50 to 1e50, got {spacing}")
    return spacing


class FieldLoss(Loss):
    """The mean over voxels and components of an energy, which is a sum of squared differences of the field.

    Attributes of a subclass:
        energy: the energy.
        weigh: given stencil and grid, the weight of each unscaled squared difference of each component.
        wanted: the name of the differences, for error messages.
        margins: by stencil, the number of voxels at each border that have no energy.
        leasts: by stencil, the minimum number of voxels along an axis.
    """

    energy: FieldEnergy
    weigh: Callable[[str, Grid], list[list[float]]]
    wanted: str
    margins: ClassVar[dict[str, int]]
    leasts: ClassVar[dict[str, int]]

    option_checks: ClassVar = {
        **Loss.option_checks,
        "stencil": one_of("compact", "wide"),
        "normalize": checked_flag,
        "spacing": _checked_spacing,
    }

    def __init__(self, reduction: str, stencil: str, normalize: bool, spacing: Sequence[float] | None) -> None:
        super().__init__(reduction=reduction)
        self.stencil = stencil
        self.normalize = normalize
        self.spacing: tuple[float, ...] | None = spacing  # type: ignore[assignment]  # its check makes a tuple

    @entry_point
    def forward(self, pred: Tensor) -> Tensor:
        """Return the loss; see the class for shapes and errors."""
        check_tensors(pred=pred)
        if not pred.is_floating_point():
            pred = pred.to(torch.get_default_dtype())
        statistic, kind = self.energy.statistic, dispatch.result_type(pred)
        taken = statistic.taken(pred)
        by_kernel = dispatch.choose(statistic, taken) == "kernel"
        if by_kernel and self.reduction != "none" and not is_traced((pred,)):
            kernels = statistic.kernels(taken)
            make = partial(self._computation, pred, kernels, kind)
            return one_node(self.remembered((kernels, pred.shape, kind), make), taken)
        self._check(pred)
        margin, voxelwise = self.margins[self.stencil], self.reduction == "none"
        # The kernels take numbers, so that the weights of their operator stay on the CPU.
        made, kind_of_sum = self.weigh(self.stencil, self._grid(pred)), accumulator(pred.device)
        weights = torch.tensor(
            made, dtype=torch.float64 if by_kernel else kind_of_sum, device="cpu" if by_kernel else pred.device
        )
        energies = self.energy.operator if by_kernel else self.energy.plain
        energy = energies(_fields(taken if by_kernel else dispatch.widened(taken)), weights, margin, voxelwise)
        if voxelwise:
            energy = energy.reshape(*pred.shape[:2], *[n - 2 * margin for n in pred.shape[2:]])
        return (energy / self._count(pred)).to(kind)

    def _computation(self, pred: Tensor, kernels: EnergyKernels, kind: torch.dtype) -> Computation:
        self._check(pred)
        weights = np.array(self.weigh(self.stencil, self._grid(pred)), dtype=np.float64)
        differences = Differences(weights, self.margins[self.stencil], pred.ndim - 2)
        return self.energy.reduced(kernels, differences, self._count(pred), kind)

    def _grid(self, pred: Tensor) -> Grid:
        return Grid(tuple(pred.shape[1:]), self.normalize, self.spacing)

    def _count(self, pred: Tensor) -> int:
        """Return the number of energies of voxels that the reduction divides by."""
        if self.reduction != "mean":
            return 1
        margin = self.margins[self.stencil]
        return pred.shape[0] * pred.shape[1] * math.prod([n - 2 * margin for n in pred.shape[2:]])

    def _check(self, pred: Tensor) -> None:
        shape, least = tuple(pred.shape), self.leasts[self.stencil]
        if not 3 <= pred.ndim <= 5 or pred.shape[0] * pred.shape[1] == 0:
            raise ValueError(f"pred must be (batch, components, *spatial) with 1 to 3 spatial axes, got shape {shape}")
        if min(shape[2:]) < least:
            raise ValueError(
                f"pred needs at least {least} voxels along each spatial axis for {self.wanted} with the "
                f"{self.stencil} stencil, got shape {shape}"
            )
        if self.normalize and shape[1] != len(shape) - 2:
            raise ValueError(
                f"normalize=True takes a component for each of the {len(shape) - 2} spatial axes, got shape {shape}"
            )
        if self.spacing is not None and len(self.spacing) != len(shape) - 2:
            raise ValueError(
                f"spacing has {len(self.spacing)} sizes for {len(shape) - 2} spatial axes (shape {shape}): give one "
                "for each"
            )


def _fields(pred: Tensor) -> Tensor:
    """Return the components of a field (B, C, *S) as separate fields, (B * C, D, H, W)."""
    return pred.reshape(-1, *[1] * (5 - pred.ndim), *pred.shape[2:])


class FieldEnergy:
    """An energy of fields in all its forms, including `torch.ops.twinloss.<name of the statistic>`.

    Attributes:
        statistic: the statistic, whose kernels compute the energy.
        plain: the plain form in torch operators, with derivatives of any order.
        operator: the kernels as a differentiable torch operator, for calls that are traced.
    """

    def __init__(self, statistic: Statistic[EnergyKernels], plain: PlainEnergy, rank: Callable[[int], int]) -> None:
        """Register the operators of an energy; `rank` returns the spatial rank for a number of weights."""
        self.statistic, self.plain, self.rank = statistic, plain, rank
        self.operator: Operator = operator(statistic.name)(self._energies)
        self.gradient_operator: Operator = operator(f"{statistic.name}_backward")(self._gradient)
        self.operator.fake(self._fake_energies)
        self.gradient_operator.fake(_fake_gradient)
        self.operator.differentiable(_save, self._backward)

    def reduced(
        self, kernels: EnergyKernels, differences: Differences, count: float, dtype: torch.dtype
    ) -> Computation:
        """Return the computation of the energy of a field (B, C, *S), divided by a count, by kernels.

        The gradient does not depend on a sum over the field. If it will be needed, it is computed in the same pass as
        the value, while the field is in the cache, and kept until backward. The gradient of a half waits for the slope
        of the value, because it might underflow without.
        """

        def value(tensors: tuple[Tensor], ahead: bool) -> tuple[Tensor, Once[Tensor] | None]:
            fields = _fields(tensors[0])
            if not ahead or fields.dtype in dispatch.HALVES:
                return kernels.value(fields, differences, count, dtype), None
            energy, gradient = kernels.value_and_gradient(fields, differences, count, dtype)
            return energy, Once(gradient)

        def gradient(upstream: Tensor, kept: Once[Tensor] | None, pred: Tensor) -> Tensor:
            made = None if kept is None else kept.take()
            if made is None:
                made = kernels.gradient(upstream, _fields(pred), differences, count)
            else:
                made = scaled(made, upstream)
            return made.view(pred.shape)

        def plain(pred: Tensor) -> InputsAndValue:
            weights = constant(tuple(map(tuple, differences.weights.tolist())), pred, accumulator(pred.device))
            fields = _fields(dispatch.widened(pred))
            return (pred,), self.plain(fields, weights, differences.margin, False) / count

        return Computation(value, gradient, plain)

    def _differences(self, weights: Tensor, margin: int) -> Differences:
        # Reading weights from another device would wait for it.
        constants: Any = weights.numpy() if weights.is_cpu else weights
        return Differences(constants, margin, self.rank(weights.shape[1]))

    def _energies(self, u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
        kernels, differences = self.statistic.kernels(u), self._differences(weights, margin)
        return kernels.energies(u, differences) if voxelwise else kernels.value(u, differences, 1, torch.float64)

    def _gradient(self, upstream: Tensor, u: Tensor, weights: Tensor, margin: int) -> Tensor:
        return self.statistic.kernels(u).gradient(upstream, u, self._differences(weights, margin), 1)

    def _fake_energies(self, u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
        if not voxelwise:
            return u.new_empty((), dtype=torch.float64)
        shape = Differences(np.empty((0, 0)), margin, self.rank(weights.shape[1])).interior(u.shape)
        return u.new_empty(shape, dtype=torch.promote_types(u.dtype, torch.float32))

    def _backward(self, ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        u, weights = ctx.saved_tensors
        made = gradients(
            upstream,
            lambda: (
                (u,),
                self.plain(dispatch.widened(u), weights.to(u.device, accumulator(u.device)), ctx.margin, ctx.voxelwise),
            ),
            lambda: (self.gradient_operator(upstream, u, weights, ctx.margin),),
        )
        return *made, None, None, None


def _fake_gradient(upstream: Tensor, u: Tensor, weights: Tensor, margin: int) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, weights, ctx.margin, ctx.voxelwise = inputs
    ctx.save_for_backward(u, weights)
