"""Pictures that are computed ahead: gradients on a slice of a real brain, and joint histograms of two images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twinloss import reference
from twinloss.harness.data import brain
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Twin
from twinloss.harness.site.record import Record
from twinloss.reference.steps.parzen import ParzenOptions, weights_and_slopes

SHIFTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)  # voxels, of 1 mm
GREY_MATTER = 2
LIGHTEST = 0.995  # the quantile of |gradient| that gets the full colour
PIXELS = 8  # of a bin


@dataclass(frozen=True)
class Picture:
    """An image file in `figures/`, and what it shows."""

    file: str
    caption: str


@dataclass(frozen=True)
class Histogram:
    """A joint histogram: of which two images, where its picture is, and their mutual information in nats."""

    label: str
    file: str
    information: float


@dataclass
class Pictures:
    """What was drawn, or in words why it was not."""

    note: str = ""
    gradients: dict[str, Picture] = field(default_factory=dict)
    histograms: list[Histogram] = field(default_factory=list)


def pictures(records: Sequence[Record], out: Path, with_real: bool) -> Pictures:
    """Draw all that needs real images."""
    made = Pictures()
    if not with_real:
        made.note = "left out, as the site was made with --no-real; twinloss report draws it"
        return made
    try:
        found = brain.load_brain()
    except ImportError as error:
        made.note = f"left out: {error}"
        return made
    out.mkdir(parents=True, exist_ok=True)
    for record in records:
        if record.twin.real:
            made.gradients[record.name] = _gradient(record, found, out)
    made.histograms = _histograms(found, out)
    return made


def _slice(images: Array) -> Array:
    """The middle axial slice."""
    return images[..., images.shape[-1] // 2]


def _case(twin: Twin) -> tuple[list[Array], dict[str, Any]]:
    """The first of a twin's real cases on one slice, and its options there."""
    case = twin.real[0]
    operands = [_slice(values) for values in case.operands().values()]
    operands[0] = operands[0].astype(np.float64)
    flat = {"ndim": 2} if "ndim" in twin.options else {}
    return operands, {**case.options, **flat}


def _gradient(record: Record, found: brain.Brain, out: Path) -> Picture:
    operands, options = _case(record.twin)
    gradient = record.twin.gradient(*operands, **options)[0]
    of_class = len(gradient) == len(brain.CLASSES)
    channel = GREY_MATTER if of_class else 0
    what = f"the logit of {brain.CLASSES[channel]}" if of_class else "the first component of the field"
    if len(gradient) == 1:
        what = "the intensity of the moving image"
    told = ", ".join(f"{name}={value}" for name, value in options.items())
    file = f"gradient-{record.name}.png"
    _draw(_slice(found.t1), operands[0][0, channel], gradient[channel], out / file)
    return Picture(
        file,
        f"The MNI152 brain, {what}, and the gradient of the reference in it ({told or 'defaults'}). "
        "Where it is blue, a step of training raises the value; where it is red, it lowers it.",
    )


def _draw(anatomy: Array, given: Array, gradient: Array, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    axes = figure.subplots(1, 3)
    limit = float(np.quantile(np.abs(gradient), LIGHTEST)) or float(np.abs(gradient).max()) or 1.0
    panels = (("T1", anatomy, "gray", None), ("input", given, "gray", None), ("gradient", gradient, "RdBu_r", limit))
    for axis, (title, image, colours, most) in zip(axes, panels, strict=True):
        least = None if most is None else -most
        shown = axis.imshow(np.rot90(image), colours, interpolation="nearest", vmin=least, vmax=most)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.colorbar(shown, ax=axes[-1], shrink=0.8, format="%.1e").ax.tick_params(labelsize=7)
    figure.savefig(path)


def _histograms(found: brain.Brain, out: Path) -> list[Histogram]:
    """The T1 image with itself, shifted, and warped by the field of `warp.py`."""
    from twinloss.harness.data.warp import load_warped

    fixed = _slice(found.t1).astype(np.float64)
    pairs = [(f"itself, shifted by {shift} mm" if shift else "itself", np.roll(fixed, shift, 0)) for shift in SHIFTS]
    pairs.append(("its warped copy", _slice(load_warped().moving)[0, 0].astype(np.float64)))
    made = []
    for n, (label, moving) in enumerate(pairs):
        file = f"joint-{n}.png"
        _draw_joint(_joint(moving, fixed), out / file)
        information = -float(reference.global_mutual_information_loss(moving[np.newaxis], fixed[np.newaxis]))
        made.append(Histogram(label, file, information))
    return made


def _joint(moving: Array, fixed: Array) -> Array:
    weights = weights_and_slopes(moving.ravel(), fixed.ravel(), ParzenOptions())
    joint: Array = np.sum([of_moving[0].T @ of_fixed[0] for of_moving, of_fixed in weights], axis=0)
    return joint / moving.size


def _draw_joint(joint: Array, path: Path) -> None:
    """Logarithmic, as most voxels are background; the fixed image's intensity runs upwards."""
    from matplotlib.image import imsave

    seen = np.log10(np.maximum(joint.T[::-1], 1e-7))
    imsave(path, np.kron(seen, np.ones((PIXELS, PIXELS))), cmap="viridis")
