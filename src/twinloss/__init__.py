"""Loss functions for the segmentation and registration of medical images, each written twice.

`twinloss.reference` has the slow twins in NumPy and SciPy, which read like the papers. `twinloss.fast` has the twins to
train with, in PyTorch and Numba. `twinloss.harness` hunts for an input on which the two differ.

Importing `twinloss` itself loads none of the three.
"""

__version__ = "0.1.0.dev0"
