"""Facts about the machine and this process."""
