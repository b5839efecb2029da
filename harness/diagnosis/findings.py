"""Findings for a user's batch: sentences that say what is wrong, what it causes and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twinloss.harness.diagnosis.batch import Batch
from twinloss.harness.diagnosis.registration_findings import of_registration
from twinloss.harness.diagnosis.segmentation_findings import of_segmentation
from twinloss.harness.model.operand import Array


def findings(batch: Batch) -> Iterator[str]:
    """Check numbers and shapes, without computing the loss."""
    for name, values in batch.arrays.items():
        yield from _not_finite(name, values, batch.types.get(name, ""))
    yield from of_segmentation(batch) if batch.has_classes else of_registration(batch)


def _not_finite(name: str, values: Array, own: str) -> Iterator[str]:
    if values.dtype.kind != "f":
        return
    for test, what in ((np.isnan, "NaN"), (np.isinf, "infinite")):
        counts = [int(test(item).sum()) for item in values]
        if not any(counts):
            continue
        first = next(b for b, n in enumerate(counts) if n)
        at = (first, *(int(i) for i in np.unravel_index(int(np.argmax(test(values[first]))), values.shape[1:])))
        are = "is" if sum(counts) == 1 else "are"
        text = f"In {name}, {sum(counts)} of {values.size} numbers {are} {what}, the first at {at}"
        if what == "infinite" and own == "float16":
            yield (
                f"{text}: float16 has no number above 65504, so larger numbers overflowed. Compute {name} in bfloat16 "
                "or float32, or outside autocast."
            )
        else:
            yield (
                f"{text}. They arose before the loss: check for a division by 0 (normalising a constant image), a "
                "logarithm or root of 0, an overflow in half precision, or a learning rate that is too high."
            )
