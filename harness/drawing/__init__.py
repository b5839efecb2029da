"""Drawing of cases with Hypothesis: kinds of input, shapes, options, and their coverage."""
