"""What a kernel reports about the target and the mask that it has read."""

# The order matters: the status of several tiles is the largest of theirs.
VALID = 0
# A label names no class, or a mask value lies outside [0, 1].
INVALID = 1
# The mask or the dense target holds other numbers than 0 and 1: only the general kernels compute that. The results of
# the kernel that returned this are undefined.
NOT_BINARY = 2
