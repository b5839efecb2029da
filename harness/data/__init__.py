"""Real data: a brain, and the same brain warped."""
