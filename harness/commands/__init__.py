"""What commands do, without a command line: also for Python and for the pytest plugin."""
