"""`twinloss report`: a static website about the losses, generated from the code and from the latest reports.

Formulas come from the docstrings, options from the signatures and the catalogue, and evidence from the files that the
commands have written. Only what none of these contains is written by hand, in `content/`, with one file per loss.
"""
