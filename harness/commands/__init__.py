"""The commands as Python functions, which the command line and the pytest plugin also call."""
