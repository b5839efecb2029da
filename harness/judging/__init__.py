"""Judging of an answer: the reference, bounds for rounding errors, finite differences, and the check of laws."""
