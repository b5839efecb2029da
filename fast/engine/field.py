"""What losses of a displacement field share: options, errors, shapes, reduction, and the way to their kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.loss import Loss, entry_point
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import check_tensors, checked_flag, numbers
from twinloss.fast.runtime.memory import empty, scalar
from twinloss.fast.runtime.options import one_of
from twinloss.fast.runtime.threads import for_each_chunk
from twinloss.fast.runtime.torch_operator import Operator, looked_into, operator, slopes_by_torch

# Voxels that a thread takes at a time, in whole planes.
_SLAB = 2**16

# The energy of fields (N, D, H, W), float64, or those of voxels: of u, weights (C, differences), the voxels at each
# border that have none, and whether voxel by voxel.
Energies = Callable[[Tensor, Tensor, int, bool], Tensor]


class Grid(NamedTuple):
    """What a difference of a field (C, *S) hangs on beside its stencil."""

    shape: tuple[int, ...]
    normalize: bool
    spacing: tuple[float, ...] | None

    def scale(self, c: int, axes: Sequence[int]) -> float:
        """What makes a difference of component c along some axes a derivative, in extents of the grid if asked for."""
        sizes = self.shape[1:]
        h = self.spacing or (1.0,) * len(sizes)
        scale = 1 / math.prod([h[d] for d in axes])
        if self.normalize:
            extent = [n * size for n, size in zip(sizes, h, strict=True)]
            scale *= math.prod([extent[d] for d in axes]) / extent[c]
        return scale


class FieldKernels(NamedTuple):
    """The forms of an energy, see `field_kernels`.

    Attributes:
        plain: in operators of torch, with derivatives of any order.
        operator: by kernels, with a gradient, for those who look into it.
        energy: of a field, weights (C, differences) and a margin the sum of the energies.
        slopes: its gradient, given twice the weights of each field, (N, differences), times the slope in the sum.
        both: energy and gradient, given what both of these are given.
    """

    plain: Energies
    operator: Energies
    energy: Callable[[Tensor, np.ndarray, int], float]
    slopes: Callable[[Tensor, np.ndarray, int], Tensor]
    both: Callable[[Tensor, np.ndarray, np.ndarray, int], tuple[float, Tensor]]


def _checked_spacing(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    sizes = numbers(value, name)
    if sizes.ndim != 1:
        raise TypeError(f"{name} must be None or a list with the size of a voxel along each axis, got {value!r}")
    spacing = tuple(sizes.tolist())
    if not all(0 < size < math.inf for size in spacing):
        raise ValueError(f"{name} must be positive and finite along each axis, got {spacing}")
    return spacing


class FieldLoss(Loss):
    """The mean over voxels and components of an energy, which is a sum of squared differences of the field.

    A subclass has `kernels`, `weigh`, what each unscaled squared difference of each component counts, by stencil and
    grid, `wanted`, what its differences are called, and by stencil `margins`, the voxels at each border that have no
    energy, and `leasts`, those that an axis must have.
    """

    kernels: FieldKernels
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
        self.spacing = spacing

    @entry_point
    def forward(self, pred: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        check_tensors(pred=pred)
        if not pred.is_floating_point():
            pred = pred.to(torch.get_default_dtype())
        self._check(pred)
        wide, kind = dispatch.widened(pred), dispatch.result_type(pred)
        reduction, margin = self.reduction, self.margins[self.stencil]
        by_kernel = dispatch.choose(wide) == "kernel"
        grid = Grid(tuple(pred.shape[1:]), self.normalize, self.spacing)
        inside = [n - 2 * margin for n in pred.shape[2:]]
        count = pred.shape[0] * pred.shape[1] * math.prod(inside) if reduction == "mean" else 1
        if by_kernel and reduction != "none" and not looked_into((pred,)):
            weighed = _weighed(self.weigh, self.stencil, grid)
            ahead = torch.is_grad_enabled() and wide.requires_grad
            loss: Tensor = _ReducedEnergy.apply(wide, self.kernels, weighed, margin, count, kind, ahead)
            return loss
        weights = torch.tensor(self.weigh(self.stencil, grid), dtype=torch.float64, device=pred.device)
        energies = self.kernels.operator if by_kernel else self.kernels.plain
        energy = energies(_fields(wide), weights, margin, reduction == "none")
        if reduction == "none":
            energy = energy.reshape(*pred.shape[:2], *inside)
        return (energy / count).to(kind)

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
    """Every component of a field (B, C, *S) for itself, (B * C, D, H, W)."""
    return pred.reshape(-1, *[1] * (5 - pred.ndim), *pred.shape[2:])


@lru_cache
def _weighed(weigh: Callable[[str, Grid], list[list[float]]], stencil: str, grid: Grid) -> np.ndarray:
    return np.array(weigh(stencil, grid), dtype=np.float64)


class _ReducedEnergy(torch.autograd.Function):
    """The energy of a field over a count, as one node: on a small field each costs more than its voxels.

    Its gradient hangs on no sum over the field: where one will be asked for, it is made `ahead`, of the slab that is in
    the caches for its energy, and kept until the backward.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        pred, kernels, weights, margin, count, dtype, ahead = arguments
        ctx.save_for_backward(pred)
        ctx.rest = kernels, weights, margin, count
        fields, ctx.gradient = _fields(pred), None
        if ahead:
            energy, ctx.gradient = kernels.both(fields, weights, _by_field(weights, 2 / count, fields), margin)
        else:
            energy = kernels.energy(fields, weights, margin)
        return scalar(energy / count, dtype, pred.device)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (pred,) = ctx.saved_tensors
        kernels, weights, margin, count = ctx.rest
        gradient, ctx.gradient = ctx.gradient, None  # which is the caller's from now on
        if dispatch.by_torch(upstream[0]):
            rest = torch.from_numpy(weights), margin, False
            made = slopes_by_torch(lambda: kernels.plain(_fields(pred), *rest) / count, (pred,), upstream[0])
            return *made, *[None] * 6
        factor = upstream[0].item()
        if gradient is None:
            fields = _fields(pred)
            gradient = kernels.slopes(fields, _by_field(weights, 2 * factor / count, fields), margin)
        elif factor != 1:
            gradient *= factor
        return gradient.view(pred.shape), *[None] * 6


