"""What losses of a displacement field share: options, errors, shapes, reduction, and the way to their kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from twinloss.fast import backend
from twinloss.fast.arguments import check_tensors, checked_flag, is_one_of
from twinloss.fast.memory import empty
from twinloss.fast.operators import Operator, operator
from twinloss.fast.segmentation import checked_reduction
from twinloss.fast.threads import for_each_chunk

# Planes that a thread takes at a time.
_SLAB = 8

# The energy of fields (N, D, H, W), float64, or those of voxels: of u, weights (C, differences), the voxels at each
# border that have none, and whether voxel by voxel.
Energies = Callable[[Tensor, Tensor, int, bool], Tensor]


class FieldLoss(_Loss):
    """The mean over voxels and components of an energy, which is a sum of squared differences of the field.

    A subclass has `plain` and `kernel`, the two forms of its energies, `wanted`, what its differences are called, and
    by stencil `margins`, the voxels at each border that have no energy, and `leasts`, those that an axis must have.
    """

    plain: Energies
    kernel: Energies
    wanted: str
    margins: ClassVar[dict[str, int]]
    leasts: ClassVar[dict[str, int]]

    def __init__(self, reduction: str, stencil: str, normalize: bool, spacing: Sequence[float] | None) -> None:
        super().__init__(reduction=checked_reduction(reduction))
        if not is_one_of(stencil, ("compact", "wide")):
            raise ValueError(f'stencil must be "compact" or "wide", got {stencil!r}')
        self.stencil = stencil
        self.normalize = checked_flag(normalize, "normalize")
        self.spacing = None if spacing is None else tuple(float(size) for size in spacing)
        if self.spacing is not None and not all(0 < size < math.inf for size in self.spacing):
            raise ValueError(f"spacing must be positive and finite along each axis, got {self.spacing}")

    def forward(self, pred: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        self._check(pred)
        wide = pred.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred
        reduction, margin = checked_reduction(self.reduction), self.margins[self.stencil]
        weights = torch.tensor(self._weights(pred.shape), dtype=torch.float64, device=pred.device)
        flat = wide.reshape(-1, *[1] * (5 - pred.ndim), *pred.shape[2:])
        energies = self.kernel if backend.choose(flat) == "kernel" else self.plain
        energy = energies(flat, weights, margin, reduction == "none")
        inside = [n - 2 * margin for n in pred.shape[2:]]
        if reduction == "none":
            energy = energy.reshape(*pred.shape[:2], *inside)
        elif reduction == "mean":
            energy = energy / (pred.shape[0] * pred.shape[1] * math.prod(inside))
        return energy.to(pred.dtype)

    def _weights(self, shape: Sequence[int]) -> list[list[float]]:
        """What each unscaled squared difference of each component counts: see the kernel."""
        raise NotImplementedError

    def _scale(self, shape: Sequence[int], c: int, axes: Sequence[int]) -> float:
        """What makes a difference of component c along some axes a derivative, in extents of the grid if asked for."""
        sizes = shape[2:]
        h = self.spacing or (1.0,) * len(sizes)
        scale = 1 / math.prod([h[d] for d in axes])
        if self.normalize:
            extent = [n * size for n, size in zip(sizes, h, strict=True)]
            scale *= math.prod([extent[d] for d in axes]) / extent[c]
        return scale

    def _check(self, pred: Tensor) -> None:
        check_tensors(pred=pred)
        shape, least = tuple(pred.shape), self.leasts[self.stencil]
        if not pred.is_floating_point():
            raise TypeError(f"pred must be a floating-point field of displacements, got {pred.dtype}")
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


# --- the kernels as torch operators -----------------------------------------------------------------------------------


def field_operator(name: str, plain: Energies, axes: Callable[[int], int]) -> Operator:
    """Make the kernels of a module `torch.ops.twinloss.<name>`, an `Energies`, with its gradient.

    Args:
        name: of the loss, and of the module of its kernels.
        plain: the plain form, which has derivatives of any order.
        axes: how many axes a field has, by the number of its weights.
    """

    @cache
    def kernels() -> Any:
        return import_module(f"twinloss.fast.kernels.{name}")

    def shape(u: Tensor, weights: Tensor, margin: int) -> tuple[int, ...]:
        """Of the energies of voxels, (N, D', H', W')."""
        rank = axes(weights.shape[1])
        return (u.shape[0], *(n - 2 * margin * (3 - d <= rank) for d, n in enumerate(u.shape[1:])))

    @operator(name)
    def energies(u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
        forward = kernels().forward
        fields, depth, height, width = shape(u, weights, margin)
        before = (u.shape[1] - depth) // 2
        field, by_component = _planes(u), weights.to(u.dtype).numpy()
        made = empty((fields, depth, height, width if voxelwise else 0), u.dtype)
        slabs = -(-depth // _SLAB)
        energy, totals = made.numpy(), np.zeros((fields, slabs))

        def work(index: int) -> None:
            k, slab = divmod(index, slabs)
            start, stop = before + slab * _SLAB, before + min((slab + 1) * _SLAB, depth)
            factors = by_component[k % len(by_component)]
            totals[k, slab] = forward(field[k], u.shape[3], factors, margin, start, stop, energy[k])

        for_each_chunk(work, fields * slabs, u.numel())
        return made if voxelwise else torch.scalar_tensor(totals.sum(), dtype=torch.float64, device=u.device)

    @operator(f"{name}_backward")
    def slopes(upstream: Tensor, u: Tensor, weights: Tensor, margin: int) -> Tensor:
        backward = kernels().backward
        fields, depth, _, width = u.shape
        by_field = 2 * weights.repeat(fields // len(weights), 1)
        if upstream.ndim == 0:
            by_field = by_field * upstream
            by_voxel = np.empty((fields, 0, 0, 0), u.numpy().dtype)
        else:
            by_voxel = upstream.contiguous().numpy()
        gradient = empty(u.shape, u.dtype)
        field, factors, out = _planes(u), by_field.to(u.dtype).numpy(), _planes(gradient)
        slabs = -(-depth // _SLAB)

        def work(index: int) -> None:
            k, slab = divmod(index, slabs)
            start, stop = slab * _SLAB, min((slab + 1) * _SLAB, depth)
            backward(field[k], width, factors[k], margin, by_voxel[k], start, stop, out[k])

        for_each_chunk(work, fields * slabs, u.numel())
        return gradient

    @energies.fake
    def _(u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
        return u.new_empty(shape(u, weights, margin)) if voxelwise else u.new_empty((), dtype=torch.float64)

    @slopes.fake
    def _(upstream: Tensor, u: Tensor, weights: Tensor, margin: int) -> Tensor:
        return torch.empty(u.shape, dtype=u.dtype, device=u.device)

    _give_gradient(energies, slopes, plain)
    return energies


def _give_gradient(energies: Operator, slopes: Operator, plain: Energies) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, weights, ctx.margin, ctx.voxelwise = inputs
        ctx.save_for_backward(u, weights)

    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        u, weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradient is asked for: plain torch has one
            energy = plain(u, weights, ctx.margin, ctx.voxelwise)
            gradient = torch.autograd.grad(energy, u, upstream, create_graph=True)[0]
        else:
            gradient = slopes(upstream, u, weights, ctx.margin)
        return gradient, None, None, None

    energies.differentiable(keep, backward)


def _planes(fields: Tensor) -> Any:
    """Fields as an array (N, D, H * W), rows one after the other."""
    return fields.contiguous().flatten(2).numpy()
