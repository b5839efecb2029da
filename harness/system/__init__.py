"""Facts about the machine and this process, and what differs between versions of Python."""