def _by_field(weights: np.ndarray, factor: float, fields: Tensor) -> np.ndarray:
    """The weights of each component, (C, differences), times a factor, for each field."""
    return np.tile(weights * factor, (len(fields) // len(weights), 1))


# --- the kernels, and operators of torch made of them -----------------------------------------------------------------

# What is done to a slab of a field: with the number of the field and of its slab, its first plane and end.
_Work = Callable[[int, int, int, int], None]


class _Slabs:
    """Fields (N, D, H, W), some planes at a time."""

    def __init__(self, u: Tensor) -> None:
        self.u, self.field = u, _planes(u)
        self.fields, self.depth, height, self.width = u.shape
        self.real = self.field.dtype
        self.planes = max(_SLAB // (height * self.width), 1)
        self.count = -(-self.depth // self.planes)
        # What tells a kernel that there is nothing voxel by voxel.
        self.no_voxels = np.empty((self.fields, 0, 0, 0), self.real)

    def run(self, *works: _Work) -> None:
        """Do all that is to be done to a slab while the caches hold it."""

        def chunk(index: int) -> None:
            k, slab = divmod(index, self.count)
            for work in works:
                work(k, slab, slab * self.planes, min((slab + 1) * self.planes, self.depth))

        for_each_chunk(chunk, self.fields * self.count, self.u.numel())


def field_kernels(name: str, plain: Energies, axes: Callable[[int], int]) -> FieldKernels:
    """Make of a module of kernels the forms of an energy, and `torch.ops.twinloss.<name>`.

    Args:
        name: of the loss, and of the module of its kernels.
        plain: the plain form, which has derivatives of any order.
        axes: how many axes a field has, by the number of its weights.
    """

    def shape(u: Tensor, weights: Any, margin: int) -> tuple[int, ...]:
        """Of the energies of voxels, (N, D', H', W')."""
        rank = axes(weights.shape[1])
        return (u.shape[0], *(n - 2 * margin * (3 - d <= rank) for d, n in enumerate(u.shape[1:])))

    def of_energies(slabs: _Slabs, weights: np.ndarray, margin: int, out: np.ndarray) -> tuple[_Work, np.ndarray]:
        """What sums energies, and puts those of voxels into `out` if it has room for any; and the sums of slabs."""
        forward, totals = dispatch.kernels(name).forward, np.zeros((slabs.fields, slabs.count))
        border = (slabs.depth - shape(slabs.u, weights, margin)[1]) // 2
        by_component = weights.astype(slabs.real)

        def work(k: int, slab: int, start: int, stop: int) -> None:
            factors, inside = by_component[k % len(by_component)], (max(start, border), min(stop, slabs.depth - border))
            totals[k, slab] = forward(slabs.field[k], slabs.width, factors, margin, *inside, out[k])

        return work, totals

    def of_slopes(slabs: _Slabs, by_field: np.ndarray, margin: int, by_voxel: np.ndarray) -> tuple[_Work, Tensor]:
        """What writes the gradient of a slab; and the gradient."""
        backward, factors = dispatch.kernels(name).backward, by_field.astype(slabs.real)
        gradient = empty(slabs.u.shape, slabs.u.dtype)
        out = _planes(gradient)

        def work(k: int, slab: int, start: int, stop: int) -> None:
            backward(slabs.field[k], slabs.width, factors[k], margin, by_voxel[k], start, stop, out[k])

        return work, gradient

    def energy(u: Tensor, weights: np.ndarray, margin: int) -> float:
        slabs = _Slabs(u)
        work, totals = of_energies(slabs, weights, margin, slabs.no_voxels)
        slabs.run(work)
        return float(totals.sum())

    def slopes(u: Tensor, by_field: np.ndarray, margin: int, by_voxel: np.ndarray | None = None) -> Tensor:
        slabs = _Slabs(u)
        work, gradient = of_slopes(slabs, by_field, margin, slabs.no_voxels if by_voxel is None else by_voxel)
        slabs.run(work)
        return gradient

    def both(u: Tensor, weights: np.ndarray, by_field: np.ndarray, margin: int) -> tuple[float, Tensor]:
        slabs, together = _Slabs(u), dispatch.kernels(name).both
        if together is None or margin > 0 or axes(weights.shape[1]) < 3:
            add, totals = of_energies(slabs, weights, margin, slabs.no_voxels)
            write, gradient = of_slopes(slabs, by_field, margin, slabs.no_voxels)
            slabs.run(add, write)
            return float(totals.sum()), gradient
        totals, gradient = np.zeros((slabs.fields, slabs.count)), empty(u.shape, u.dtype)
        by_component, factors, out = weights.astype(slabs.real), by_field.astype(slabs.real), _planes(gradient)

        def work(k: int, slab: int, start: int, stop: int) -> None:
            totals[k, slab] = together(
                slabs.field[k], slabs.width, by_component[k % len(by_component)], factors[k], start, stop, out[k]
            )

        slabs.run(work)
        return float(totals.sum()), gradient

    @operator(name)
    def energies(u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
        if not voxelwise:
            total = energy(u, weights.numpy(), margin)
            return scalar(total, torch.float64, u.device)
        made, slabs = empty(shape(u, weights, margin), u.dtype), _Slabs(u)
        work, _ = of_energies(slabs, weights.numpy(), margin, made.numpy())
        slabs.run(work)
        return made

    @operator(f"{name}_backward")
    def energies_backward(upstream: Tensor, u: Tensor, weights: Tensor, margin: int) -> Tensor:
        by_field = 2 * weights.repeat(u.shape[0] // len(weights), 1)
        if upstream.ndim == 0:
            return slopes(u, (by_field * upstream).numpy(), margin)
        return slopes(u, by_field.numpy(), margin, upstream.contiguous().numpy())

    @energies.fake
    def _(u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
        return u.new_empty(shape(u, weights, margin)) if voxelwise else u.new_empty((), dtype=torch.float64)

    @energies_backward.fake
    def _(upstream: Tensor, u: Tensor, weights: Tensor, margin: int) -> Tensor:
        return torch.empty(u.shape, dtype=u.dtype, device=u.device)

    _give_gradient(energies, energies_backward, plain)
    return FieldKernels(plain, energies, energy, slopes, both)


def _give_gradient(energies: Operator, slopes: Operator, plain: Energies) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, weights, ctx.margin, ctx.voxelwise = inputs
        ctx.save_for_backward(u, weights)

    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        u, weights = ctx.saved_tensors
        if dispatch.by_torch(upstream):
            (gradient,) = slopes_by_torch(lambda: plain(u, weights, ctx.margin, ctx.voxelwise), (u,), upstream)
        else:
            gradient = slopes(upstream, u, weights, ctx.margin)
        return gradient, None, None, None

    energies.differentiable(keep, backward)


def _planes(fields: Tensor) -> Any:
    """Fields as an array (N, D, H * W), rows one after the other."""
    return fields.contiguous().flatten(2).numpy()
