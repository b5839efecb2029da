"""A tile of voxels: how wide it is, the room for it, and what its stages share.

A tile stays in the caches nearest to the core. Loops run over one row of it and write few arrays, so that LLVM proves
them free of aliasing and vectorises; flags are tested once a row, never once a voxel.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder

# Voxels of a tile for at most four classes. With more classes, a tile has fewer voxels.
TILE = 4032
# Tiles of a chunk. Threads work on whole chunks, and the float64 sums of the chunks are added in a fixed order.
TILES = 16
# Number of voxels whose sum is computed in float32, over vector lanes with few additions each. Sums of blocks are
# float64. In float64, which has half as many lanes, it is half as many voxels; see `block_of`.
BLOCK = 512
IDENTITY, SIGMOID, SOFTMAX = 0, 1, 2
EXCLUDED = np.int32(-1)
# KEPT is the type number of labels that `keep_labels` has stored. They are less than MOST_KEPT, which stands for
# EXCLUDED.
KEPT, MOST_KEPT = 5, 15
LACKING = np.int32(MOST_KEPT)
# Numba compiles a stage again for each literal number among its arguments, but not for these.
START, NEXT = np.intp(0), np.intp(1)

# The arguments of a kernel for voxels that are the same for all tiles, see `voxel.py`.
Given = namedtuple("Given", "x target item gamma activation dense ignoring ignore excluding mask")
# Arrays for one tile: `rows`, (5, C, width), has values for each class, `row`, (8, width), has values for each voxel,
# and y, (width), has the labels.
Buffers = namedtuple("Buffers", "rows row y")
# The arrays in `rows`: p; q = 1 - p; target g; slopes h = dL/dp; logits x.
P, Q, G, H, X = range(5)
# The rows in `row`: weight w; the largest logit, scale and rest of `exponentials`; two adjacent rows for intermediate
# values; p and 1 - p of the voxel's true class, or intermediate values.
W, TOP, SCALE, REST, SCRATCH_A, SCRATCH_B, OWN, FACTOR = range(8)


class _PartOfKernels(JITCodeLibrary):
    """The code of a stage, which is linked into kernels and never called by itself.

    The kernel that contains a stage is optimised as a whole. Only stages that call no others, which have the loops, are
    also optimised by themselves. Numba would optimise each stage again together with all that it calls, and generate
    machine code for it, which takes a third of the time of a compilation.
    """

    def _optimize_final_module(self):
        if not self._linking_libraries:
            super()._optimize_final_module()

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        """Finish the code; there is no machine code to point to."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """An object with a `set_env`: the environment is that of the kernels."""
        return self

    def set_env(self, name, env):
        """Do nothing."""


# Compiles without the wrappers for calls from Python or C.
class _Part(CompilerBase):
    def define_pipelines(self):
        self.state.library = _PartOfKernels(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.flags.no_cpython_wrapper = True
        self.state.flags.no_cfunc_wrapper = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# The same for arrays that do not overlap.
class _NoAlias(_Part):
    def define_pipelines(self):
        self.state.flags.noalias = True
        return super().define_pipelines()


# error_model="numpy": a division by zero gives infinity instead of a branch that raises, so that loops are vectorised.
OF_STAGE = {"error_model": "numpy", "_nrt": False, "pipeline_class": _NoAlias}
stage = njit(**OF_STAGE)
# Here a product and a sum may be rounded once, as a fused multiply-add.
fused_stage = njit(error_model="numpy", fastmath={"contract"}, _nrt=False, pipeline_class=_NoAlias)
# Here arrays may overlap, and in the second, arrays may be allocated.
tile_stage = njit(error_model="numpy", _nrt=False, pipeline_class=_Part)
allocating_stage = njit(error_model="numpy", pipeline_class=_Part)
# Here the sum of a row may be spread over vector lanes, which changes the order of the additions. The order depends on
# the vector width of the machine, but never on the number of threads. No flag assumes the absence of NaN or infinity.
sums_stage = njit(error_model="numpy", fastmath={"reassoc", "contract"}, _nrt=False, pipeline_class=_NoAlias)


@njit(inline="always")
def four_rows(rows, at, other):
    """Return the rows of four classes at some voxels.

    With fewer classes, the missing ones get `other`, whose results are not used.
    """
    classes = rows.shape[0]
    return (
        rows[0, at], rows[1, at] if classes > 1 else other, rows[2, at] if classes > 2 else other,
        rows[3, at] if classes > 3 else other,
    )  # fmt: skip


@njit(inline="always")
def four_exponentials(e, spare):
    """Return the exponentials of four classes; with fewer classes, those of the missing ones are 0."""
    if e.shape[0] < 4:
        spare[:] = 0
    return four_rows(e, slice(0, e.shape[1]), spare)


@njit(inline="always")
def four_classes(y, last):
    """Return the numbers of four classes, in the type of the labels; with fewer classes, the last one is repeated.

    If LLVM knew the numbers at compile time, the loops that it generates would take a tenth longer.
    """
    label = y.dtype.type
    return label(0), label(min(1, last)), label(min(2, last)), label(last)


@njit(inline="always")
def four_values(values):
    """Return the values of four classes; with fewer classes, the last one is repeated."""
    last = values.size - 1
    return values[0], values[min(1, last)], values[min(2, last)], values[last]


@stage
def copy_cast(values, out):
    """Copy numbers into `out` and cast them to its type.

    For an assignment of slices, Numba would also compile the code that formats its error messages.
    """
    for i in range(out.size):
        out[i] = values[i]


@njit(inline="always")
def taken(value, y, i):
    """Return `value`, or 0 if voxel `i` is excluded; `y=None` excludes nothing."""
    if y is None:
        return value
    return type(value)(0) if y[i] < 0 else value


@stage
def clear_where_excluded(y, rows):
    """Set the values of excluded voxels to 0, because they may be NaN."""
    for c in range(rows.shape[0]):
        row = rows[c]
        for i in range(y.size):
            row[i] = taken(row[i], y, i)


@njit(inline="always")
def block_of(row):
    """Return the number of voxels in a block of a row."""
    return 4 * BLOCK // row.itemsize


# --- the whole tile --------------------------------------------------------------------------------------------------


@stage
def volume(tp, fn, y, c):
    """Return how many voxels are of class c, given the sums of their p and 1 - p.

    Each voxel adds 1 to the total of the two sums, so that the rounded total is the number of voxels, at no cost. If a
    logit is NaN, so is the total, and the labels are counted instead.
    """
    total = tp + fn
    if total == total:
        return np.rint(total)
    zero, one = type(total)(0), type(total)(1)
    count = zero
    for i in range(y.size):
        count += one if y[i] == c else zero
    return count


@stage
def tile_width(classes, voxels):
    """Return the number of voxels of a tile: `voxels`, or fewer if the caches do not hold as many.

    If it is fewer, it is an even number.
    """
    return min(max(4 * TILE // max(classes, 4), BLOCK) // 2 * 2, voxels)


@allocating_stage
def scratch(classes, width, real):
    """Allocate the arrays for one tile."""
    return Buffers(np.empty((5, classes, width), real), np.empty((8, width), real), np.empty(width, np.int32))
