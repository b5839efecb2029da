"""The steps that several papers share: activations, sums over voxels, windows, histograms, reductions."""
