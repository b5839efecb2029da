"""Images smoothed by a kernel along each axis; in float64, but for what is kept between the axes."""

from __future__ import annotations

import numpy as np

from twinloss.fast.kernels import SOURCES, kernel
from twinloss.fast.kernels.tile import NEXT, START, stage
from twinloss.fast.kernels.window import clear, columns_at_once, keep, load_tile, place_of_tile, sums_along


@stage
def _smooth_tile(plane, y, x, rows, columns, window_y, window_x, rooms, out):
    radius_y, radius_x = window_y.size // 2, window_x.size // 2
    pitch = columns + 2 * radius_x
    size = (rows + 2 * radius_y) * pitch
    load_tile(plane, y, x, rows, columns, radius_y, radius_x, rooms[0, 0])
    at = sums_along(rooms, START, size, NEXT, window_x, None, True)
    # The last numbers of the last row begin no window that fits.
    at = sums_along(rooms, at, size - (window_x.size - 1), pitch, window_y, None, True)
    for k in range(rows):
        keep(rooms[at, 0, k * pitch : k * pitch + columns], out[y + k, x : x + columns])


@stage
def _smooth_columns(image, start, n, window_z, rooms, out):
    planes, radius = image.shape[0], window_z.size // 2
    size = (planes + 2 * radius) * n
    clear(rooms[0], START, size)
    # By places, as a slice of an array takes a tenth of a second to compile; without a sign, as of such Numba asks not
    # whether they are negative.
    first, count = np.uintp(start), np.uintp(n)
    for z in range(planes):
        at = np.uintp((z + radius) * n)
        for i in range(count):
            rooms[0, 0, at + i] = image[z, first + i]
    room = sums_along(rooms, START, size, n, window_z, None, True)
    for z in range(planes):
        at = np.uintp(z * n)
        for i in range(count):
            out[z, first + i] = rooms[room, 0, at + i]


def _compiled(sources):
    """The two kernels, cached on disk under the hash of all sources (see `SOURCES`)."""

    @kernel
    def planes(image, start, stop, rows, columns, window_y, window_x, out):
        """Smooth an image (D, H, W) within its planes, tiles start:stop of rows by columns voxels."""
        sources  # noqa: B018
        _, height, width = image.shape
        room = (rows + 2 * (window_y.size // 2)) * (columns + 2 * (window_x.size // 2))
        rooms = np.empty((3, 1, room))
        for tile in range(start, stop):
            z, y, x, n, m = place_of_tile(tile, height, width, rows, columns)
            _smooth_tile(image[z], y, x, n, m, window_y, window_x, rooms, out[z])

    @kernel
    def depth(image, start, stop, window_z, out):
        """Smooth an image (D, H * W) across its planes, the columns of voxels start:stop."""
        sources  # noqa: B018
        planes = image.shape[0] + 2 * (window_z.size // 2)
        step = columns_at_once(stop - start, image.shape[0], window_z.size // 2)
        rooms = np.empty((3, 1, planes * step))
        for k in range(start, stop, step):
            _smooth_columns(image, k, min(step, stop - k), window_z, rooms, out)

    return planes, depth


planes, depth = _compiled(SOURCES)
