"""The differences between `twinloss.compat.monai` and the MONAI whose arguments it takes, each with an example.

`twinloss migration` writes them into `compat-monai.md`. Examples that `twinloss.fast` shares are in
`migration_examples.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinloss.harness.commands.migration import Told, answer, example
from twinloss.harness.commands.migration_examples import DIFFERENCES, KINDS, Difference

OURS = "twinloss.compat.monai"

# Differences of `twinloss.compat.monai` for which `twinloss.fast` has no example.
FURTHER = (
    Difference(
        "all", "Sums over more than 65504 voxels are right in float16.", "Sums are never in half precision.",
        "x = torch.full((1, 1, 70000), 0.5).half()\nDiceLoss()(x, torch.ones(1, 1, 70000).half())",
        kept="NaN",
    ),
    Difference(
        "all", "Invalid class weights and distances raise a ValueError.", "MONAI checks negative weights alone.",
        'DiceLoss(weight=[float("nan"), 1.0])(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))',
        kept="error",
    ),
    Difference(
        "all", "Later changes of a tensor of weights do not change the loss.", "The options of a loss are numbers.",
        "w = torch.ones(2)\nloss = DiceLoss(weight=w); w[0] = 9\nloss(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))",
        kept="conduct",
    ),
    Difference(
        "all", "`torch.jit.script` raises a RuntimeError that names alternatives.",
        "The losses call kernels. `torch.jit.trace`, `torch.export` and `torch.compile` work.",
        "type(torch.jit.script(DiceLoss())).__name__",
        kept="conduct",
    ),
    Difference(
        "DiceLoss", "`ignore_index` must name a channel of a target with several channels, or raises a ValueError.",
        "Without such a channel, no voxel is left out. MONAI ignores the option.",
        "x = torch.zeros(1, 3, 2)\nDiceLoss(ignore_index=255)(x, x)",
        kept="error",
    ),
    Difference(
        "MaskedDiceLoss", "With `to_onehot_y`, masked voxels do not count either.",
        "MONAI masks the labels before it makes them one-hot, so that masked voxels become background.",
        "x, y = torch.zeros(1, 2, 1), torch.zeros(1, 1, 1, dtype=torch.long)\n"
        "MaskedDiceLoss(to_onehot_y=True)(x, y, torch.zeros(1, 1, 1))",
        kept="defect",
    ),
    Difference(
        "MaskedDiceLoss", "A pickled copy works.", "MONAI's recurses without end.",
        "import pickle\nx, loss = torch.ones(1, 1, 2), pickle.loads(pickle.dumps(MaskedDiceLoss()))\nloss(x, x, x)",
        kept="accepted",
    ),
    Difference(
        "MaskedDiceLoss", "A mask of another size raises an AssertionError.", "MONAI repeats a mask of one voxel.",
        "x = torch.ones(1, 1, 2)\nMaskedDiceLoss()(x, x, torch.ones(1, 1, 1))",
        kept="error",
    ),
    Difference(
        "MaskedLoss", "Masked voxels do not count, even if they are NaN.",
        "A product with the mask would be NaN, since 0 · NaN is NaN.",
        'x, y = torch.tensor([[[1.0, float("nan")]]]), torch.ones(1, 1, 2)\n'
        "MaskedLoss(torch.nn.MSELoss())(x, y, torch.tensor([[[1.0, 0.0]]]))",
        kept="NaN",
    ),
    Difference(
        "FocalLoss", "Without a softmax, a list as `alpha` also weights the negatives, by 1 − α, as a number does.",
        "This is the formula of Lin et al. (2017).",
        "x = torch.zeros(1, 2, 1)\nFocalLoss(alpha=[0.125, 0.25])(x, x)",
        kept="defect",
    ),
    Difference(
        "FocalLoss", "`alpha` outside [0, 1] raises a ValueError.", "1 − α would be a negative weight.",
        "x = torch.zeros(1, 2, 1)\nFocalLoss(alpha=2.0)(x, x)",
        kept="error",
    ),
    Difference(
        "FocalLoss", "With `ignore_index`, the mean is over voxels and classes, as without it.",
        "MONAI divides by the number of voxels alone.",
        "x, y = torch.zeros(1, 2, 1), torch.zeros(1, 1, 1)\nFocalLoss(to_onehot_y=True, ignore_index=1)(x, y)",
        kept="defect",
    ),
    Difference(
        "FocalLoss", "With `use_softmax`, a single channel is a binary problem.",
        "The softmax of one channel is 1, so that MONAI's loss is 0 and has no gradient.",
        "x = torch.zeros(1, 1, 1)\nFocalLoss(use_softmax=True)(x, x)",
        kept="defect",
    ),
    Difference(
        "FocalLoss",
        "With `use_softmax` and two classes, `include_background=False` leaves the background in the softmax.",
        "Without it, one channel would be left, and the loss would be 0.",
        "x, y, foreground = torch.zeros(1, 2, 1), torch.ones(1, 1, 1), dict(include_background=False)\n"
        "FocalLoss(to_onehot_y=True, use_softmax=True, **foreground)(x, y)",
        kept="defect",
    ),
    Difference(
        "FocalLoss", "The result has the dtype of the input.",
        "MONAI's is always float32, and that of `GeneralizedWassersteinDiceLoss` float64.",
        "x = torch.zeros(1, 2, 1).double()\nFocalLoss()(x, x).dtype",
        kept="conduct",
    ),
    Difference(
        "DiceCELoss", "`label_smoothing` also applies to a single channel.",
        "An option that is given must not be ignored.",
        "x = torch.ones(1, 1, 1)\nDiceCELoss(label_smoothing=0.25)(x, 0 * x)",
        kept="defect",
    ),
    Difference(
        "DiceCELoss", "The options of `twinloss.fast` are keyword arguments of all losses.", "Here it is `ce_weight`.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceCELoss(softmax=True, to_onehot_y=True, ce_weight=torch.tensor([1.0, 3.0]))(x, g)",
        kept="accepted",
    ),
    Difference(
        "DiceFocalLoss", "`weight` may have one value, if one class is left.",
        "MONAI raises an error for a list, and applies a number to the focal term alone.",
        "x = torch.zeros(1, 2, 1)\nDiceFocalLoss(include_background=False, weight=[2.0])(x, x)",
        kept="accepted",
    ),
    Difference(
        "DeepSupervisionLoss", "An unknown `weight_mode`, and weights that are negative or all 0, raise a ValueError.",
        "MONAI takes an unknown mode for `same`.",
        'x, y = [torch.zeros(1, 2, 2)], torch.ones(1, 1, 2)\n'
        'DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True), weight_mode="exponential")(x, y)',
        kept="error",
    ),
    Difference(
        "DeepSupervisionLoss", "Integer labels are resized.", "MONAI's interpolation takes floating-point numbers.",
        "x, y = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)], torch.ones(1, 1, 4, 4).long()\n"
        "DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True))(x, y)",
        kept="accepted",
    ),
    Difference(
        "DeepSupervisionLoss", "A target with fewer voxels than an output raises an AssertionError.",
        "MONAI repeats its voxels.",
        "x, y = [torch.zeros(1, 2, 4), torch.zeros(1, 2, 2)], torch.ones(1, 1, 2)\n"
        "DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True))(x, y)",
        kept="error",
    ),
    Difference(
        "DeepSupervisionLoss", "Losses of items and classes are added.", "MONAI adds numbers only.",
        "x, y = [torch.zeros(1, 2, 4), torch.zeros(1, 2, 2)], torch.ones(1, 1, 4)\n"
        'DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True, reduction="none"))(x, y).shape',
        kept="accepted",
    ),
    Difference(
        "MaskedLoss", "A mask with values outside [0, 1] raises a ValueError.",
        "A mask of 0 and 255 would multiply the logits by 255.",
        "x = torch.ones(1, 1, 2)\nMaskedLoss(torch.nn.MSELoss())(x, 0 * x, 255 * x)",
        kept="error",
    ),
    Difference(
        "MaskedLoss", "The target may lack the axis of channels, as labels for `torch.nn.CrossEntropyLoss`.",
        "MONAI's product with the mask has one axis more.",
        "x, y, mask = torch.zeros(1, 2, 3), torch.ones(1, 3).long(), torch.ones(1, 1, 3)\n"
        "MaskedLoss(torch.nn.CrossEntropyLoss())(x, y, mask)",
        kept="accepted",
    ),
    Difference(
        "all", "A flag that is neither True, False, 0 nor 1, and a boolean in place of a number, raise a TypeError.",
        "It is likely an argument in the wrong position.",
        "x = torch.zeros(1, 1, 2)\nDiceLoss(sigmoid=0.5)(x, x)",
        kept="error",
    ),
    Difference(
        "all", "Inputs without spatial axes, (B, C), have a loss for each item and class.",
        "MONAI pools all items and classes, or raises an error.",
        'x = torch.tensor([[0.5, 1.0]])\nDiceLoss(reduction="none")(x, x).shape',
        kept="convention",
    ),
    Difference(
        "FocalLoss", "Without a softmax, a soft target t weights the terms of positives and negatives by t and 1 − t.",
        "MONAI's focal factor is σ(−x (2t − 1))^γ, which does not depend on the logit at t = ½. Both agree for t of 0 "
        "and 1, and so do `DiceFocalLoss` and `GeneralizedDiceFocalLoss`.",
        "x = torch.full((1, 1, 1), 2.0)\nFocalLoss()(x, torch.full((1, 1, 1), 0.5))",
        kept="convention",
    ),
    Difference(
        "BendingEnergyLoss", "A string for `normalize` raises a TypeError.", "MONAI takes any string for True.",
        'BendingEnergyLoss("sum").reduction',
        kept="error",
    ),
)  # fmt: skip

# The wheel of MONAI 1.5.0 holds these tests, that of 1.6.1 does not, so that the command does not run them.
UNIT_TESTS = """
## MONAI's unit tests

