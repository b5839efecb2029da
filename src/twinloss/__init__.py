"""Segmentation and registration losses, each written twice: `reference` and `fast`.

`twinloss.reference` is the slow twin, in NumPy and SciPy; `twinloss.fast` the one to train with, in
Torch and Numba; `twinloss.harness` looks for an input on which the two differ.

Importing `twinloss` itself loads none of the three.
"""

__version__ = "0.1.0.dev0"
