"""The audit is fair to correct losses, finds what is wrong in others, and its reports print what they say."""

import importlib.util
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import monai
import numpy as np
import pytest
import torch

from twinloss.harness.auditing import audit as of_one_loss
from twinloss.harness.auditing.arguments import bad_arguments
from twinloss.harness.auditing.audit import at_the_ends, audited
from twinloss.harness.auditing.erratum import CONVENTION, DEFECT, OUTSIDE, SORTS
from twinloss.harness.auditing.libraries import LIBRARIES, PACKAGES, SEGMENTATION, make_importable
from twinloss.harness.auditing.peer import Clause, Peer
from twinloss.harness.auditing.probe import findings
from twinloss.harness.auditing.probes import documented_range, items_alone, module, stationary_mistakes
from twinloss.harness.auditing.snippets import run
from twinloss.harness.commands import audit_functions as functions
from twinloss.harness.commands.audit import LibraryError, as_markdown, audit, snippets
from twinloss.harness.commands.migration_examples import DIFFERENCES
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.model.operand import Operand

REPORTS = Path(__file__).parents[2] / "reports"


class Dice(torch.nn.Module):
    """A correct Dice loss."""

    def __init__(self, smooth_nr: float = 1e-5, smooth_dr: float = 1e-5, weight: float | None = None) -> None:
        super().__init__()
        self.smooth_nr, self.smooth_dr, self.weight = smooth_nr, smooth_dr, weight

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over items and channels."""
        if not input.numel():
            raise ValueError("input has no voxels")
        kind = input.dtype if input.is_floating_point() else torch.float32
        return (
            (self.terms(input.float(), target.float()) * (1.0 if self.weight is None else self.weight)).mean().to(kind)
        )

    def terms(self, x, y):
        x, y = x.flatten(2), y.flatten(2)
        return 1 - (2 * (x * y).sum(-1) + self.smooth_nr) / ((x + y).sum(-1) + self.smooth_dr)


class PromotingDice(Dice):
    """Its result has the common dtype of its arguments."""

    def forward(self, input, target):
        """Return the mean over items and channels."""
        return super().forward(input, target).to(torch.promote_types(input.dtype, target.dtype))


class ForgetfulDice(Dice):
    """It ignores the weight of a single channel."""

    def forward(self, input, target):
        """Return the mean over items and channels."""
        weight = 1 if input.shape[1] == 1 else self.weight or 1
        return (self.terms(input.float(), target.float()) * weight).mean().to(input.dtype)


class HardDice(Dice):
    """It rounds its target."""

    def forward(self, input, target):
        """Return the mean over items and channels."""
        return super().forward(input, (target > 0.5).to(input.dtype))


class LearningDice(Dice):
    """It counts its calls."""

    calls = 0

    def forward(self, input, target):
        """Return a loss that grows with each call."""
        self.calls += 1
        return super().forward(input, target) * self.calls


class CoupledDice(Dice):
    """Its items share their largest loss."""

    def terms(self, x, y):
        terms = super().terms(x, y)
        return terms + terms.max()


class GrowingDice(Dice):
    """Its buffer has a number for each class after the first call."""

    def __init__(self, weight: float | None = None) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(weight or 1.0))

    def terms(self, x, y):
        self.factor = self.factor.expand(x.shape[1])
        return super().terms(x, y) * self.factor


class CarelessDice(Dice):
    """It differs for targets of whole numbers, and accepts an empty batch."""

    def forward(self, input, target):
        """Return the mean over items and channels."""
        if not input.numel():
            return input.sum()
        return super().forward(input, target) + (0 if target.is_floating_point() else 1)


class LargeDice(Dice):
    """Its values are larger than those of a Dice loss."""

    def terms(self, x, y):
        return 1 + super().terms(x, y)


class DeafDice(Dice):
    """It ignores a mode that it does not know, and weights that are not one for each channel."""

    def __init__(self, mode: str = "mean", weights: list[float] | None = None) -> None:
        super().__init__()
        self.weights = weights or []

    def terms(self, x, y):
        """Return the terms, weighted if there is a weight for each channel."""
        fits = len(self.weights) == x.shape[1]
        return super().terms(x, y) * (torch.tensor(self.weights) if fits else 1)


class FreeDice(Dice):
    """It is 0 if two of its options are set."""

    def terms(self, x, y):
        return super().terms(x, y) * (0 if self.weight and not self.smooth_nr else 1)


PLAIN = (Dice, PromotingDice, ForgetfulDice, HardDice, LearningDice, CoupledDice, GrowingDice, CarelessDice, LargeDice,
         DeafDice, FreeDice)  # fmt: skip


@pytest.fixture
def peer(monkeypatch):
    """Return a function that makes a peer of one of the classes above."""
    module = types.ModuleType("some_library")
    module.__dict__.update({each.__name__: each for each in PLAIN})
    monkeypatch.setitem(sys.modules, "some_library", module)
    monkeypatch.setattr(of_one_loss, "COUNTS", {"float32": 12})
    return lambda name: Peer(name, "dice", "some_library", "its documentation", clauses=SEGMENTATION)


def found(peer):
    return [(each.sort, each.what) for each in audited(peer).errata]


def defects(peer):
    return [what for sort, what in found(peer) if sort == DEFECT]


def test_a_correct_loss_has_no_defect(peer):
    assert defects(peer("Dice")) == []


def test_promotion_of_dtypes_is_a_convention_and_does_not_hide_the_value(peer):
    rows = found(peer("PromotingDice"))
    assert (CONVENTION, "float64 in `y` makes the result float64") in rows
    assert not [row for row in rows if row[0] == DEFECT and "float16" not in row[1]]


def test_one_cause_is_one_row_whatever_the_option_values(peer):
    (what,) = defects(peer("ForgetfulDice"))
    assert "`weight`" in what
    assert "one class left" in what


def test_what_the_documentation_excludes_is_no_defect(peer):
    rows = found(peer("HardDice"))
    assert not [row for row in rows if row[0] == DEFECT]
    assert any(sort == OUTSIDE and "`soft_label`" not in what for sort, what in rows)


def test_a_failure_on_ordinary_input_is_not_shown_on_input_that_the_documentation_excludes(peer):
    zeros = Clause("inputs of zeros", lambda twin, case: not case.input.values.any(), "its documentation")
    assert [what for what in defects(replace(peer("LargeDice"), clauses=(zeros,))) if what.startswith("the value")]


def test_numbers_are_moved_to_the_ends_of_their_range(peer):
    (case,) = drawn(peer("Dice").twin(), "float32", {"soft_label": True}, None, 1, 3)
    numbers = Operand(np.linspace(0.1, 0.9, 8).reshape(1, 2, 4), "float32")
    moved = at_the_ends(case.with_operand("input", numbers).with_operand("target", numbers))
    assert set(moved.input.values.flat) == {0, 1 / 32, 31 / 32, 1}
    assert set(moved.operands["target"].values.flat) == {0, 1}


def test_a_loss_with_a_memory_is_found(peer):
    assert any(what.startswith("a call changes the answer of the next one") for what in defects(peer("LearningDice")))


def told(peer, probes):
    return [(each.sort, each.what) for each in findings(peer, probes(peer, peer.twin()))]


@pytest.mark.parametrize(
    ("loss", "probes", "expected"),
    [
        ("CoupledDice", items_alone, (DEFECT, "the loss of an item depends on the rest of the batch")),
        ("GrowingDice", module, (DEFECT, "after a call, a new loss does not accept its `state_dict`")),
        ("CarelessDice", bad_arguments, (CONVENTION, "another answer for the same numbers as uint8 in `y`")),
        ("CarelessDice", bad_arguments, (OUTSIDE, "an empty batch is accepted")),
        ("DeafDice", bad_arguments, (OUTSIDE, '`mode="junk"` is accepted')),
        ("DeafDice", bad_arguments, (OUTSIDE, "`weights=[2.0]` is accepted, and ignored")),
        (
            "FreeDice",
            stationary_mistakes,
            (DEFECT, "a wrong prediction costs nothing, with `smooth_nr=0.0` and `weight=2.0`"),
        ),
        ("LargeDice", documented_range, (DEFECT, "the value is outside its documented range")),
    ],
)
def test_a_property_that_does_not_hold_is_found_without_a_reference(peer, loss, probes, expected):
    kept = replace(peer(loss), lowest=0.0, highest=1.0, range_source="its documentation")
    assert expected in told(kept, probes)
    assert expected not in told(replace(kept, name="Dice"), probes)


def test_options_are_combined_on_batches_of_several_classes(peer):
    twin = of_one_loss._of_several(peer("Dice").twin())
    shapes = {case.input.values.shape[:2] for case in drawn(twin, "float32", {}, None, 4, 0)}
    assert shapes == {(2, 3)}


def test_every_loss_that_monai_has_is_audited():
    # Its benchmark names MONAI's loss.
    assert {peer.like for peer in LIBRARIES["monai"]} == {twin.name for twin in TWINS if twin.usual.peer}


# The differences of `twinloss migration` that MONAI 1.6.1 shows, and the row of the errata that finds each.
KNOWN = {
    ("all", "The result has the dtype"): "convention.*float64 in `y` makes the result float64",
    ("all", "Labels that are not a class"): "outside.*a label that is no whole number is accepted",
    ("all", "Class weights are options"): "convention.*its `state_dict` holds options",
    ("DiceLoss", "`weight` also applies"): r"defect \| DiceLoss: the value is off.*`weight`",
    ("DiceLoss", "`ignore_index` leaves"): "convention.*`ignore_index`.*NaN in excluded voxels",
    ("DiceLoss", "`squared_pred` takes"): "convention.*an error is raised.*arguments of different types",
    ("MaskedDiceLoss", "Masked voxels do not count"): "convention.*NaN in excluded voxels",
    ("TverskyLoss", "`reduction"): r"convention \| \w+: the shape of the value is another.*`reduction`",
    ("FocalLoss", "A logit of"): r"convention \| \w+: .*infinity",
    ("FocalLoss", "A negative `gamma`"): r"outside.*FocalLoss: `gamma=-1.0` is accepted",
    ("BendingEnergyLoss", "A field may have any number"): "outside.*a field without exactly one component per axis",
    ("BendingEnergyLoss", "The first argument"): 'outside.*`normalize="sum"` is accepted',
    ("DiffusionLoss", "A string for"): 'outside.*`normalize="sum"` is accepted',
    ("DiffusionLoss", "First differences"): "DiffusionLoss: a field that alternates between 1 and -1 costs nothing",
    ("LocalNormalizedCrossCorrelationLoss", "The triangular"): r"defect \| Local\w+: .*`kernel_type`",
    ("LocalNormalizedCrossCorrelationLoss", "A small contrast"): r"defect \| Local\w+: .*large intensities",
    ("GlobalMutualInformationLoss", "A small `sigma_ratio`"): r"defect \| Global\w+: `sigma_ratio=0.01`",
    (
        "FocalLoss",
        "`include_background=False` does",
    ): r"defect \| FocalLoss: a wrong prediction costs nothing.*`use_soft",
    ("DeepSupervisionLoss", "A list of weights"): r"outside.*DeepSupervisionLoss: `weights=\[2.0\]` is accepted, and",
    ("GlobalMutualInformationLoss", "b-spline: each item"): r"defect \| Global\w+: .*depends on the rest of the batch",
    (
        "GlobalMutualInformationLoss",
        "b-spline: the loss of a constant",
    ): r"defect \| Global\w+: .*not finite.*`kernel_type`",
}
# Those that MONAI 1.6.1 does not show, or that are documented.
UNKNOWN = {
    "as ours": [
        ("DiceLoss", "`reduction"), ("MaskedDiceLoss", "The mask is applied"), ("GeneralizedDiceLoss", "`reduction"),
        ("GeneralizedWassersteinDiceLoss", "The items"), ("FocalLoss", "`reduction"), ("FocalLoss", "A single channel"),
        ("FocalLoss", "The gradient is finite"), ("DiceCELoss", "A single channel"), ("DiceCELoss", "Soft targets"),
        ("BendingEnergyLoss", "Second differences"),
    ],
    "documented": [
        ("GeneralizedWassersteinDiceLoss", "`dist_matrix` may be nested lists"), ("FocalLoss", "The logits go"),
        ("DiceFocalLoss", "The focal term"), ("GeneralizedDiceFocalLoss", "The focal term"),
        ("MaskedLoss", "The mask is applied"), ("LocalNormalizedCrossCorrelationLoss", "A flat window"),
    ],
    "the order or the names of arguments": [
        ("FocalLoss", "The fourth argument"), ("DiceCELoss", "`weight` applies"),
        ("GlobalMutualInformationLoss", "The first argument"),
    ],
    "a typed error, at the first call": [("MultiScaleLoss", "Invalid scales")],
}  # fmt: skip


def test_every_difference_of_the_migration_table_is_found_or_no_defect():
    told = [*KNOWN, *(each for listed in UNKNOWN.values() for each in listed)]
    for difference in DIFFERENCES:
        same = [key for key in told if key[0] == difference.loss and difference.here.startswith(key[1])]
        assert len(same) == 1, difference.here


@pytest.mark.parametrize("key", KNOWN, ids=" ".join)
def test_the_audit_finds_what_the_migration_table_shows(key):
    text = (REPORTS / "errata.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line for line in rows if re.search(KNOWN[key], line)]


def test_the_audit_finds_that_the_last_bin_of_the_b_spline_is_moved():
    text = (REPORTS / "errata.md").read_text(encoding="utf-8")
    assert re.search(r"defect \| GlobalMutualInformationLoss: the value is off by \d+%, with `kernel_type` \|", text)
    assert "a voxel of the last bin keeps its position" in text


def reports():
    return sorted([*REPORTS.glob("errata*.md"), *(REPORTS / "upstream").glob("*.md")])


@pytest.mark.parametrize("path", reports(), ids=lambda path: path.stem)
def test_the_printed_lines_print_what_the_report_says(path):
    library = path.stem.partition("-")[2] or "monai" if path.parent == REPORTS else path.stem
    if library in functions.LIBRARIES:
        pytest.skip("its functions are judged as pairs")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    make_importable(library)
    found = snippets(path.read_text(encoding="utf-8"))
    assert found
    wrong = [code for code, prints in found if not alike(run(code), prints)]
    assert not wrong, wrong[0]


def alike(got, told):
    """Return whether two texts differ in the last digits of their numbers only; errors are compared by their type."""
    errors = [re.match(r"(\w+Error)\b", text) for text in (got, told)]
    if all(errors):
        return errors[0][1] == errors[1][1]
    number = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
    numbers = [[float(each) for each in number.findall(text)] for text in (got, told)]
    return number.sub("#", got) == number.sub("#", told) and numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-6)


def test_the_lines_of_the_report_do_not_use_twinloss():
    assert not [code for path in reports() for code, _ in snippets(path.read_text("utf-8")) if "twinloss" in code]


def test_the_report_counts_causes_by_class():
    text = (REPORTS / "errata.md").read_text(encoding="utf-8")
    assert f"# monai {monai.__version__} beside its documentation" in text
    rows = re.findall(r"^\| [a-z_]+ \| \d+ \| ([a-z ]+) \|", text, re.M)
    for sort in SORTS:
        assert f"| {sort} | {rows.count(sort)} |" in text


def test_the_report_is_what_the_audit_says():
    rows = [
        line for line in (REPORTS / "errata.md").read_text("utf-8").splitlines() if line.startswith("| diffusion |")
    ]
    made = as_markdown("monai", audit("monai", ["diffusion"]), 0).splitlines()
    told = [re.sub(r" \d+ ", " ", line) for line in rows]
    assert {re.sub(r" \d+ ", " ", line) for line in made if line.startswith("| diffusion |")} >= set(told)


def test_a_library_that_is_unknown_or_not_installed_or_lacks_a_loss_is_refused(monkeypatch):
    with pytest.raises(LibraryError, match="known are monai"):
        audit("monay")
    with pytest.raises(LibraryError, match="kornia has no counterpart of lncc, only of dice, focal, tversky"):
        audit("kornia", ["dice", "lncc"])
    monkeypatch.setitem(PACKAGES, "kornia", "no-such-package")
    with pytest.raises(LibraryError, match="pip install no-such-package"):
        audit("kornia")


def test_a_cluster_makes_no_difference():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        assert audit("monai", ["diffusion"], cluster=cluster.scheduler_address) == audit("monai", ["diffusion"])
