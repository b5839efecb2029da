"""The rows of the statistics, as torch and the kernels number them; `statistics.py` defines each.

The last row holds no sum. Its slope belongs to TP and FN together: the kernels need the slope of TP less that of FN
(twice that of FN for squared overlaps), a difference that may cancel. `fraction.py` puts there what the rounding of
this difference loses, and the kernels put there the difference itself.
"""

ROWS = ("tp", "fp", "fn", "hits", "misses", "volume", "distance", "nearness", "tp_less_fn")
TP, FP, FN, HITS, MISSES, VOLUME, DISTANCE, NEARNESS, TP_LESS_FN = range(len(ROWS))
