"""`twinloss bench`: forward and backward of every loss beside those of other libraries, and beside what limits them.

cases.py says what is timed, competitors.py against what, timing.py and memory.py how, roofline.py what the machine
could do; records.py keeps the figures, session.py makes them, and report.py and plots.py show them.
"""
