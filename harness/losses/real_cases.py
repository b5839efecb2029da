"""Cases of segmentation losses on the brain."""

from __future__ import annotations

from twinloss.harness.data import brain
from twinloss.harness.model.operand import Array
from twinloss.harness.model.real_case import RealCase


def _labels() -> dict[str, Array]:
    images = brain.load_brain()
    return {"input": images.logits, "target": images.labels}


def _soft_labels() -> dict[str, Array]:
    images = brain.load_brain()
    return {"input": images.logits, "target": images.soft_labels}


def _labels_in_mask() -> dict[str, Array]:
    return {**_labels(), "mask": brain.load_brain().mask}


def _soft_labels_in_mask() -> dict[str, Array]:
    return {**_soft_labels(), "mask": brain.load_brain().mask}


HARD = {"softmax": True, "to_onehot_y": True}
SOFT = {"softmax": True, "include_background": False}
LABELS = RealCase("labels", _labels, HARD)
SOFT_LABELS = RealCase("soft labels", _soft_labels, SOFT)
LABELS_IN_MASK = RealCase("labels, mask", _labels_in_mask, HARD)
SOFT_LABELS_IN_MASK = RealCase("soft labels, mask", _soft_labels_in_mask, SOFT)
