"""Status codes, with which a kernel reports whether the target and the mask are valid."""

# The codes are ordered: the status of several tiles is the largest of theirs.
VALID = 0
# A label is not a class, or a mask value lies outside [0, 1].
INVALID = 1
# The mask or the dense target has values other than 0 and 1, which only the general kernels support. The results of the
# kernel that returned this are undefined.
NOT_BINARY = 2
