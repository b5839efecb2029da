"""`twinloss bench`: time and memory of each loss, compared with other libraries and with the limits of the machine.

cases.py defines the benchmark cases and competitors.py the implementations to compare. timing.py and memory.py measure
them, and roofline.py measures the machine. records.py stores the results, session.py runs the cases, and report.py and
plots.py present the results.
"""
