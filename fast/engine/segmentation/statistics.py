r"""The statistics of the segmentation losses: a few sums over voxels for each item and class, all from one pass.

With prediction $p$, target $g$ and voxel weight $w$ (a mask; $P = wp$, $G = wg$), over the voxels $i$:

=========  ==========================  ==========================  ==========================
overlap    TP                          FP                          FN
=========  ==========================  ==========================  ==========================
product    $\sum P G$                  $\sum P (1 - G)$            $\sum G (1 - P)$
minimum    $\sum \min(P, G)$           $\sum \max(P - G, 0)$       $\sum \max(G - P, 0)$
squared    $\sum P G$                  $\sum \max(P - G, 0)^2$     $\sum \max(G - P, 0)^2$
=========  ==========================  ==========================  ==========================

For product and minimum, $TP + FP = \sum P$ and $TP + FN = \sum G$. For squared,
$2 TP + FP + FN = \sum P^2 + \sum G^2$. None of the three is the difference of two larger sums,
so a formula on them is as accurate for a nearly perfect prediction as for a poor one.

==========  ======================================  =======================================================
surprisal   hits                                    misses
==========  ======================================  =======================================================
softmax     $\sum w g (1 - p)^\gamma (-\log p)$      $\sum w (-\log p)$, for "all"; else 0
sigmoid     $\sum w g (1 - p)^\gamma (-\log p)$      $\sum w (1 - g) p^\gamma (-\log (1 - p))$
==========  ======================================  =======================================================

The volume is $\sum w g$, which does not depend on p. The distance is $\sum w W$ over the voxels of true class c, with
$W_i = \sum_l M_{y_i l} p_{il}$ (Fidon et al. 2017, eq. 6).

The plain form is in `plain.py`; the kernels are registered for the statistic `VOXELS`. The reference has its own code
for such sums, which is not imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from twinloss.fast.engine.segmentation.labels import raise_invalid
from twinloss.fast.engine.segmentation.plain import plain_sums
from twinloss.fast.kernels.contract import (
    HITS,
    MISSES,
    ROWS,
    VOLUME,
    VOXELS,
    InvalidVoxelsError,
    Plan,
    UpstreamSlopes,
    VoxelInputs,
)
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.torch_operator import (
    Computation,
    InputsAndValue,
    gradients,
    is_traced,
    one_node,
    operator,
)

Activation = Literal["identity", "sigmoid", "softmax"]
Overlap = Literal["none", "product", "minimum", "squared"]
Surprisal = Literal["none", "target", "all"]


@dataclass(frozen=True)
class Statistics:
    """Sums over the voxels, float64; sums that the plan does not include are 0.

    Attributes:
        stack: all sums, (ROWS, B, C).
        fixed: whether target and mask require no gradient, so that the volume has none.
    """

    stack: Tensor
    fixed: bool

    @property
    def hits(self) -> Tensor:
        """(B, C)."""
        return self.stack[HITS]

    @property
    def misses(self) -> Tensor:
        """(B, C)."""
        return self.stack[MISSES]

    @property
    def volume(self) -> Tensor:
        """(B, C), detached from the graph if it is fixed."""
        return (self.stack.detach() if self.fixed else self.stack)[VOLUME]


def statistics(inputs: VoxelInputs, plan: Plan, slopes: UpstreamSlopes | None = None) -> Statistics:
    """Sum the statistics of every item and class in one pass.

    Args:
        inputs: the tensors; the matrix requires labels and softmax.
        plan: which statistics to compute.
        slopes: for a loss that is linear in the hits and depends on nothing else, a function that returns dL/d(hits),
            (B, C). It is called if the gradient can be computed in the same pass.

    Raises:
        ValueError: if a label is not a whole number in [0, C) or a mask value lies outside [0, 1].
    """
    fixed = not any(t is not None and t.requires_grad for t in (inputs.target, inputs.mask))
    if dispatch.choose(VOXELS, *inputs) == "plain":
        return Statistics(plain_sums(inputs, plan), fixed)
    if is_traced(inputs):
        return Statistics(_voxel_sums(*inputs, *plan), fixed)
    return Statistics(_sums_as_one_node(inputs, plan, slopes), fixed)


def _sums_as_one_node(inputs: VoxelInputs, plan: Plan, slopes: UpstreamSlopes | None) -> Tensor:
    kernels = VOXELS.kernels(inputs.x)

    def gradient(upstream: Tensor, kept: object, *tensors: Any) -> Tensor:
        return kernels.gradient(upstream, VoxelInputs(*tensors), plan, kept)

    def plain(*tensors: Any) -> InputsAndValue:
        return tensors[:1], plain_sums(VoxelInputs(*tensors), plan)

    return one_node(Computation(partial(_kernel_sums, plan, slopes), gradient, plain), *inputs)


def _kernel_sums(
    plan: Plan, slopes: UpstreamSlopes | None, tensors: tuple[Any, ...], ahead: bool
) -> tuple[Tensor, object]:
    """Return the sums, computed by kernels, and the object that is kept for the gradient."""
    inputs = VoxelInputs(*tensors)
    try:
        return VOXELS.kernels(inputs.x).sums(inputs, plan, ahead, slopes if ahead else None)
    except InvalidVoxelsError:
        raise_invalid(inputs, plan.ignore_index)


# --- torch operators --------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor x, Tensor target, Tensor? mask, Tensor? matrix, str activation, str overlap, str surprisal, float gamma, "
    "bool labels, SymInt? ignore_index"
)


@operator("voxel_sums", f"({_ARGUMENTS}) -> Tensor")
def _voxel_sums(x: Tensor, target: Tensor, mask: Tensor | None, matrix: Tensor | None, *plan: Any) -> Tensor:
    return _kernel_sums(Plan(*plan), None, (x, target, mask, matrix), False)[0]


@operator("voxel_sums_backward", f"(Tensor slopes, {_ARGUMENTS}) -> Tensor")
def _voxel_sums_backward(
    slopes: Tensor, x: Tensor, target: Tensor, mask: Tensor | None, matrix: Tensor | None, *plan: Any
) -> Tensor:
    """Return dL/dx, given dL/d(statistics), (ROWS, B, C)."""
    made = VOXELS.kernels(x).gradient(slopes, VoxelInputs(x, target, mask, matrix), Plan(*plan), None)
    return made.contiguous()  # as the fake implementation says, whatever the layout of x


@_voxel_sums.fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((len(ROWS), x.shape[0], x.shape[1]), dtype=torch.float64)


@_voxel_sums_backward.fake
def _(slopes: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target, mask, matrix, *plan = inputs
    ctx.plan = Plan(*plan)
    ctx.save_for_backward(x, target, mask, matrix)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
    inputs = VoxelInputs(*ctx.saved_tensors)
    made = gradients(
        slopes,
        lambda: ((inputs.x,), plain_sums(inputs, ctx.plan)),
        lambda: (_voxel_sums_backward(slopes, *inputs, *ctx.plan),),
    )
    return *made, *[None] * (len(inputs) - 1 + len(ctx.plan))


_voxel_sums.differentiable(_setup_context, _backward)
