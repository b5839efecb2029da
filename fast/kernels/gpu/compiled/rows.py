"""The rows of the statistics, and those of the slopes that the gradient takes, as numbers that Triton can compile."""

from __future__ import annotations

import triton.language as tl

from twinloss.fast.kernels import statistic_rows

ROWS = tl.constexpr(len(statistic_rows.ROWS))
TP, FP, FN = (tl.constexpr(row) for row in (statistic_rows.TP, statistic_rows.FP, statistic_rows.FN))
HITS, MISSES = tl.constexpr(statistic_rows.HITS), tl.constexpr(statistic_rows.MISSES)
VOLUME, TP_LESS_FN = tl.constexpr(statistic_rows.VOLUME), tl.constexpr(statistic_rows.TP_LESS_FN)
DISTANCE, NEARNESS = tl.constexpr(statistic_rows.DISTANCE), tl.constexpr(statistic_rows.NEARNESS)

# The slopes in TP; in FP; in TP less FN (for squared overlaps, TP less twice FN); in the hits; in the misses; and in
# the distance, where the nearness falls as the distance grows. The last row holds the number by which all others have
# been divided, because they may overflow float32 where the gradient does not.
OF_TP, OF_FP, OF_HIT, OF_HITS, OF_MISSES, OF_DISTANCE, STRETCH = (tl.constexpr(row) for row in range(7))
SLOPES = 7
