"""Precomputed images: gradients on a slice of a real brain, and joint histograms of two images."""

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

SHIFTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)  # in voxels of 1 mm
GREY_MATTER = 2
LIGHTEST = 0.995  # the quantile of |gradient| at which colours saturate
PIXELS = 8  # per bin


@dataclass(frozen=True)
class Picture:
    """An image file in `figures/` and its caption."""

    file: str
    caption: str


@dataclass(frozen=True)
class Histogram:
    """A joint histogram: a label for the two images, the image file, and their mutual information in nats."""

    label: str
    file: str
    information: float


@dataclass
class Pictures:
    """The images that were drawn, or a note that explains why there are none."""

    note: str = ""
    gradients: dict[str, Picture] = field(default_factory=dict)
    histograms: list[Histogram] = field(default_factory=list)


def pictures(records: Sequence[Record], out: Path, with_real: bool) -> Pictures:
    """Draw everything that needs real images."""
    made = Pictures()
    if not with_real:
        made.note = "not drawn, because the site was built with --no-real; run twinloss report without it"
        return made
    try:
        found = brain.load_brain()
    except ImportError as error:
        made.note = f"not drawn: {error}"
        return made
    out.mkdir(parents=True, exist_ok=True)
    for record in records:
        if record.twin.real:
            made.gradients[record.name] = _gradient(record, found, out)
    made.histograms = _histograms(found, out)
    return made


def _slice(images: Array) -> Array:
    """Return the middle axial slice."""
    return images[..., images.shape[-1] // 2]


def _case(twin: Twin) -> tuple[list[Array], dict[str, Any]]:
    """Return the arguments and options of a twin's first real case, reduced to one slice."""
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
        f"The MNI152 brain, {what}, and its gradient by the reference ({told or 'default options'}). "
        "Gradient descent raises the input where the gradient is blue, and lowers it where it is red.",
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
    """Draw the joint histograms of the T1 image with shifted copies and with its warped copy from `warp.py`."""
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
    """Draw a joint histogram in logarithmic colours, with the intensity of the fixed image upwards."""
    from matplotlib.image import imsave

    seen = np.log10(np.maximum(joint.T[::-1], 1e-7))
    imsave(path, np.kron(seen, np.ones((PIXELS, PIXELS))), cmap="viridis")
