"""Smoothing of images along the axes of their planes, computed in float64; only the stored result is rounded."""

from __future__ import annotations

import numpy as np

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.tile import NEXT, START, copy_cast, stage
from twinloss.fast.kernels.cpu.compiled.window import load_tile, place_of_tile, sums_along


@stage
def _smooth_tile(plane, y, x, rows, columns, window_y, window_x, rooms, out):
    radius_y, radius_x = window_y.size // 2, window_x.size // 2
    pitch = columns + 2 * radius_x
    size = (rows + 2 * radius_y) * pitch
    load_tile(plane, y, x, rows, columns, radius_y, radius_x, rooms[0, 0])
    at = sums_along(rooms, START, size, NEXT, window_x, None, True)
    # Windows that begin at the last numbers of the last row do not fit.
    at = sums_along(rooms, at, size - (window_x.size - 1), pitch, window_y, None, True)
    for k in range(rows):
        copy_cast(rooms[at, 0, k * pitch : k * pitch + columns], out[y + k, x : x + columns])


@kernel
def planes(image, start, stop, rows, columns, window_y, window_x, out):
    """Smooth an image (D, H, W) within its planes, for tiles start:stop of `rows` by `columns` voxels."""
    _, height, width = image.shape
    room = (rows + 2 * (window_y.size // 2)) * (columns + 2 * (window_x.size // 2))
    rooms = np.empty((3, 1, room))
    for tile in range(start, stop):
        z, y, x, n, m = place_of_tile(tile, height, width, rows, columns)
        _smooth_tile(image[z], y, x, n, m, window_y, window_x, rooms, out[z])
