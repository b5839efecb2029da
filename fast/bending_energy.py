"""Bending energy of a displacement field; the twin of `reference/bending_energy.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from twinloss.fast import backend
from twinloss.fast.arguments import check_tensors, checked_flag, is_one_of
from twinloss.fast.operators import operator
from twinloss.fast.segmentation import checked_reduction
from twinloss.fast.threads import for_each_chunk

# Planes that a thread takes at a time.
_SLAB = 8


class BendingEnergyLoss(_Loss):
    r"""Mean bending energy of a field: the squares of its second derivatives.

    .. math::
        E = \sum_d \left(\frac{\partial^2 u}{\partial x_d^2}\right)^2
            + 2 \sum_{d<e} \left(\frac{\partial^2 u}{\partial x_d \partial x_e}\right)^2

    for each component u and each voxel off the border. An affine field costs nothing.

    Args:
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the energy of each interior voxel.
        stencil: ``"compact"`` takes u₊ - 2u + u₋, and a quarter of the difference of corners; it needs 3 voxels along
            each axis. ``"wide"`` takes central first differences twice, as older releases of MONAI do, and needs 5; it
            does not see a field that alternates from voxel to voxel, so that a folded field may cost nothing.
        normalize: measure positions and displacements in extents of the grid, n_d h_d along axis d, so that the energy
            does not hang on how finely a field is sampled; the field needs a component for each axis.
        spacing: size of a voxel along each axis in mm, for derivatives in physical units.

    Shape:
        pred (B, C, *S) with 1 to 3 spatial axes; with ``"none"`` the result is (B, C, *S'), S' without the border.

    Raises:
        TypeError: if the field holds no floating-point numbers.
        ValueError: for an unknown reduction or stencil, a spacing that is not positive or does not fit the axes, a
            field of another rank, with too few voxels, or (``normalize``) components.

    Reference:
        Rueckert, D. et al. (1999) Nonrigid registration using free-form deformations: application to breast MR images,
        IEEE Trans. Med. Imaging 18(8), eq. 3.

    Example:
        >>> import torch
        >>> BendingEnergyLoss()(torch.arange(5.0).square().reshape(1, 1, 5))
        tensor(4.)
    """

    def __init__(
        self,
        reduction: str = "mean",
        *,
        stencil: str = "compact",
        normalize: bool = False,
        spacing: Sequence[float] | None = None,
    ) -> None:
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
        step = 1 if self.stencil == "compact" else 2
        self._check(pred, 2 * step + 1)
        wide = pred.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred
        weights = self._weights(pred)
        voxelwise = checked_reduction(self.reduction) == "none"
        flat = wide.reshape(-1, *[1] * (5 - pred.ndim), *pred.shape[2:])
        if backend.choose(flat) == "kernel":
            energy = _bending_energy(flat, weights, step, voxelwise)
        else:
            energy = _plain(flat, weights, step, voxelwise)
        interior = [n - 2 * step for n in pred.shape[2:]]
        if voxelwise:
            return energy.reshape(*pred.shape[:2], *interior).to(pred.dtype)
        total = energy.sum()
        count = pred.shape[0] * pred.shape[1] * math.prod(interior)
        return (total / count if self.reduction == "mean" else total).to(pred.dtype)

    def _weights(self, pred: Tensor) -> Tensor:
        """What each unscaled squared difference of each component counts, (C, differences) float64: see the kernel."""
        sizes = pred.shape[2:]
        h = self.spacing or (1.0,) * len(sizes)
        extent = [n * size for n, size in zip(sizes, h, strict=True)]
        pure = 1.0 if self.stencil == "compact" else 0.25
        table = []
        for c in range(pred.shape[1]):
            row = []
            for d in reversed(range(len(sizes))):  # the last axis is x
                for e in (d, *reversed(range(d + 1, len(sizes)))):
                    scale = (pure if d == e else 0.25) / (h[d] * h[e])
                    if self.normalize:
                        scale *= extent[d] * extent[e] / extent[c]
                    row.append(scale**2 * (1 if d == e else 2))
            table.append(row)
        return torch.tensor(table, dtype=torch.float64, device=pred.device)

    def _check(self, pred: Tensor, least: int) -> None:
        check_tensors(pred=pred)
        shape = tuple(pred.shape)
        if not pred.is_floating_point():
            raise TypeError(f"pred must be a floating-point field of displacements, got {pred.dtype}")
        if not 3 <= pred.ndim <= 5 or pred.shape[0] * pred.shape[1] == 0:
            raise ValueError(f"pred must be (batch, components, *spatial) with 1 to 3 spatial axes, got shape {shape}")
        if min(shape[2:]) < least:
            raise ValueError(
                f"pred needs at least {least} voxels along each spatial axis for second differences with the "
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


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(u: Tensor, weights: Tensor, step: int, voxelwise: bool) -> Tensor:
    """As the operator below."""
    axes = _axes(weights)
    margin = [step if 3 - d <= axes else 0 for d in range(3)]

    def moved(**offset: int) -> Tensor:
        """The interior's neighbours at an offset."""
        at = u
        for axis, (m, name) in enumerate(zip(margin, "zyx", strict=True), start=1):
            at = at.narrow(axis, m + offset.get(name, 0), u.shape[axis] - 2 * m)
        return at

    here, differences = moved(), []
    for d in "xyz"[:axes]:
        differences.append((moved(**{d: step}) - here) + (moved(**{d: -step}) - here))
        differences += [
            (moved(**{d: 1, e: 1}) - moved(**{d: 1, e: -1})) - (moved(**{d: -1, e: 1}) - moved(**{d: -1, e: -1}))
            for e in "xyz"[: "xyz".index(d)]
        ]
    by_field = weights.to(u.dtype).repeat(u.shape[0] // weights.shape[0], 1)
    energy = sum(by_field[:, k, None, None, None] * difference**2 for k, difference in enumerate(differences))
    return energy if voxelwise else energy.sum((1, 2, 3), dtype=torch.float64)


# --- the kernels as torch operators -----------------------------------------------------------------------------------


@operator("bending_energy")
def _bending_energy(u: Tensor, weights: Tensor, step: int, voxelwise: bool) -> Tensor:
    """Of fields (N, D, H, W) the energies (N,) in float64, or those of their voxels; weights (C, differences)."""
    from twinloss.fast.kernels import bending_energy as kernel

    fields, depth, height, width = _interior(u, weights, step)
    before = (u.shape[1] - depth) // 2
    field, by_component = _planes(u), weights.to(u.dtype).numpy()
    made = torch.empty((fields, depth, height, width if voxelwise else 0), dtype=u.dtype)
    slabs = -(-depth // _SLAB)
    energy, totals = made.numpy(), np.zeros((fields, slabs))

    def work(index: int) -> None:
        k, slab = divmod(index, slabs)
        start, stop = before + slab * _SLAB, before + min((slab + 1) * _SLAB, depth)
        factors = by_component[k % len(by_component)]
        totals[k, slab] = kernel.forward(field[k], u.shape[3], factors, step, start, stop, energy[k])

    for_each_chunk(work, fields * slabs)
    return made if voxelwise else torch.from_numpy(totals.sum(1))


@operator("bending_energy_backward")
def _bending_energy_backward(upstream: Tensor, u: Tensor, weights: Tensor, step: int) -> Tensor:
    from twinloss.fast.kernels import bending_energy as kernel

    fields, depth, _, width = u.shape
    by_field = 2 * weights.repeat(fields // len(weights), 1)
    if upstream.ndim == 1:
        by_field = by_field * upstream[:, None]
        by_voxel = np.empty((fields, 0, 0, 0), u.numpy().dtype)
    else:
        by_voxel = upstream.contiguous().numpy()
    gradient = torch.empty(u.shape, dtype=u.dtype)
    field, factors, out = _planes(u), by_field.to(u.dtype).numpy(), _planes(gradient)
    slabs = -(-depth // _SLAB)

    def work(index: int) -> None:
        k, slab = divmod(index, slabs)
        start, stop = slab * _SLAB, min((slab + 1) * _SLAB, depth)
        kernel.backward(field[k], width, factors[k], step, by_voxel[k], start, stop, out[k])

    for_each_chunk(work, fields * slabs)
    return gradient


def _planes(fields: Tensor) -> Any:
    """Fields as an array (N, D, H * W)."""
    return fields.contiguous().flatten(2).numpy()


def _axes(weights: Tensor) -> int:
    """How many axes a field with these weights has."""
    differences = weights.shape[1]  # may be symbolic, so that no table can hold it
    return 1 if differences == 1 else 2 if differences == 3 else 3


def _interior(u: Tensor, weights: Tensor, step: int) -> tuple[int, ...]:
    """The shape of the energies of interior voxels, (N, D', H', W')."""
    axes = _axes(weights)
    return (u.shape[0], *(n - 2 * step * (3 - d <= axes) for d, n in enumerate(u.shape[1:])))


@_bending_energy.fake
def _(u: Tensor, weights: Tensor, step: int, voxelwise: bool) -> Tensor:
    return u.new_empty(_interior(u, weights, step)) if voxelwise else u.new_empty(u.shape[:1], dtype=torch.float64)


@_bending_energy_backward.fake
def _(upstream: Tensor, u: Tensor, weights: Tensor, step: int) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, weights, ctx.step, ctx.voxelwise = inputs
    ctx.save_for_backward(u, weights)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    u, weights = ctx.saved_tensors
    if torch.is_grad_enabled():  # a graph of the gradient is asked for: plain torch has one
        energy = _plain(u, weights, ctx.step, ctx.voxelwise)
        gradient = torch.autograd.grad(energy, u, upstream, create_graph=True)[0]
    else:
        gradient = _bending_energy_backward(upstream, u, weights, ctx.step)
    return gradient, None, None, None


_bending_energy.differentiable(_setup_context, _backward)
