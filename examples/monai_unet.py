"""Train a U-Net of MONAI to segment a brain, with a loss of twinloss in place of MONAI's.

Run `pip install -e ".[real,reports]" monai`, then `python examples/monai_unet.py monai_unet.png`.
"""

import sys

import matplotlib.pyplot as plt
import torch
from monai.networks.nets import UNet

from twinloss.compat.monai import DiceCELoss  # instead of: from monai.losses import DiceCELoss
from twinloss.harness.data.brain import CLASSES, load_brain

STEPS = 60


def batch(brain, slices):
    """Return axial slices of half the size: images (B, 1, H, W) and labels (B, 1, H, W)."""
    images = torch.tensor(brain.t1[2:194:2, 8:224:2][:, :, slices]).movedim(-1, 0).unsqueeze(1)
    labels = torch.tensor(brain.labels[0, 0, 2:194:2, 8:224:2][:, :, slices]).movedim(-1, 0).unsqueeze(1)
    return images[..., :96, :96], labels[..., :96, :96]


def main(picture):
    torch.manual_seed(0)
    brain = load_brain()
    net = UNet(2, 1, len(CLASSES), channels=(16, 32, 64), strides=(2, 2), num_res_units=1)
    criterion = DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    history = []
    for _ in range(STEPS):
        images, labels = batch(brain, torch.randint(50, 130, (4,)).numpy())
        loss = criterion(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    print(f"loss: {history[0]:.3f} -> {history[-1]:.3f}")

    images, labels = batch(brain, [90])
    with torch.no_grad():
        found = net(images).argmax(1)
    _, axes = plt.subplots(1, 4, figsize=(13, 3))
    axes[0].plot(history)
    axes[0].set(xlabel="step", ylabel="loss")
    for axis, image, title in zip(axes[1:], (images[0], labels[0], found), ("T1", "labels", "U-Net"), strict=True):
        axis.imshow(image[0].T, origin="lower", cmap="gray")
        axis.set(title=title, xticks=[], yticks=[])
    plt.savefig(picture, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "monai_unet.png")
