"""The kernels: implementations of the statistics, one set for each type of device.

`contract.py` says what a set offers. Each set registers itself here.
"""

from twinloss.fast.kernels import cpu as cpu
