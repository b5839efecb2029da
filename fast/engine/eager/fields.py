"""Energies of displacement fields in operators of torch.

The gradient is computed together with the value: each difference is taken once, and added to the gradient at the voxels
that it is made of. So no differences are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import Differences
from twinloss.fast.runtime.constants import accumulator, constant

# The offset of a voxel along the axes z, y and x.
Offset = tuple[int, int, int]
# The first number less the second.
Pair = tuple[Offset, Offset]


class _Part:
    """One kind of difference of a field, as a sum of differences of two voxels, so that large numbers cancel first."""

    def __init__(self, pairs: Sequence[Pair], margin: Sequence[int]) -> None:
        self.pairs, self.margin = pairs, margin

    def difference(self, u: Tensor) -> Tensor:
        """Return the differences at all voxels that are not in the margin."""
        first, *rest = (self._at(u, one) - self._at(u, other) for one, other in self.pairs)
        return first.add_(*rest) if rest else first

    def sum_of_squares(self, difference: Tensor) -> Tensor:
        """Return the sums of the weighted squares of each field, (N,)."""
        return difference.square().sum((1, 2, 3))

    def voxels(self, difference: Tensor) -> Tensor:
        """Return the weighted squares of the difference, which is overwritten, by voxel."""
        return difference.square_()

    def weigh(self, difference: Tensor, upstream: Tensor | None) -> Tensor:
        """Multiply the difference by its weight and by dL/d(energies)."""
        return difference if upstream is None else difference.mul_(upstream)

    def add(self, gradient: Tensor, slope: Tensor) -> None:
        """Add dL/d(difference) to the gradient at the voxels of the difference."""
        factors: dict[Offset, int] = {}
        for one, other in self.pairs:
            factors[one] = factors.get(one, 0) + 1
            factors[other] = factors.get(other, 0) - 1
        for offset, factor in factors.items():
            self._at(gradient, offset).add_(slope, alpha=factor)

    def _at(self, u: Tensor, offset: Offset) -> Tensor:
        for axis, (moved, margin) in enumerate(zip(offset, self.margin, strict=True), start=1):
            if margin:
                u = u.narrow(axis, margin + moved, u.shape[axis] - 2 * margin)
        return u


class _Neighbours(_Part):
    """The differences of neighbours along an axis: a voxel has the squares of the two to its neighbours.

    At the border, the square of the only one counts twice.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def difference(self, u: Tensor) -> Tensor:
        return self._last(u) - self._first(u)

    def sum_of_squares(self, difference: Tensor) -> Tensor:
        ends = [self._end(difference, end).square().sum((1, 2, 3)) for end in (0, -1)]
        return difference.square().sum((1, 2, 3)).mul_(2).add_(ends[0]).add_(ends[1])

    def voxels(self, difference: Tensor) -> Tensor:
        squares = difference.square_()
        before = torch.cat([self._end(squares, 0), squares], self.axis)
        return before.add_(torch.cat([squares, self._end(squares, -1)], self.axis))

    def weigh(self, difference: Tensor, upstream: Tensor | None) -> Tensor:
        if upstream is None:
            if difference.shape[self.axis] == 1:
                return difference.mul_(4)
            difference.mul_(2)
            for end in (0, -1):
                self._end(difference, end).mul_(1.5)
            return difference
        both = self._first(upstream) + self._last(upstream)
        for end in (0, -1):
            self._end(both, end).add_(self._end(upstream, end))
        return difference.mul_(both)

    def add(self, gradient: Tensor, slope: Tensor) -> None:
        self._last(gradient).add_(slope)
        self._first(gradient).sub_(slope)

    def _first(self, u: Tensor) -> Tensor:
        return u.narrow(self.axis, 0, u.shape[self.axis] - 1)

    def _last(self, u: Tensor) -> Tensor:
        return u.narrow(self.axis, 1, u.shape[self.axis] - 1)

    def _end(self, u: Tensor, end: int) -> Tensor:
        return u.narrow(self.axis, end % u.shape[self.axis], 1)


