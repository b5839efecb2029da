"""The sums over voxels that segmentation losses are made of, and the fraction of these sums."""
