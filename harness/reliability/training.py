"""Small real training runs: a U-Net on patches of a brain, and a displacement field between two images of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from twinloss import fast
from twinloss.harness.data.brain import load_brain
from twinloss.harness.judging.answers import expected_warnings_silent
from twinloss.harness.model.twin import Twin
from twinloss.harness.reliability.everyday import Everyday, everyday
from twinloss.harness.reliability.registry import Row, line

PATCHES, CLASSES = 2, 4
# Rounding errors grow as a network trains. So where MONAI computes the same loss, its curve may differ from ours by
# FACTOR times the distance among its own curves from STARTS starts, which differ only in their last bits. As the curves
# are float32, ROUNDOFFS roundoffs of the first loss are added. This must hold for the FIRST steps, before errors have
# grown, and for the whole run. Three starts would be too few: steps at which the loss jumps determine the distance,
# and only few curves have such a step. Of seven curves of Dice + CE, five stayed within 0.3 % of each other, and one
# was 2 % away from all others.
FACTOR, STARTS, ROUNDOFFS, FIRST = 3, 5, 8, 10
ROUNDOFF = 2.0**-24


@dataclass
class Curve:
    """The result of a training run.

    Attributes:
        name: the name of the loss.
        losses: the loss of each step, with our loss.
        before: the score before training.
        after: the score after training.
        peer: the loss of each step, with MONAI's loss.
        others: the same, for perturbed starts.
        fall: our loss before and after training.
    """

    name: str
    losses: list[float]
    before: float
    after: float
    peer: list[float] = field(default_factory=list)
    others: list[list[float]] = field(default_factory=list)
    fall: tuple[float, float] = (0.0, 0.0)

    def apart(self, steps: int) -> tuple[float, float]:
        """Return the largest distances of curves over the first `steps` steps, relative to the first loss.

        The first distance is that of MONAI's curve from ours, the second that among MONAI's own curves.
        """

        def distance(one: Sequence[float], other: Sequence[float]) -> float:
            return max(abs(a - b) for a, b in zip(one[:steps], other[:steps], strict=True)) / abs(self.losses[0])

        own = (distance(one, other) for one, other in combinations([self.peer, *self.others], 2))
        return distance(self.peer, self.losses), max(own)

    @property
    def alike(self) -> bool:
        """Whether rounding explains the distance between MONAI's curve and ours."""
        pairs = [self.apart(steps) for steps in (FIRST, len(self.losses))]
        return all(ours <= FACTOR * own + ROUNDOFFS * ROUNDOFF for ours, own in pairs)

    def __str__(self) -> str:
        (early, own_early), (ours, own) = (self.apart(steps) for steps in (FIRST, len(self.losses)))
        return (
            f"distance of MONAI's curve from ours {ours:.1e}, among its own from perturbed starts {own:.1e}; in the "
            f"first {FIRST} steps {early:.1e} and {own_early:.1e}"
        )


class UNet(nn.Module):
    """A U-Net with two levels and eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low, self.up = _block(1, 8), _block(8, 16), _block(24, 8)
        self.pool, self.last = nn.MaxPool3d(2), nn.Conv3d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        high = self.down(x)
        low = nn.functional.interpolate(self.low(self.pool(high)), scale_factor=2.0)
        made: Tensor = self.last(self.up(torch.cat([high, low], 1)))
        return made


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(before, after, 3, padding=1), nn.InstanceNorm3d(after), nn.ReLU())


def _descend(optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def patches(edge: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cubes of T1 with their labels, from random places of the brain, without end.

    Each patch contains all classes, because MONAI's generalised Dice treats an absent class differently.
    """
    brain, generator = load_brain(), torch.Generator().manual_seed(0)
    t1, labels = torch.from_numpy(brain.t1), torch.from_numpy(brain.labels[0, 0]).long()
    while True:
        pairs = []
        for _ in range(PATCHES):
            place = _place(t1.shape, edge, generator)
            while len(torch.unique(labels[place])) < CLASSES:
                place = _place(t1.shape, edge, generator)
            pairs.append((t1[place], labels[place]))
        yield torch.stack([a for a, _ in pairs])[:, None], torch.stack([b for _, b in pairs])[:, None]


