"""Shared services of the engine and the kernels, which do not depend on any loss."""
