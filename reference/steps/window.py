"""Windows that move over an image, which is zero beyond its borders."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import numpy as np

from twinloss.reference.steps.activation import Array

Slices = tuple[slice, ...]


def padded(image: Array, radii: Sequence[int]) -> Array:
    """Pad an image (B, C, *S) with ``radii`` zeros on both sides of each spatial axis."""
    spatial = (n + 2 * r for n, r in zip(image.shape[2:], radii, strict=True))
    made = np.zeros((*image.shape[:2], *spatial), image.dtype)
    cropped(made, radii)[...] = image
    return made


def places(shape: Sequence[int], windows: Sequence[Array]) -> Iterator[tuple[np.floating, Slices]]:
    """For each place in the window, yield its weight and the slices of the padded image that are shifted to that place.

    The weight is the product of the weights along the axes.

    Args:
        shape: the shape of the image before padding by half of each window.
        windows: the weights along each spatial axis, of odd length.
    """
    axes = [
        [(weight, slice(j, j + n)) for j, weight in enumerate(window)]
        for window, n in zip(windows, shape[2:], strict=True)
    ]
    for offset in product(*axes):
        yield prod(weight for weight, _ in offset), (slice(None), slice(None), *(along for _, along in offset))


def cropped(image: Array, radii: Sequence[int]) -> Array:
    """Remove the margins that `padded` has added."""
    return image[(slice(None), slice(None), *(slice(r, n - r) for r, n in zip(radii, image.shape[2:], strict=True)))]


def correlated(image: Array, windows: Sequence[Array]) -> Array:
    """Return the weighted sum over the window around each voxel, (B, C, *S), one axis after the other.

    >>> correlated(np.array([[[0.0, 1, 0, 0]]]), [np.array([1.0, 2, 1])])
    array([[[1., 2., 1., 0.]]])
    """
    for axis, window in enumerate(windows):
        alone = [window if d == axis else np.ones(1, image.dtype) for d in range(len(windows))]
        radii = [len(w) // 2 for w in alone]
        around = padded(image, radii)
        image = np.zeros_like(image)
        for weight, place in places(image.shape, alone):
            image += weight * around[place]
    return image
