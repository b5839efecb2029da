"""The kernels: implementations of the statistics, one set for each type of device."""
