"""Real data for registration: the T1 brain, a copy warped by a smooth random field, and the field."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, zoom

from twinloss.harness.data.brain import Brain, Map, load_brain

# Displacements of a few voxels at control points about 4 cm apart, as between two heads after a rough alignment.
CONTROL_POINTS = 5
AMPLITUDE = 3.0


@dataclass(frozen=True, eq=False)
class Warped:
    """Images (1, 1, *S) in [0, 1] and a field (1, 3, *S) in voxels. The arrays are shared: do not write to them."""

    fixed: Map
    moving: Map
    grey_matter: Map
    field: Map


@functools.cache
def load_warped() -> Warped:
    """Warp the T1 brain, once per process."""
    brain: Brain = load_brain()
    shape = brain.t1.shape
    coarse = AMPLITUDE * np.random.default_rng(0).standard_normal((3, *[CONTROL_POINTS] * 3)).astype(np.float32)
    field = np.einsum("cijk,xi,yj,zk->cxyz", coarse, *(_cubic_spline(n) for n in shape), optimize=True)
    places = np.indices(shape, np.float32) + field
    moving = map_coordinates(brain.t1, places, np.float32, order=1, mode="constant")
    return Warped(
        fixed=brain.t1[None, None],
        moving=moving[None, None],
        grey_matter=brain.soft_labels[:, 2:3],
        field=field.astype(np.float32)[None],
    )


def _cubic_spline(n: int) -> Map:
    """Return the matrix (n, CONTROL_POINTS) that interpolates from control points to n voxels along one axis."""
    points = np.eye(CONTROL_POINTS, dtype=np.float32)
    return np.stack([zoom(point, n / CONTROL_POINTS, order=3, grid_mode=True, mode="nearest") for point in points], 1)