def _place(shape: Sequence[int], edge: int, generator: torch.Generator) -> tuple[slice, ...]:
    """Return the position of a patch in the middle half of the image."""
    corner = (int(torch.randint(n // 4, 3 * n // 4 - edge, (1,), generator=generator).item()) for n in shape)
    return tuple(slice(start, start + edge) for start in corner)


def dice_score(logits: Tensor, labels: Tensor) -> float:
    """Return the mean Dice score of the classes that occur in the labels."""
    found, scores = logits.argmax(1, keepdim=True), []
    for c in range(CLASSES):
        p, g = found == c, labels == c
        if g.any():
            scores.append(2 * float((p & g).sum()) / float(p.sum() + g.sum()))
    return sum(scores) / len(scores)


def perturb(start: Sequence[Tensor], seed: int) -> None:
    """Perturb the weights by up to two roundoffs; seed 0 leaves them unchanged."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in start if seed else ():
            tensor.mul_(1 + 2 * ROUNDOFF * (2 * torch.rand(tensor.shape, generator=generator) - 1))


def segment(loss: Callable[..., Tensor], twin: Twin, steps: int, seed: int = 0, edge: int = 32) -> Curve:
    """Train the network with a loss, on patches with this edge; a non-zero seed perturbs its initial weights."""
    torch.manual_seed(0)
    network, source = UNet(), patches(edge)
    perturb(list(network.parameters()), seed)
    # SGD reveals a gradient with a wrong scale. The steps of Adam do not depend on the scale.
    optimizer = torch.optim.SGD(network.parameters(), 0.3, momentum=0.9, nesterov=True)
    held_out, truth = next(source)
    more = (torch.ones_like(held_out),) if "mask" in twin.operands else ()

    def state() -> tuple[float, float]:
        """Return loss and score of held-out patches; the loss of a step also depends on its patches."""
        with torch.no_grad():
            logits = network(held_out)
            return float(loss(logits, truth, *more)), dice_score(logits, truth)

    (first, before), losses = state(), []
    for _ in range(steps):
        x, labels = next(source)
        value = loss(network(x), labels, *more)
        _descend(optimizer, value)
        losses.append(float(value.detach()))
    last, after = state()
    return Curve(twin.name, losses, before, after, fall=(first, last))


def pair() -> tuple[Tensor, Tensor]:
    """Return a part of the T1 image, and a deformed copy of it."""
    size = 48
    t1 = torch.from_numpy(load_brain().t1)[60 : 60 + 2 * size : 2, 80 : 80 + 2 * size : 2, 50 : 50 + 2 * size : 2]
    fixed = t1[None, None].contiguous()
    generator = torch.Generator().manual_seed(0)
    coarse = 0.08 * torch.randn(1, 3, 4, 4, 4, generator=generator)
    return fixed, warp(fixed, nn.functional.interpolate(coarse, fixed.shape[2:], mode="trilinear", align_corners=True))


def warp(image: Tensor, field: Tensor) -> Tensor:
    """Sample the image at the positions displaced by a field (B, 3, *S), in units of half the image's extent."""
    identity = nn.functional.affine_grid(torch.eye(3, 4)[None], list(image.shape), align_corners=True)
    moved: Tensor = nn.functional.grid_sample(image, identity + field.movedim(1, -1), align_corners=True)
    return moved


def register(loss: Callable[..., Tensor], twin: Twin, steps: int, seed: int = 0) -> Curve:
    """Optimise a displacement field so that the warped moving image matches the fixed one.

    For a loss of fields, start from a random field and smooth it.
    """
    fixed, moving = pair()
    generator = torch.Generator().manual_seed(1)
    start = torch.zeros(1, 3, 12, 12, 12)
    if twin.of_fields:
        start = 0.05 * torch.randn(start.shape, generator=generator)
    perturb([start], seed)
    coarse = start.requires_grad_()
    smoothing = twin.name == "bending_energy"  # has a peer: SGD reveals a wrong scale, see `segment`
    optimizer = torch.optim.SGD([coarse], 1e-2, momentum=0.9) if smoothing else torch.optim.Adam([coarse], 5e-3)

    def score() -> float:
        with torch.no_grad():
            if twin.of_fields:
                return float(fast.BendingEnergyLoss(stencil="wide")(coarse))
            return float((warp(moving, _fine(coarse, fixed)) - fixed).square().mean())

    losses, before = [], score()
    for _ in range(steps):
        fine = _fine(coarse, fixed)
        value = loss(coarse * 24) if twin.of_fields else loss(warp(moving, fine), fixed)
        _descend(optimizer, value)
        losses.append(float(value.detach()))
    return Curve(twin.name, losses, before, score(), fall=(losses[0], losses[-1]))


def _fine(coarse: Tensor, image: Tensor) -> Tensor:
    return nn.functional.interpolate(coarse, image.shape[2:], mode="trilinear", align_corners=True)


def train(each: Everyday, steps: int, with_peer: bool, edge: int) -> Curve:
    """Train with our loss and, if MONAI computes the same loss, with MONAI's."""
    run = register if each.twin.of_registration else partial(segment, edge=edge)
    with expected_warnings_silent():
        curve = run(each.module(), each.twin, steps)
        bench = each.twin.usual
        if with_peer and bench.peer and not each.twin.unlike_monai:
            import monai.losses  # type: ignore[import-untyped, unused-ignore]

            peer = bench.peer(monai.losses)
            warnings.simplefilter("ignore")  # warnings of MONAI do not matter here
            curve.peer, *curve.others = (run(peer, each.twin, steps, seed).losses for seed in range(STARTS))
    return curve


# The curves of the latest training runs in this process.
CURVES: list[Curve] = []


@line("Real training")
def trainings(quick: bool) -> Iterator[Row]:
    """The loss falls, the score improves, and the curve is that of MONAI where MONAI computes the same."""
    CURVES.clear()
    for each in everyday():
        steps = 12 if quick else 150 if each.twin.of_registration else 200
        with_peer = not quick or each.name == "bending_energy"
        curve = train(each, steps, with_peer, edge=16 if quick else 32)
        CURVES.append(curve)
        of_images = each.twin.of_registration
        first, last = curve.fall
        better = curve.after < curve.before if of_images else curve.after > curve.before
        score = "bending energy" if each.twin.of_fields else "image distance" if of_images else "Dice score"
        told = f"loss {first:.3g} to {last:.3g}, {score} {curve.before:.3g} to {curve.after:.3g}"
        if curve.peer:
            told += f"; {curve}"
        good = last < first and better and (not curve.peer or curve.alike)
        yield Row(f"{steps} steps", told, good, each.name)


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Plot the curves of training runs."""
    from matplotlib.figure import Figure

    rows = -(-len(curves) // 4)
    figure = Figure(figsize=(12, 2 * rows), layout="constrained")
    for axes, curve in zip_longest(figure.subplots(rows, 4, squeeze=False).flat, curves):
        if curve is None:
            axes.remove()
            continue
        axes.plot(curve.losses, label="twinloss")
        if curve.peer:
            axes.plot(curve.peer, "--", label="MONAI")
        axes.set_title(f"{curve.name}: {curve.before:.3g} to {curve.after:.3g}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.legend(fontsize=7)
    figure.suptitle("Loss by step; in the titles Dice score or image distance before and after")
    figure.savefig(path, dpi=80, metadata={"Software": None})