The wheel of MONAI 1.5.0 holds the unit tests of these losses. All 190 that need neither a download nor
`torch.jit.script` were run with both libraries: 4 fail with MONAI 1.6.1, and 16 with `twinloss.compat.monai`.

| test | fail | reason |
|---|---|---|
| expected values of `MaskedDiceLoss` with a sigmoid | 3, also with MONAI 1.6.1 | They are those of masked logits. |
| texts of errors for fields of wrong shapes | 2, one also with MONAI 1.6.1 | The texts are others. |
| `DiceCELoss`, `weight=[0.5]` for a single channel | 1 | `weight` also applies to the Dice term. |
| `DiceFocalLoss` and `GeneralizedDiceFocalLoss` equal the sum of two losses to 1e-7 | 8 | One pass rounds once. |
| training with `GeneralizedWassersteinDiceLoss` | 1 | The loss is float32 like the input, and constant at the end. |
| `MaskedLoss(loss=[])` | 1 | It raises a TypeError, not a ValueError. |

Of newer tests in MONAI's repository, those of lists as `alpha` without a softmax and of buffers fail as well."""


def compare() -> list[Told]:
    """Run the example of each difference with `twinloss.compat.monai` and the installed MONAI.

    Raises:
        ImportError: if MONAI is not installed.
    """
    import monai  # type: ignore[import-untyped, unused-ignore]
    import monai.losses  # type: ignore[import-untyped, unused-ignore]

    from twinloss.compat import monai as ours

    kept = [each for each in (*DIFFERENCES, *FURTHER) if each.kept]
    kept.sort(key=lambda each: list(KINDS).index(each.kept))
    theirs = f"MONAI {monai.__version__}"
    return [Told(each, {OURS: answer(each.code, ours), theirs: answer(each.code, monai.losses)}) for each in kept]


