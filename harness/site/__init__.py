"""The reading room: a static site of pages about each loss, made of the code and of the latest run.

Formulas come from the docstrings, options from the signatures and the catalogue, evidence from the files that commands
have written. Only what none of these knows is written by hand, in `content/`: one file for each loss.
"""
