"""Judging of an answer: the reference, the bounds of rounding, finite differences, and the check of laws."""
