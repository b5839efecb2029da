"""Functions of a probability with accurate values and derivatives where autograd would cancel or divide by 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinloss.fast.runtime.dispatch import full_precision
from twinloss.fast.runtime.torch_operator import apply, save


class _Surprisal(torch.autograd.Function):
    """Compute -log softmax(x); its gradient computes 1 - p without the subtraction, which cancels where p is near 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        # log(1 + sum of the other exponentials) + (largest - x): log1p keeps small exponentials. The last difference is
        # 0, or NaN where the largest logit is +inf, because exp(inf) / exp(inf) is undefined.
        top, index = x.max(1, keepdim=True)
        rest = torch.exp(x - top).scatter(1, index, 0).sum(1, keepdim=True)
        return torch.log1p(rest) + (top - x) + (top - top)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor) -> Tensor:
        """Return, for class k, the sum of p times tangent over the other classes, minus (1 - p_k) times its tangent."""
        surprisal = surprisal_of(ctx.saved_tensors[0])
        return _sum_of_others(torch.exp(-surprisal) * tangents[0]) + torch.expm1(-surprisal) * tangents[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        """Return p_k (sum of the upstream gradients of the other classes) - (1 - p_k) (that of class k)."""
        surprisal = surprisal_of(ctx.saved_tensors[0])
        return torch.exp(-surprisal) * _sum_of_others(upstream[0]) + torch.expm1(-surprisal) * upstream[0]


def _sum_of_others(by_class: Tensor) -> Tensor:
    """Return for each class the sum over all others, (B, C, …), without subtracting from the sum over all."""
    exclusive = 1 - torch.eye(by_class.shape[1], dtype=by_class.dtype, device=by_class.device)
    with full_precision(by_class):
        return (exclusive @ by_class.reshape(*by_class.shape[:2], -1)).reshape(by_class.shape)


class _Complement(torch.autograd.Function):
    """Compute 1 - exp(-surprisal); torch.expm1 would compute its derivative from the rounded result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(surprisal: Tensor) -> Tensor:
        return -torch.expm1(-surprisal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * torch.exp(-ctx.saved_tensors[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0] * torch.exp(-ctx.saved_tensors[0])


class _Focused(torch.autograd.Function):
    """Compute the focal term q^gamma s, with s = -log p and q = 1 - p; its derivative is q^gamma (1 + gamma p s / q).

    Both have the right limits at p = 1, where s / q tends to 1, and at p = 0, where s is infinite and p s tends to 0.
    Autograd would multiply 0 by infinity there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(surprisal: Tensor, gamma: float) -> Tensor:
        return _power(-torch.expm1(-surprisal), gamma) * surprisal

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        surprisal, ctx.gamma = inputs
        save(ctx, surprisal)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _slope_of_focused(ctx.saved_tensors[0], ctx.gamma)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * _slope_of_focused(ctx.saved_tensors[0], ctx.gamma), None


def _slope_of_focused(surprisal: Tensor, gamma: float) -> Tensor:
    if gamma == 0:
        return torch.ones_like(surprisal)
    p, q = torch.exp(-surprisal), complement_of(surprisal)
    ratio = p * torch.where(p == 0, 0, surprisal) / torch.where(q == 0, 1, q)
    return _power(q, gamma) * (1 + gamma * torch.where(q == 0, 1, ratio))


def _power(q: Tensor, gamma: float) -> Tensor:
    """Return q^gamma, with a finite derivative at q = 0."""
    return q**gamma if gamma >= 1 or gamma == 0 else q.clamp_min(torch.finfo(q.dtype).tiny) ** gamma


class _Weighted(torch.autograd.Function):
    """Multiply a term by a weight; the product is 0 where the weight is 0, even if the term is infinite or NaN there.

    The derivative with respect to the weight is the term, also where the weight is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, term: Tensor) -> Tensor:
        return torch.where(weight == 0, 0, weight * term)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor | None) -> Any:
        (weight, term), (of_weight, of_term) = ctx.saved_tensors, tangents
        along_weight = 0 if of_weight is None else of_weight * term
        along_term = 0 if of_term is None else weighted(weight, of_term)
        return along_weight + along_term

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        weight, term = ctx.saved_tensors
        return upstream[0] * term, weighted(weight, upstream[0])


surprisal_of, complement_of, focused, weighted = map(apply, (_Surprisal, _Complement, _Focused, _Weighted))


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)) to full precision; torch's softplus returns x beyond 20."""
    return -torch.nn.functional.logsigmoid(-x)
