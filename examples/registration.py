"""Register two brain slices by gradient descent on a displacement field, with LNCC and the bending energy.

Run `pip install -e ".[real,reports]"`, then `python examples/registration.py registration.png`.
"""

import sys

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from twinloss.fast import BendingEnergyLoss, LocalNormalizedCrossCorrelationLoss
from twinloss.harness.data.warp import load_warped

STEPS = 100


def warp(image, field):
    """Sample an image (1, 1, H, W) at each voxel plus its displacement (1, 2, H, W) in voxels."""
    size = torch.tensor(image.shape[2:])
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")).float()
    places = 2 * (grid + field[0]).movedim(0, -1) / (size - 1) - 1
    return grid_sample(image, places.flip(-1)[None], align_corners=True)


def main(picture):
    brain = load_warped()
    fixed, moving = (avg_pool2d(torch.tensor(each[:, :, :, :, 90]), 2) for each in (brain.fixed, brain.moving))
    similarity = LocalNormalizedCrossCorrelationLoss(ndim=2, kernel_size=9)
    smoothness = BendingEnergyLoss()

    coarse = torch.zeros(1, 2, 13, 15, requires_grad=True)  # a displacement for each control point
    optimizer = torch.optim.Adam([coarse], lr=0.1)
    history = []
    for _ in range(STEPS):
        field = interpolate(coarse, fixed.shape[2:], mode="bicubic", align_corners=True)
        warped = warp(moving, field)
        loss = similarity(warped, fixed) + 10 * smoothness(field)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    print(f"loss: {history[0]:.3f} -> {history[-1]:.3f}")

    errors = moving - fixed, warped.detach() - fixed
    _, axes = plt.subplots(1, 4, figsize=(12, 3.5))
    for axis, image, title in zip(axes, (fixed, moving, *errors), ("fixed", "moving", "before", "after"), strict=False):
        limits = (-0.5, 0.5) if image.min() < 0 else (0, 1)
        axis.imshow(image[0, 0].T, cmap="gray", origin="lower", vmin=limits[0], vmax=limits[1])
        axis.set(title=title, xticks=[], yticks=[])
    plt.savefig(picture, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "registration.png")
