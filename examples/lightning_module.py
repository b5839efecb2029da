"""Train a network in a Lightning module, with the Dice + cross entropy loss of twinloss.

Run `pip install -e ".[reports]" lightning`, then `python examples/lightning_module.py lightning_module.png`.
"""

import sys

import lightning
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from twinloss.fast import DiceCELoss


def discs(items=64, size=64):
    """Return noisy images (B, 1, H, W) of a dark and a bright disc, and their labels, 0 to 2."""
    place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    centres = torch.randint(10, size - 10, (2, items, 1, 2, 1, 1))
    dark, bright = (place - centres).norm(dim=3) < 8
    labels = torch.where(bright, 2, dark.long())
    return labels + 0.5 * torch.randn(labels.shape), labels


class Segmenter(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv2d(16, 3, 1))
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True)
        self.history = []

    def training_step(self, batch, _):
        loss = self.loss(self.net(batch[0]), batch[1])
        self.history.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(picture):
    lightning.seed_everything(0)
    (images, labels), model = discs(), Segmenter()
    trainer = lightning.Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True))
    print(f"loss: {model.history[0]:.3f} -> {model.history[-1]:.3f}")

    _, axes = plt.subplots(1, 3, figsize=(9, 3))
    with torch.no_grad():
        shown = images[0, 0], labels[0, 0], model.net(images[:1]).argmax(1)[0]
    for axis, image, title in zip(axes, shown, ("image", "labels", "network"), strict=True):
        axis.imshow(image)
        axis.set_title(title)
    plt.savefig(picture, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lightning_module.png")
