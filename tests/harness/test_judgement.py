"""The bounds, on each side of each."""

from dataclasses import replace

import numpy as np
import pytest

from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.judgement import C, Precision, bound, distance, grade, unlike
from twinloss.harness.judging.trial import examine
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import gradient_bounds, judge, judge_gradient, judge_value, value_bounds
from twinloss.harness.losses.catalogue import find
from twinloss.harness.losses.segmentation import DICE
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Elementwise, Operand
from twinloss.harness.model.twin import Case

INPUT = np.array([[[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]]])
LABELS = np.array([[[0, 1, 1]]])


def case(dtype="float32", **options):
    operands = {"input": Operand(INPUT, dtype), "target": Operand(LABELS, "int64")}
    return Case(operands, {"softmax": True, "to_onehot_y": True} | options)


def exact(truth):
    return Answer(np.asarray(truth.value), np.asarray(truth.gradient))


@pytest.mark.parametrize(
    ("dtype", "u", "u_out"),
    [
        ("float32", 2**-24, 2**-24),
        ("float64", 2**-53, 2**-53),
        ("float16", 2**-24, 2**-11),
        ("bfloat16", 2**-24, 2**-8),
    ],
)
def test_precision_of_a_type(dtype, u, u_out):
    precision = Precision.of(dtype)
    assert precision.u == pytest.approx(u, rel=1e-3)
    assert precision.u_out == u_out


def test_the_reference_in_float64_is_allowed_its_own_rounding():
    assert Precision.of("float64", np.float64).u == 2**-52


def test_bound_is_the_documented_one():
    precision = Precision.of("float16")
    made = bound(np.array(3.0), np.array(2.0), precision, spread=0.5, own=0.25)
    assert made == pytest.approx(C * (0.5 + precision.u * 3) + 2 * 2**-11 + 0.25 + precision.tiny)


@pytest.mark.parametrize(("times", "verdict"), [(0.99, "pass"), (1.01, "fail")])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_value_just_inside_and_just_outside(dtype, times, verdict):
    # A huge factor keeps the plain computation's error out of the question.
    truth = Truth(DICE, case(dtype))
    allowed = value_bounds(truth, np.array(np.inf))
    error = times * allowed if times < 1 else allowed + (C + 1) * 1e-3
    assert judge_value(truth, truth.value + error).verdict == verdict


@pytest.mark.parametrize("block", [0, 1])
def test_gradient_is_judged_class_by_class(block):
    truth = Truth(DICE, case())
    allowed = gradient_bounds(truth, np.full((1, 2), np.inf))[0, block]
    fast = truth.gradient.copy()
    fast[0, block, 1] += 0.99 * allowed
    assert judge_gradient(truth, fast).verdict == "pass"
    fast[0, block, 1] += 1e-3
    found = judge_gradient(truth, fast)
    assert found.verdict == "fail"
    assert found.where == (0, block)


def test_a_small_class_is_not_hidden_behind_a_large_one():
    x = np.array([[[30.0, -30.0, 1.0], [0.0, 0.0, 0.0], [-12.0, -13.0, -12.0]]])
    operands = {"input": Operand(x, "float32"), "target": Operand(np.array([[[0, 1, 1]]]), "int64")}
    truth = Truth(DICE, Case(operands, {"softmax": True, "to_onehot_y": True}))
    fast = truth.gradient.copy()
    fast[0, 2] *= 1.001
    assert abs(fast - truth.gradient).max() < 1e-3 * abs(truth.gradient).max()
    assert judge_gradient(truth, fast).verdict == "fail"


def test_nan_and_infinity_must_meet():
    largest = Precision.of("float16").largest
    assert unlike(np.array([np.nan, 1.0, np.inf]), np.array([1.0, np.inf, 1.0]), largest).all()
    other = np.array([np.nan, np.inf, -np.inf]), np.array([np.inf, -np.inf, np.nan])
    assert unlike(*other, largest).all()
    assert not unlike(*other, largest, poles=True).any()
    assert not unlike(np.array([np.nan, 1.0, -np.inf]), np.array([np.nan, 2.0, -np.inf]), largest).any()


def test_overflow_of_the_result_type_is_no_fault():
    largest = Precision.of("float16").largest
    assert not unlike(np.array([np.inf, np.nan]), np.array([1e5, 1e5]), largest).any()
    assert unlike(np.array([5.0]), np.array([1e5]), largest).all()


@pytest.mark.parametrize("spoil", ["value", "gradient"])
def test_another_shape_fails(spoil):
    truth = Truth(DICE, case())
    answer = exact(truth)
    wrong = replace(answer, **{spoil: getattr(answer, spoil)[None]})
    assert {f.part: f.verdict for f in judge(truth, wrong)}[spoil] == "fail"


@pytest.mark.parametrize(("plain", "verdict"), [(0.6, "degraded"), (0.4, "fail")])
def test_degraded_is_at_most_twice_the_plain_error(plain, verdict):
    assert grade(np.array([1.0]), np.array([0.1]), lambda: np.array([plain])) == verdict
    assert grade(np.array([1.0]), np.array([1.0]), lambda: np.array([0.0])) == "pass"
    assert grade(np.array([np.nan]), np.array([1.0]), lambda: np.array([np.inf])) == "fail"


def test_distance_leaves_what_is_not_finite_to_unlike():
    np.testing.assert_array_equal(distance(np.array([np.nan, 1.0, np.inf]), np.array([0.0, 3.0, np.inf])), [0, 2, 0])


