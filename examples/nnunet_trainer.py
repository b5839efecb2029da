"""Train nnU-Net's U-Net by its own trainer, with a loss of twinloss in place of nnU-Net's.

Run `pip install -e ".[real,reports]" nnunetv2`, then `python examples/nnunet_trainer.py nnunet_trainer.png`.

For a dataset of nnU-Net, copy the class into a file below nnunetv2/training/nnUNetTrainer, and run nnUNetv2_train with
`-tr TwinlossTrainer`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from twinloss.compat.nnunet import DC_and_CE_loss
from twinloss.harness.data.brain import load_brain

HOME = tempfile.TemporaryDirectory()
os.environ |= dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), HOME.name)
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402


class TwinlossTrainer(nnUNetTrainer):
    def _build_loss(self):
        dice = {"batch_dice": self.configuration_manager.batch_dice, "do_bg": False, "smooth": 1e-5, "ddp": self.is_ddp}
        loss = DC_and_CE_loss(dice, {}, ignore_label=self.label_manager.ignore_label)
        weights = [0.5**level for level in range(len(self._get_deep_supervision_scales()))]
        return DeepSupervisionWrapper(loss, [weight / sum(weights) for weight in weights])


def main(picture):
    torch.manual_seed(0)
    plans, dataset = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())
    cases = Path(HOME.name, plans["dataset_name"], "2d")
    cases.mkdir(parents=True)
    (cases / "case.npz").touch()
    trainer = TwinlossTrainer(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    brain, history = load_brain(), []
    for _ in range(40):
        at = torch.randint(50, 130, (4,)).numpy()
        images, labels = (torch.tensor(each[2:194:2, 8:200:2][:, :, at]).movedim(-1, 0).unsqueeze(1).float()
                          for each in (brain.t1, brain.labels[0, 0]))  # fmt: skip
        history.append(trainer.train_step({"data": images, "target": [labels, labels[:, :, ::2, ::2]]})["loss"].item())
    print(f"loss: {history[0]:.3f} -> {history[-1]:.3f}")
    plt.plot(history)
    plt.xlabel("step")
    plt.ylabel("loss")
    plt.savefig(picture, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "nnunet_trainer.png")
