"""Kernels that Numba compiles, and the functions that they call."""
