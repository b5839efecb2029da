"""The hunt for a failing case: shrinking, scripts, known deviations, targets of one's own, and parallel jobs."""
