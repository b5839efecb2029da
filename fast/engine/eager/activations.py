"""What labels and dense targets share: softmax and sigmoid, surprisals, and the gradients of all of these.

A softmax needs 1 - p without the subtraction, see `segmentation/README.md`. For labels, it is the sum of the other
probabilities. In the gradient p_k (a_k - Σ p_j a_j), with a = dL/dp, the first term cancels the second if p_k is close
to 1. The gradient stays the same if a constant is added to all a of a voxel. Therefore a of the most probable class is
subtracted first, so that the first term is 0 where the second could cancel it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinloss.fast.engine.eager.voxel_inputs import without
from twinloss.fast.runtime.constants import constant


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x))."""
    return functional.softplus(x, threshold=50)  # beyond, the result is x to all digits


def accurate(log_p: Tensor, q: Tensor) -> Tensor:
    """Return log p, given q = 1 - p, which keeps the digits of a small logarithm."""
    return torch.where(q < 0.5, (-q).log1p_(), log_p)


def focused(surprisal: Tensor, q: Tensor, gamma: float) -> Tensor:
    """Return q^gamma times a surprisal, which is overwritten."""
    return surprisal if gamma == 0 else surprisal.mul_(q**gamma)


def slope_of_focused(surprisal: Tensor, q: Tensor, gamma: float) -> Tensor:
    """Return the derivative of the focal term with respect to the surprisal, q^gamma (1 + gamma p s / q)."""
    if gamma == 0:
        return torch.ones_like(q)
    limits = torch.finfo(q.dtype)
    p_times = (-surprisal).exp_().mul_(surprisal.clamp(max=limits.max))
    return torch.addcdiv(constant(1.0, q), p_times, q.clamp(min=limits.tiny), value=gamma).mul_(q**gamma)


def product(weight: Tensor, term: Tensor) -> Tensor:
    """Return a product that is 0 where the weight is 0, even if the term is infinite; the term is overwritten."""
    return without(weight == 0, term.mul_(weight))


def through_softmax(in_p: Tensor, p: Tensor) -> Tensor:
    """Return p_k (a_k - Σ p_j a_j), given a = dL/dp, which is overwritten."""
    in_p.sub_(in_p.gather(1, p.argmax(1, keepdim=True)))
    return torch._softmax_backward_data(in_p, p, 1, p.dtype)


def through_sigmoid(in_p: Tensor, x: Tensor) -> Tensor:
    """Return p (1 - p) dL/dp, computed from the smaller of p and 1 - p, in place of dL/dp."""
    smaller = torch.copysign(x, -1).sigmoid_()
    return torch.ops.aten.sigmoid_backward(in_p, smaller, grad_input=in_p)  # type: ignore[no-any-return]