def test_at_a_tie_either_side_and_between_will_do():
    operands = {
        "input": Operand(np.array([[[0.5, 0.25]]]), "float32"),
        "target": Operand(np.array([[[0.5, 0.75]]]), "float32"),
    }
    truth = Truth(DICE, Case(operands, {"soft_label": True}))
    low, high = truth.gradient.copy(), truth.gradient.copy()
    for arguments in truth.beside(4):
        (near,) = truth.slopes.at(arguments).values()
        low, high = np.minimum(low, near), np.maximum(high, near)
    for gradient in (low, high, (low + high) / 2):
        assert judge_gradient(truth, gradient).verdict == "pass"
    assert judge_gradient(truth, high + 0.1 * (high - low).max()).verdict == "fail"


def test_kappa_knows_an_ill_conditioned_question():
    # 1 - (2I + 1)/(D + 0) with E = 1 is 0 by cancellation between data and a constant.
    operands = {"input": Operand(np.array([[[0.0]]]), "float32"), "target": Operand(np.array([[[1]]]), "int64")}
    truth = Truth(DICE, Case(operands, {"smooth_nr": 1.0, "smooth_dr": 0.0}))
    assert truth.value == 0
    assert truth.kappa(()) > 0.5


def test_kappa_is_finite_where_an_activation_has_no_slope():
    peak = Elementwise("1 / (1 + x * x)", "1 / (1 + x * x)", "-2 * x / (1 + x * x) ** 2")
    operands = {"input": Operand(np.zeros((1, 1, 2)), "float32"), "target": Operand(np.full((1, 1, 2), 0.3), "float32")}
    truth = Truth(find("dice_focal"), Case(operands, {"other_act": peak}))
    assert abs(truth.value) <= truth.kappa(()) < 10


def test_no_more_of_a_bound_is_worked_out_than_the_errors_need(monkeypatch):
    truth = Truth(DICE, case())
    asked = []
    for name in ("sizes", "spreads", "own_gradient"):
        found = getattr(truth, name)
        monkeypatch.setattr(truth, name, lambda of, name=name, found=found: asked.append(name) or found(of))
    small, large = (gradient_bounds(truth, np.full((1, 2), error)) for error in (0, np.inf))
    assert asked == ["sizes", "spreads", "own_gradient"]
    assert (small <= large).all()


def test_bits_are_three_at_the_bound():
    truth = Truth(DICE, case())
    allowed = value_bounds(truth, np.array(np.inf))
    found = judge_value(truth, truth.value + allowed)
    assert found.bits == pytest.approx(3, abs=0.01) or found.ratio > 1


def test_the_fast_twin_agrees_here():
    truth = Truth(DICE, case())
    assert [f.verdict for f in judge(truth, ask_fast(DICE, case()))] == ["pass", "pass"]


def of_generalized_dice(target, **activation):
    operands = {"input": Operand(INPUT, "float64"), "target": Operand(np.array(target), "float64")}
    return Truth(find("generalized_dice"), Case(operands, activation))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_hard_target_leaves_no_room_for_terms_that_a_soft_one_may_cancel(activation):
    truth = of_generalized_dice([[[0.0, 1, 1], [1, 0, 0]]], **{activation: True})
    without = of_generalized_dice([[[0.0, 1, 1], [1, 0, 0]]], **{activation: True})
    without.twin = replace(truth.twin, terms=DICE.terms)
    assert truth.sizes("input") == pytest.approx(without.sizes("input"))


def test_terms_that_a_soft_target_cancels_are_allowed_their_rounding():
    truth = of_generalized_dice([[[0.7, 0.04, 0.5], [0.3, 0.96, 0.5]]], sigmoid=True)
    assert (truth.sizes("input") > 1.5 * np.abs(truth.gradient).max(-1)).any()


def test_each_window_of_lncc_rounds_its_own_moments():
    # Both windows hold the same voxels, and their slopes cancel but for what each has rounded.
    pred, target = [[-3.0209871369286816, 4.806985787642175]], [[-2.8099783844930366, -1.7726370626441403]]
    operands = {"pred": Operand(np.array([[pred]]), "float64"), "target": Operand(np.array([[target]]), "float64")}
    case = Case(operands, {"ndim": 2, "reduction": "none"}, (1.75, -1.75))
    assert examine(find("lncc"), case).message == ""
    truth = Truth(find("lncc"), case)
    assert find("lncc").terms(truth).min() > 2 * np.abs(truth.gradient).max()


@pytest.mark.parametrize(
    ("target", "options", "names"),
    [
        ([[0.0, 0.0], [1.0, 0.5]], {}, ()),  # the first class is absent
        ([[0.5, 0.0], [1.0, 0.5]], {}, ("target",)),
        ([[0.0, 0.0], [1.0, 0.5]], {"w_type": "uniform"}, ("target",)),
        ([[1.0, 0.0], [1.0, 0.0]], {"ignore_index": 0}, ()),  # the second class has only an ignored voxel
    ],
)
def test_slope_in_a_target_is_not_compared_where_the_weight_of_a_class_jumps(target, options, names):
    operands = {"input": Operand(np.full((1, 2, 2), 0.25), "float64"), "target": Operand(np.array([target]), "float64")}
    twin = find("generalized_dice")
    assert twin.slopes(twin, Case(operands, options)) == names
