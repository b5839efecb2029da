"""The hunt for a failing case: shrinking, scripts, known deviations, losses of users, and parallel jobs."""
