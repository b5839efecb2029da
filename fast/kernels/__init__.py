"""The kernels: implementations of the statistics, one set for each type of device.

`contract.py` defines the interface of a set. Importing a set here registers it.
"""

from twinloss.fast.kernels import cpu as cpu
