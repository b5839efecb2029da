"""Windows that move over an image, which is 0 beyond its borders."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from twinloss.reference.activation import Array

Slices = tuple[slice, ...]


def padded(image: Array, radii: Sequence[int]) -> Array:
    """The image (B, C, *S) with that many zeros before and after each spatial axis."""
    return np.pad(image, [(0, 0), (0, 0), *((r, r) for r in radii)])


def places(shape: Sequence[int], windows: Sequence[Array]) -> Iterator[tuple[np.floating, Slices]]:
    """For each place in a window: its weight, and where in the `padded` image the voxels at that place lie.

    The weight is the product of those of the axes; `windows` has one for each axis, of odd length, and `shape` is that
    of the image that was padded by half of it.
    """
    spatial = shape[2:]
    for offset in product(*(range(len(window)) for window in windows)):
        weight = np.prod([window[j] for window, j in zip(windows, offset, strict=True)])
        yield weight, (slice(None), slice(None), *(slice(j, j + n) for j, n in zip(offset, spatial, strict=True)))


def cropped(image: Array, radii: Sequence[int]) -> Array:
    """What is left of a `padded` image without its margins."""
    return image[(slice(None), slice(None), *(slice(r, n - r) for r, n in zip(radii, image.shape[2:], strict=True)))]


def correlated(image: Array, windows: Sequence[Array]) -> Array:
    """The weighted sum in the window around each voxel, axis by axis, (B, C, *S).

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
