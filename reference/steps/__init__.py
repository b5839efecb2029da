"""Steps that several papers share: activations, sums over voxels, moving windows, histograms and reductions.

Each module implements one step, and with it the adjoint that takes a gradient back through the step.
"""