def as_markdown(rows: Sequence[Told]) -> str:
    """Return the report: the kinds of differences, a table of all, then each with its reason and its example."""
    ours, theirs = rows[0].answers
    lines = [
        f"# {ours} beside {theirs}",
        "",
        "Made by `twinloss migration --out reports`. `from twinloss.compat.monai import *` takes the place of",
        "`from monai.losses import *` for the losses that twinloss has. The names, order and defaults of the",
        "arguments are MONAI's, and so are values, gradients and shapes, up to rounding. A test compares them on",
        "random inputs and options. This page lists all differences that we know. Their kinds are:",
        "",
        "| kind | differences | meaning |",
        "|---|---|---|",
        *(f"| {kind} | {sum(row.difference.kept == kind for row in rows)} | {why} |" for kind, why in KINDS.items()),
        "",
        f"| kind | loss | in {ours} | {ours} | {theirs} |",
        "|---|---|---|---|---|",
        *(
            f"| {' | '.join((row.difference.kept, row.difference.loss, row.difference.here, *row.answers.values()))} |"
            for row in rows
        ),
        *UNIT_TESTS.splitlines(),
    ]
    kind = None
    for row in rows:
        if row.difference.kept != kind:
            kind = row.difference.kept
            lines += ["", f"## {kind[0].upper()}{kind[1:]}"]
        lines += example(row)
    return "\n".join(lines) + "\n"
