"""Images smoothed by a kernel along each axis; in float64, but for what is kept between the axes."""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels import SOURCES
from twinloss.fast.kernels.tile import stage
from twinloss.fast.kernels.window import clear, columns_at_once, keep, load_rows, rows_at_once, sums_along


@stage
def _smooth_rows(plane, y_start, rows, window_y, window_x, rooms, out):
    width, radius_y, radius_x = plane.shape[1], window_y.size // 2, window_x.size // 2
    pitch = width + 2 * radius_x
    size = (rows + 2 * radius_y) * pitch
    load_rows(plane, y_start, width, radius_x, radius_y, rooms[0, 0, :size])
    at = sums_along(rooms, 0, size, 1, window_x, False)
    # The last numbers of the last row begin no window that fits.
    at = sums_along(rooms, at, size - (window_x.size - 1), pitch, window_y, False)
    for k in range(rows):
        keep(rooms[at, 0, k * pitch : k * pitch + width], out[y_start + k])


@stage
def _smooth_columns(image, start, n, window_z, rooms, out):
    planes, radius = image.shape[0], window_z.size // 2
    size = (planes + 2 * radius) * n
    clear(rooms[0], size)
    for z in range(planes):
        keep(image[z, start : start + n], rooms[0, 0, (z + radius) * n : (z + radius + 1) * n])
    at = sums_along(rooms, 0, size, n, window_z, False)
    for z in range(planes):
        keep(rooms[at, 0, z * n : (z + 1) * n], out[z, start : start + n])


def _compiled(sources):
    """The two kernels, cached on disk under the hash of all sources (see `SOURCES`)."""

    @njit(cache=True, nogil=True)
    def planes(image, z_start, z_stop, window_y, window_x, out):
        """Smooth some planes of an image (D, H, W) within themselves."""
        sources  # noqa: B018
        height, width, radius_x = image.shape[1], image.shape[2], window_x.size // 2
        step = rows_at_once(height, width, radius_x)
        rooms = np.empty((3, 1, (step + 2 * (window_y.size // 2)) * (width + 2 * radius_x)))
        for z in range(z_start, z_stop):
            for y in range(0, height, step):
                _smooth_rows(image[z], y, min(step, height - y), window_y, window_x, rooms, out[z])

    @njit(cache=True, nogil=True)
    def depth(image, start, stop, window_z, out):
        """Smooth an image (D, H * W) across its planes, the columns of voxels start:stop."""
        sources  # noqa: B018
        reach = image.shape[0] + 2 * (window_z.size // 2)
        step = columns_at_once(stop - start, image.shape[0], window_z.size // 2)
        rooms = np.empty((3, 1, reach * step))
        for k in range(start, stop, step):
            _smooth_columns(image, k, min(step, stop - k), window_z, rooms, out)

    return planes, depth


planes, depth = _compiled(SOURCES)
