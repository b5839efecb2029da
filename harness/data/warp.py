"""Real data of registration: the T1 brain, a copy warped by a smooth random field, and that field."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, zoom

from twinloss.harness.data.brain import Brain, Map, load_brain

# Displacements of a few voxels between control points some 4 cm apart, as between two heads that are roughly aligned.
CONTROL_POINTS = 5
AMPLITUDE = 3.0


@dataclass(frozen=True, eq=False)
class Warped:
    """The arrays are shared: do not write to them. Images are (1, 1, *S) in [0, 1], the field (1, 3, *S) in voxels."""

    fixed: Map
    moving: Map
    grey_matter: Map
    field: Map


@functools.cache
def load_warped() -> Warped:
    """Warps the T1 brain, once per process."""
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
    """From the values at control points to those at n voxels, one axis at a time: (n, CONTROL_POINTS)."""
    points = np.eye(CONTROL_POINTS, dtype=np.float32)
    return np.stack([zoom(point, n / CONTROL_POINTS, order=3, grid_mode=True, mode="nearest") for point in points], 1)
