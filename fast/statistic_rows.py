"""The rows of the statistics, as torch and the kernels number them; what each is stands in `statistics.py`."""

ROWS = ("tp", "fp", "fn", "hits", "misses", "volume", "distance", "nearness")
TP, FP, FN, HITS, MISSES, VOLUME, DISTANCE, NEARNESS = range(len(ROWS))
# Slopes have one row more: that of TP less that of FN, which is rounded once.
TP_LESS_FN = len(ROWS)
