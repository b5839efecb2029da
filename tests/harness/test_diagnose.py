"""`twinloss diagnose`: healthy batches of every loss, and ill ones, each told what is wrong and how to mend it."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.diagnosis.batch_files import BatchError
from twinloss.harness.diagnosis.diagnose import diagnose
from twinloss.harness.losses.catalogue import catalogue

APP = with_all_commands()
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 3, 5, 7)).astype(np.float32)
LABELS = np.stack([RNG.permutation(35).reshape(1, 5, 7) % 3 for _ in range(2)])
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype(np.float32)
ONE_HOT = (LABELS == np.arange(3).reshape(1, 3, 1, 1)).astype(np.float32)
SCORE, SHARE, BINARY = LOGITS[:, :1], PROBABILITIES[:, :1], (LABELS > 0).astype(np.uint8)
MOVING, FIXED = RNG.random((2, 2, 1, 9, 9)).astype(np.float32)
FIELD = RNG.random((1, 3, 9, 9, 9)).astype(np.float32)
FINE = "Nothing is wrong with this batch: reference and fast loss agree in float32."
SOFTMAX, SIGMOID, BSPLINE = {"softmax": True}, {"sigmoid": True}, {"kernel_type": "b-spline"}


def but(values, index, value):
    made = values.copy()
    made[index] = value
    return made


def large(values):
    return np.tile(values, (1, 1, 4, 4))


def last(values):
    return np.moveaxis(values, 1, -1)


def said(made):
    return " ".join(made.verdict)


def table(made, title):
    return next(rows for name, _, rows in made.tables if name == title)


def healthy(twin):
    if twin.operands == ("pred",):
        return {"pred": FIELD}
    if "input" not in twin.operands:
        return {"pred": MOVING, "target": FIXED}
    return {"input": LOGITS, "target": LABELS, "mask": np.ones((2, 1, 5, 7))}


@pytest.mark.parametrize("twin", catalogue().values(), ids=lambda twin: twin.name)
def test_a_healthy_batch_of_each_loss_is_said_to_be_one(twin):
    made = diagnose(twin.name, healthy(twin))
    assert made.findings == []
    assert FINE in made.verdict


@pytest.mark.parametrize(("like", "input", "target", "options"), [
    ("dice", LOGITS, ONE_HOT, SOFTMAX), ("dice", LOGITS, ONE_HOT, SIGMOID), ("dice", PROBABILITIES, LABELS, {}),
    ("dice", SHARE, BINARY, {}), ("tversky", SHARE, SHARE[::-1].copy(), {}), ("dice_ce", SCORE, BINARY, SIGMOID),
    ("focal", SCORE, BINARY, {}), ("dice_focal", LOGITS, np.maximum(ONE_HOT, ONE_HOT[:, ::-1]),
                                   {"sigmoid": True, "use_softmax": False}),
    ("dice", np.zeros_like(LOGITS), LABELS, SOFTMAX), ("dice_ce", LOGITS, but(LABELS, (0, 0, 0), 255),
                                                       {"softmax": True, "ignore_index": 255}),
    ("dice", SCORE, but(BINARY, (0, 0, 0), 255), {"sigmoid": True, "ignore_index": 255}),
    ("dice", LOGITS, but(LABELS, 0, 0), {"softmax": True, "batch": True}),
    ("focal", LOGITS, np.zeros_like(LABELS), {}),
    ("tversky", LOGITS, np.maximum(LABELS, 1), {"softmax": True, "include_background": False}),
])  # fmt: skip
def test_a_healthy_batch_of_each_kind_is_said_to_be_one(like, input, target, options):
    assert diagnose(like, {"input": input, "target": target}, options).findings == []


ILL = {
    "mask of 255": ("dice", SCORE, BINARY * 255, SIGMOID, "from 0 to 255, but must lie in [0, 1]", "Divide it by 255"),
    "mask of -1 and 1": ("dice", SCORE, BINARY * 2.0 - 1, SIGMOID, "from -1 to 1", "Rescale it, or compare"),
    "binary labels": ("dice_ce", SCORE, LABELS, SIGMOID, "from 0 to 2", "pass to_onehot_y=True"),
    "dense labels": ("tversky", LOGITS, LABELS.repeat(3, 1), SOFTMAX, "from 0 to 2", "keep one channel of them"),
    "grey target": ("dice", SCORE, 9 * SHARE, SIGMOID, "but must lie in [0, 1]", "Divide it by its maximum"),
    "no foreground": ("dice", SCORE, but(BINARY, 0, 0), SIGMOID, "item 0 is empty, without a", "batch=True"),
    "background alone": ("dice", LOGITS, but(LABELS, 1, 0), SOFTMAX, "target of item 1 holds only background",
                         "sample"),
    "absent label": ("dice", LOGITS, LABELS % 2, SOFTMAX, "Items 0, 1 have no voxel of class 2", "pool the items"),
    "absent channel": ("dice", LOGITS, but(ONE_HOT, (1, 2), 0), SIGMOID, "Item 1 has no voxel of class 2",
                       "check the labels"),
    "empty GDL": ("generalized_dice", LOGITS, 0 * LABELS, {"softmax": True, "include_background": False},
                  "1 - smooth_nr / smooth_dr, with a gradient of 0", "sample patches with foreground"),
    "two classes at once": ("dice_ce", LOGITS, np.maximum(ONE_HOT, ONE_HOT[:, ::-1]), SOFTMAX,
                            "46 voxels the target does not sum to 1", "sigmoid=True instead of softmax=True"),
    "softmax twice": ("dice", PROBABILITIES, LABELS, SOFTMAX, "it seems to hold probabilities, but softmax=True",
                      "or remove softmax=True"),
    "sigmoid twice": ("dice", SHARE, BINARY, SIGMOID, "probabilities, but sigmoid=True expects logits",
                      "remove sigmoid=True"),
    "softmax before CE": ("dice_ce", PROBABILITIES, LABELS, {}, "but the cross entropy expects logits", "the logits"),
    "sigmoid before CE": ("dice_ce", SHARE, BINARY, {}, "but the cross entropy expects logits", "the logits"),
    "softmax before focal": ("focal", PROBABILITIES, LABELS, {}, "but the focal term expects logits", "the logits"),
    "sigmoid before focal": ("dice_focal", SHARE, BINARY, {}, "but the focal term expects logits", "the logits"),
    "softmax before GWDL": ("generalized_wasserstein_dice", PROBABILITIES, LABELS, {}, "Loss expects logits",
                            "the logits"),
    "no activation": ("dice", LOGITS, LABELS, {"softmax": False}, "seems to hold logits",
                      "Pass softmax=True, or sigmoid"),
    "no sigmoid": ("tversky", SCORE, BINARY, {"sigmoid": False}, "seems to hold logits", "Pass sigmoid=True"),
    "softmax of one": ("dice", SCORE, BINARY, SOFTMAX, "softmax=True is ignored", "pass sigmoid=True"),
    "swapped": ("dice", BINARY, SHARE, {}, "they seem to be swapped", "loss(prediction, target)"),
    "argmax": ("dice", BINARY.astype(np.float32), BINARY, {}, "after argmax or a threshold", "logits or probabilities"),
    "labels as input": ("dice", LABELS, BINARY, {"sigmoid": True}, "whole numbers from 0 to 2",
                        "logits or probabilities"),
    "NaN": ("dice", but(LOGITS, (1, 2, 3, 4), np.nan), LABELS, SOFTMAX,
            "1 of 210 numbers is NaN, the first at (1, 2, 3, 4)",
            "division by 0"),
    "NaN in the target": ("dice", SCORE, but(SHARE, (1, 0, 3, 4), np.nan), SIGMOID,
                          "In target, 1 of 70 numbers is NaN",
                          "division by 0"),
    "half overflow": ("dice", but(LOGITS.astype(np.float16), (0, 1, 1, 1), np.inf), LABELS, SOFTMAX,
                      "1 of 210 numbers is infinite, the first at (0, 1, 1, 1)",
                      "float16 has no number above 65504"),
    "saturated": ("dice", 2000 * np.sign(SCORE), BINARY, SIGMOID, "gradient is 0 everywhere",
                  "a learning rate that is too"),
    "large logits": ("dice_ce", 900 * LOGITS, LABELS, SOFTMAX, "The logits reach 2158", "images that are not"),
    "all ignored": ("dice_ce", LOGITS, but(LABELS, 0, 255), {"softmax": True, "ignore_index": 255},
                    "excludes every voxel of item 0", "sample patches that hold other labels"),
    "fractions": ("dice", LOGITS, LABELS * 0.9, SOFTMAX, "0.9 (24 voxels)", "resample them by nearest neighbour"),
    "label 255": ("focal", LOGITS, but(LABELS, (0, 0, 0, 0), 255), {}, "255 (1 voxel)", "pass ignore_index=255"),
    "label 7": ("dice", LOGITS, but(LABELS, (0, 0, 0), 7), SOFTMAX, "7 (7 voxels)", "a channel for each class"),
    "from 1": ("dice", LOGITS, LABELS + 1, SOFTMAX, "whole numbers in [0, 3)", "seem to start at 1, so subtract 1"),
    "labels of 255": ("dice", LOGITS[:, :2], BINARY * 255, SOFTMAX, "whole numbers in [0, 2)", "divide it by 255"),
    "no channel": ("dice", LOGITS, LABELS[:, 0], SOFTMAX, "has shape (2, 5, 7), without an axis",
                   "target.unsqueeze(1)"),
    "no batch": ("dice", LOGITS[0], LABELS[0], SOFTMAX, "The batch axis seems to be missing", "input.unsqueeze(0)"),
    "item alone": ("dice", LOGITS[0], LABELS[0, 0], SOFTMAX, "batch axis seems to be missing", "input.unsqueeze(0)"),
    "channels last": ("dice", last(large(LOGITS)), large(LABELS)[:, 0], SOFTMAX, "the channels seem to be last",
                      "input.movedim(-1, 1)"),
    "channel last": ("dice", last(large(SCORE)), last(large(BINARY)), SIGMOID, "the channels seem to be last",
                     "input.movedim(-1, 1)"),
    "classes last": ("dice", last(large(LOGITS)), last(large(ONE_HOT)), SOFTMAX, "the channels seem to be last",
                     "input.movedim(-1, 1)"),
    "0 / 0": ("dice", 0 * SHARE, 0 * BINARY, {"smooth_nr": 0.0, "smooth_dr": 0.0}, "so the formula itself produces it",
              "set smooth_nr and smooth_dr to a small number"),
}  # fmt: skip


@pytest.mark.parametrize(("like", "input", "target", "options", "what", "mend"), ILL.values(), ids=ILL)
def test_what_ails_a_segmentation_is_told_with_its_mend(like, input, target, options, what, mend):
    made = diagnose(like, {"input": input, "target": target}, options)
    assert what in said(made)
    assert any(mend in sentence for sentence in made.findings)
    assert FINE not in made.verdict


ASKING = torch.tensor(FIXED, requires_grad=True)
ILL_IMAGES = {
    "clamped": ("mutual_information", 1000 * MOVING, FIXED, {}, "of pred range from", "kernel_type='b-spline'"),
    "clamped target": ("mutual_information", MOVING, -FIXED, {}, "of target range from", "(x - x.min())"),
    "one bin": ("mutual_information", MOVING / 1000, FIXED, {}, "of pred range from", "Scale them to [0, 1]"),
    "flat for MI": ("mutual_information", 0 * MOVING, FIXED, {}, "pred is constant in items 0, 1", "cropped, windowed"),
    "flat for b-spline": ("mutual_information", MOVING, 0 * FIXED, BSPLINE, "target is constant", "cropped, windowed"),
    "swapped": ("mutual_information", torch.tensor(MOVING), ASKING, BSPLINE, "exactly 0", "loss(warped, fixed)"),
    "flat for LNCC": ("lncc", MOVING, but(FIXED, 1, 5), {}, "target is constant in item 1", "hold only air"),
    "flat in scales": ("multi_scale", but(MOVING, 0, 5), FIXED, {}, "pred is constant in item 0", "cropped, windowed"),
    "low contrast": ("lncc", MOVING / 100, FIXED / 100, {}, "smooth_nr and smooth_dr dominate", "Scale both images"),
    "NaN": ("lncc", MOVING, but(FIXED, (0, 0, 1, 2), np.nan), {}, "first at (0, 0, 1, 2)", "division by 0"),
    "channel last": ("lncc", last(large(MOVING)), last(large(FIXED)), {}, "channels seem to be last", "pred.movedim"),
}  # fmt: skip


@pytest.mark.parametrize(("like", "pred", "target", "options", "what", "mend"), ILL_IMAGES.values(), ids=ILL_IMAGES)
def test_what_ails_a_pair_of_images_is_told_with_its_mend(like, pred, target, options, what, mend):
    made = diagnose(like, {"pred": pred, "target": target}, options)
    assert what in said(made)
    assert any(mend in sentence for sentence in made.findings)
    assert FINE not in made.verdict


@pytest.mark.parametrize(("field", "what"), [
    (np.moveaxis(FIELD, 1, -1), "the channels seem to be last"), (0 * FIELD, "The field is constant (0)"),
    (FIELD[:, :2], "with 3 spatial axes has 3 components"),
    (but(FIELD, (0, 1, 2, 3, 4), np.inf), "the first at (0, 1, 2, 3, 4)"),
])  # fmt: skip
@pytest.mark.parametrize("like", ["bending_energy", "diffusion"])
def test_what_ails_a_field_is_told(like, field, what):
    assert what in " ".join(diagnose(like, {"ddf": field}).findings)


@pytest.mark.parametrize(("value", "what"), [(0.0, "The mask of item 0 is 0 everywhere"), (255.0, "mask > 0")])
def test_what_ails_a_mask_is_told(value, what):
    mask = but(np.ones((2, 1, 5, 7)), 0, value)
    assert what in " ".join(diagnose("masked_dice", {"input": LOGITS, "target": LABELS, "mask": mask}).findings)


def test_flat_windows_of_healthy_images_are_no_fault_but_told():
    moving, fixed = (np.pad(image, ((0, 0), (0, 0), (9, 9), (9, 9))) for image in (MOVING, FIXED))
    made = diagnose("lncc", {"pred": moving, "target": fixed})
    assert made.findings == []
    assert "of the windows are flat" in said(made)
    assert "each contributes -1," in said(made)


def test_sizes_and_overlap_are_told_by_item_and_class():
    made = diagnose("dice", {"input": LOGITS, "target": LABELS})
    rows = table(made, "classes")
    assert [float(row[2]) for row in rows] == [float((LABELS[b] == c).sum()) for b in range(2) for c in range(3)]
    p = torch.from_numpy(LOGITS).softmax(1).sum((2, 3)).flatten()
    np.testing.assert_allclose([float(row[3]) for row in rows], p, rtol=1e-4)


def test_what_the_options_must_be_is_guessed_and_told():
    made = diagnose("dice", {"logits": LOGITS, "labels": LABELS})
    assert made.options == {"to_onehot_y": True, "softmax": True}
    assert "Assumed options" in said(made)
    assert "If your loss has no activation, this is the mistake" in said(made)
    assert diagnose("dice", {"x": LOGITS[:, :1], "y": BINARY}).options == {"sigmoid": True}
    assert diagnose("lncc", {"pred": LOGITS, "target": LOGITS}).options == {"ndim": 2}
    regions = {"input": LOGITS, "target": np.maximum(ONE_HOT, ONE_HOT[:, ::-1])}
    assert diagnose("dice", regions).options == {"sigmoid": True}
    assert diagnose("dice", {"input": LABELS, "target": BINARY}).options == {}
    whole = {"pred": (100 * MOVING).astype(np.int16), "target": FIXED}
    assert "pred has dtype int16, which has no gradient" in said(diagnose("lncc", whole))


@pytest.mark.parametrize(("like", "names"), [
    ("dice", ("pred", "label")), ("dice", ("logits", "seg")), ("dice", ("Output", "mask")),
    ("lncc", ("moved", "fixed")),
    ("lncc", ("moving_image", "fixed_image")), ("focal", ("probabilities", "segmentation")),
])  # fmt: skip
def test_usual_names_are_known_and_what_is_left_out_is_told(like, names):
    first, second = (MOVING, FIXED) if like == "lncc" else (SCORE, BINARY)
    made = diagnose(like, {"data": first, names[0]: first, names[1]: second, "epoch": 3})
    assert f"{names[0]} as " in made.notes[0]
    assert f"{names[1]} as target" in made.notes[0]
    assert made.notes[1] == f"Not used: data (array {first.shape}), epoch (int)."


@pytest.mark.parametrize("own", ["float16", "bfloat16", "float32", "float64"])
def test_rounding_is_a_fault_in_the_type_of_the_batch_and_else_a_hint(own):
    x = torch.tensor(LOGITS).to(getattr(torch, own))
    made = diagnose("focal", {"input": x, "target": LABELS}, {"weight": 1e-4})  # the least float16 is 6e-8
    told = made.findings if own == "float16" else made.hints
    assert ["In float16 the gradient is off by" in sentence for sentence in (*made.findings, *made.hints)] == [True]
    assert "due to rounding" in told[0]
    assert float(table(made, "value and gradient")[2][2]) < 1e-10  # float64


def test_who_cannot_see_which_image_asks_for_a_gradient_is_told_which_one_has_it():
    made = diagnose("mutual_information", {"pred": MOVING, "target": FIXED}, BSPLINE)
    assert made.findings == []
    assert "only pred has a gradient; that of target is exactly 0" in made.hints[0]


def test_numbers_beyond_a_half_are_told():
    hints = diagnose("dice_ce", {"input": but(LOGITS, (1, 2, 3, 4), 1e5), "target": LABELS}, SOFTMAX).hints
    assert any("the input reaches 1e+05, and float16 has no number above 65504" in sentence for sentence in hints)


def test_a_smoothing_term_that_decides_is_named():
    made = diagnose("generalized_dice", {"input": LOGITS, "target": LABELS}, {"smooth_nr": 5.0})
    assert "smooth_nr dominates" in said(made)
    assert "normalize_weights=True" in said(made)
    nothing = {"input": np.zeros((1, 2, 3)), "target": np.zeros((1, 2, 3))}
    assert "Without smooth_dr the value would be NaN" in said(diagnose("dice", nothing))


def test_a_large_batch_is_looked_at_in_part_and_in_all_of_it_for_faults():
    x = np.zeros((1, 4, 128, 128, 128), np.float32)
    x[0, 1] = 1
    x[0, 0, 127, 1, 1] = np.nan
    labels = np.arange(4, dtype=np.uint8).repeat(128**3 // 4).reshape(1, 1, 128, 128, 128)
    made = diagnose("dice", {"input": x, "target": labels}, SOFTMAX)
    assert "the loss was computed on a part of it: every n-th voxel along each axis, n = 2 × 2 × 2" in said(made)
    assert "the first at (0, 0, 127, 1, 1)" in said(made)
    assert sum(float(row[2]) for row in table(made, "classes")) == 64**3


@pytest.mark.parametrize(
    ("like", "found", "options", "message"),
    [
        ("dice", {"input": LOGITS, "something": LABELS}, {}, "--map target="),
        ("dice", {"image": LOGITS, "label": LABELS}, {}, "the output of the network"),
        ("dice", {"input": LOGITS + 0j, "target": LABELS}, {}, "left out: input .complex numbers"),
        ("dice", {"input": LOGITS, "target": LABELS[:, :, :4]}, {}, "DiceLoss rejects the batch.*Crop both"),
        ("dice", {"input": LOGITS, "target": ONE_HOT}, {"to_onehot_y": True}, "remove to_onehot_y"),
        ("dice", {"input": LABELS, "target": LOGITS}, {}, "seem to be swapped"),
        ("dice", {"input": LOGITS, "target": LABELS.swapaxes(2, 3)}, {}, "opposite order"),
        ("dice", {"input": LOGITS[:, :, :0], "target": LABELS[:, :, :0]}, {}, "input is empty"),
        ("dice", {"input": np.ones(3), "target": np.ones(3)}, {}, "losses take .batch, channels"),
        ("dice", {"input": LOGITS, "target": LABELS}, {"softmx": True}, "did you mean softmax"),
        ("dice", {"input": LOGITS, "target": LABELS}, {"softmax": True, "sigmoid": True}, "rejects its options"),
        ("dice", {"input": LOGITS, "target": ONE_HOT}, {"softmax": True, "ignore_index": 9}, "names no channel"),
        ("lncc", {"pred": MOVING, "target": FIXED[:1]}, {}, "must have the same shape"),
        ("multi_scale", {"pred": MOVING, "target": FIXED[:, :, 1:]}, {"loss": "squares"}, "must have the same shape"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(like, found, options, message):
    with pytest.raises(BatchError, match=message):
        diagnose(like, found, options)


def test_the_command_tells_and_exits(tmp_path):
    path = tmp_path / "batch.npz"
    np.savez(path, logits=LOGITS, target=LABELS)
    done = CliRunner().invoke(APP, ["diagnose", str(path), "--as", "dice_ce"])
    assert done.exit_code == 0, done.output
    assert "value and gradient" in done.output
    assert "Assumed options" in done.output
    assert FINE in " ".join(done.output.split())
    done = CliRunner().invoke(APP, ["diagnose", str(tmp_path / "none.npz"), "--as", "dice"])
    assert done.exit_code == 2
