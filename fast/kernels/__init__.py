"""Numba kernels: one fused pass over the voxels, forward or backward. Nothing else lives here."""