class Energy:
    """An energy of fields, see `EnergyKernels`."""

    def value(self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype) -> Tensor:
        """Return the sum of all energies divided by a count."""
        sums = [part.sum_of_squares(part.difference(u)) for part in self.parts(differences)]
        return _total(sums, u, differences, count, dtype)

    def value_and_gradient(
        self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the value and dL/du, for an upstream gradient of 1."""
        sums: list[Tensor] = []
        gradient = self._gradient(u, differences, count, None, sums)
        return _total(sums, u, differences, count, dtype), gradient

    def gradient(self, upstream: Tensor, u: Tensor, differences: Differences, count: float) -> Tensor:
        """Return dL/du, given dL/d(value) or, by voxel, dL/d(energies)."""
        if upstream.ndim == 0:
            return self._gradient(u, differences, count, None, None).mul_(upstream)
        return self._gradient(u, differences, count, upstream, None)

    def energies(self, u: Tensor, differences: Differences) -> Tensor:
        """Return the energy of each interior voxel."""
        weights, made = _weights(u, differences, 1), None
        for part, weight in zip(self.parts(differences), weights, strict=True):
            energy = part.voxels(part.difference(u)).mul_(weight)
            made = energy if made is None else made.add_(energy)
        assert made is not None
        return made

    def parts(self, differences: Differences) -> list[_Part]:
        """Return the kinds of differences, in the order of their weights."""
        raise NotImplementedError

    def _gradient(
        self, u: Tensor, differences: Differences, count: float, upstream: Tensor | None, sums: list[Tensor] | None
    ) -> Tensor:
        """Return dL/du; append the sums of the weighted squares of each difference to `sums`, if it is given."""
        gradient, weights = (
            torch.zeros_like(u, memory_format=torch.contiguous_format),
            _weights(u, differences, 2 / count),
        )
        for part, weight in zip(self.parts(differences), weights, strict=True):
            difference = part.difference(u)
            if sums is not None:
                sums.append(part.sum_of_squares(difference))
            part.add(gradient, part.weigh(difference.mul_(weight), upstream))
            del difference
        return gradient


class _BendingEnergy(Energy):
    def parts(self, differences: Differences) -> list[_Part]:
        """Return the second differences: those along each axis are followed by the mixed ones with the axes before."""
        step, axes = differences.margin, range(2, 2 - differences.rank, -1)
        margin, here = _margin(differences), (0, 0, 0)
        made = []
        for d in axes:
            pure = (_moved({d: step}), here), (_moved({d: -step}), here)
            made.append(_Part(pure, margin))
            for e in range(2, d, -1):
                mixed = (_moved({d: 1, e: 1}), _moved({d: 1, e: -1})), (_moved({d: -1, e: -1}), _moved({d: -1, e: 1}))
                made.append(_Part(mixed, margin))
        return made


class _Diffusion(Energy):
    def parts(self, differences: Differences) -> list[_Part]:
        """Return the first differences along each axis."""
        axes = range(2, 2 - differences.rank, -1)
        if differences.margin == 0:
            return [_Neighbours(d + 1) for d in axes]
        return [_Part([(_moved({d: 1}), _moved({d: -1}))], _margin(differences)) for d in axes]


def _moved(steps: dict[int, int]) -> Offset:
    z, y, x = (steps.get(d, 0) for d in range(3))
    return z, y, x


def _margin(differences: Differences) -> list[int]:
    return [differences.margin if 3 - d <= differences.rank else 0 for d in range(3)]


def _by_field(u: Tensor, differences: Differences) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the weight of each kind of difference in each field, (differences, N)."""
    weights = differences.weights
    return np.tile(weights, (len(u) // len(weights), 1)).T


def _weights(u: Tensor, differences: Differences, factor: float) -> tuple[Tensor, ...]:
    """Return the weight of each kind of difference times a factor, (N, 1, 1, 1)."""
    rows = tuple(map(tuple, (factor * _by_field(u, differences)).tolist()))
    return constant(rows, u)[..., None, None, None].unbind()


def _total(sums: list[Tensor], u: Tensor, differences: Differences, count: float, dtype: torch.dtype) -> Tensor:
    wide = accumulator(u.device)
    weights = constant(tuple(map(tuple, _by_field(u, differences).tolist())), u, wide)
    return (torch.stack(sums).to(wide).mul_(weights).sum() / count).to(dtype)


BENDING_ENERGY, DIFFUSION = _BendingEnergy(), _Diffusion()
