"""Pairs of a user's own functions: right and wrong kernels of five kinds, and descriptions that do not fit."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pair_examples as examples
import pytest
import torch
from typer.testing import CliRunner

from twinloss import harness
from twinloss.harness import Pair, PairError, arrays, check_pair, laws
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands import audit_functions as functions
from twinloss.harness.commands.audit import LibraryError
from twinloss.harness.commands.audit_functions import Checked, as_markdown, audit_functions, pairs_of
from twinloss.harness.commands.pairs_of_torch import PAIRS
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.hunting import pairs
from twinloss.harness.hunting.loading import TargetError
from twinloss.harness.hunting.pairs import as_twin
from twinloss.harness.hunting.self_check import survivors
from twinloss.harness.judging import slopes
from twinloss.harness.judging.judgement import C
from twinloss.harness.judging.trial import examine, only_rounding
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import judge, judge_value, value_bounds
from twinloss.harness.losses.catalogue import catalogue
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case

RIGHT = ("pass", "degraded", "imprecise")


def checked(pair, dtype="float32", examples=12):
    return check_pair(pair, dtypes=[dtype], examples=examples)


@pytest.mark.parametrize(
    "pair",
    [examples.NORM_MODULE, examples.LOSS, examples.STENCIL, examples.HISTOGRAM, examples.SCAN],
    ids=lambda pair: pair.name,
)
def test_a_right_kernel_passes(pair):
    made = checked(pair)
    assert made.verdict in RIGHT, made.rows[0].counterexample or made.rows[0].problems
    assert made.exit_code == 0
    assert set(made.rows[0].laws) == {law.name for law in made.twin.laws}


@pytest.mark.parametrize(
    ("pair", "wrong", "kind"),
    [
        (examples.NORM, examples.rms_norm_of_half_a_gradient, ("gradient",)),
        (examples.LOSS, examples.cross_entropy_over_all, ("value",)),
        (examples.STENCIL, examples.laplacian_without_last_row, ("value",)),
        (examples.HISTOGRAM, examples.histogram_without_upper_end, ("value", "error")),
        (examples.SCAN, examples.scan_of_chunks, ("value",)),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_wrong_kernel_fails_with_a_small_example(pair, wrong, kind):
    made = checked(replace(pair, fast=wrong), "float64")
    assert made.verdict == "fail"
    assert made.exit_code == 1
    assert made.rows[0].counterexample.kind in kind


def rms_norm(x, w, *, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


PAIR = Pair(
    "rms_norm", fast="pair_examples:fast_rms_norm", reference=rms_norm,
    inputs={"x": arrays("B T H"), "w": arrays("H")}, wrt=("x", "w"), options={"eps": (1e-6, 1.0)},
    laws=[laws.permutes("B")],
)  # fmt: skip


def case_of(dtype="float32", law=None, cotangent=None, **values):
    operands = {
        name: Operand(np.array(v), dtype if np.array(v).dtype.kind == "f" else "int64") for name, v in values.items()
    }
    return Case(operands, tested=dtype, law=law, cotangent=cotangent)


LAYER_NORM = next(pair for pair in PAIRS if pair.name == "layer_norm")
X = np.array([[[0.5, -1.25, 3.0], [1.0, 2.0, -0.75]]])
W = np.array([1.0, -2.0, 0.25])


def test_the_gradient_of_a_reference_is_that_of_its_formula():
    """By complex step, and by differences where the reference is not defined for complex numbers."""
    twin = as_twin(PAIR)
    truth = Truth(twin, case_of("float64", x=X, w=W, cotangent=(1.0, -0.5, 2.0)))
    assert truth.slopes.method == "complex step"
    r = 1 / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6)
    upstream = np.resize([1.0, -0.5, 2.0], X.shape)
    wanted = r * W * upstream - X * r**3 * (W * upstream * X).mean(-1, keepdims=True)
    np.testing.assert_allclose(truth.gradient[:6].astype(float), wanted.ravel(), rtol=1e-14)
    length = replace(PAIR, reference=lambda x, w, *, eps=1e-6: np.hypot(x, np.sqrt(eps)) * w)
    truth = Truth(as_twin(length), case_of("float64", x=X, w=W))
    assert truth.slopes.method == "differences"
    wanted = X / np.hypot(X, 1e-3) * W
    np.testing.assert_allclose(truth.gradient[:6].astype(float), wanted.ravel(), rtol=1e-10)


def test_the_bound_of_a_value_grows_with_its_conditioning():
    difference = Pair(
        "difference", fast=lambda x, y: x - y, reference=lambda x, y: x - y, inputs={"x": arrays("N"), "y": arrays("N")}
    )
    truth = Truth(as_twin(difference), case_of(x=[1000.0], y=[999.0]))
    (bound,) = value_bounds(truth, np.array([1.0]))
    u = 2.0**-24
    assert C * u * 100 < bound < C * u * 4000
    (near,) = value_bounds(truth, np.array([0.0]))
    assert near < 16 * u


def test_the_bound_of_a_sum_over_blocks_grows_with_their_number():
    x, bounds = np.ones((1000, 4)), []
    total = Pair("total", fast=lambda x: x.sum(), reference=lambda x: (x**2).sum(), inputs={"x": arrays("N M")},
                 takes="torch")  # fmt: skip
    for blocks, reference in (("", total.reference), ("N", total.reference), ("N", lambda x: (x**2).sum(1))):
        truth = Truth(as_twin(replace(total, blocks=blocks, reference=reference)), case_of(x=x))
        bounds.append(np.max(value_bounds(truth, np.zeros(1)) / truth.outputs[0]))
    assert bounds[0] == bounds[1] > 5 * bounds[2]


def test_a_complex_step_is_confirmed_where_the_outputs_cancel():
    """The sum of a normalised group is 0, whatever the numbers are."""
    pair = next(pair for pair in PAIRS if pair.name == "group_norm")
    case = case_of(x=[[[8192.5, 0.0, 0.0], [8192.0, 8192.5, 8193.0]]], w=[8192.0, 8000.0], b=[0.001, 0.001])
    trial = examine(as_twin(pair), replace(case, options={"groups": 2}))
    assert trial.truth.slopes.method == "complex step"
    assert trial.kind is None, trial.message


def float32_only(function):
    return lambda *inputs, **options: function(*(x.float() for x in inputs), **options).to(inputs[0].dtype)


SOFTMAX_SUM = Pair(
    "softmax_sum", fast=lambda x: x.softmax(-1).sum(-1), wrt="x", takes="torch",
    reference=lambda x: (lambda e: (e / e.sum(-1, keepdims=True)).sum(-1))(np.exp(x - x.max(-1, keepdims=True))),
    inputs={"x": arrays("N H", logits=True)},
)  # fmt: skip


def layer_norm_without_mean(x, w, b, eps=1e-5):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], w, eps) + b


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("pair", "wrong", "values"),
    [
        (examples.NORM, examples.rms_norm_of_half_a_gradient, {"x": [[[8384.0]], [[9984.0]]], "w": [0.625]}),
        (LAYER_NORM, layer_norm_without_mean,
         {"x": np.full((257, 3), 0.8125), "w": [0.5, -1.0, 2.0], "b": [0.0, 0.0, 1.0]}),
        (SOFTMAX_SUM, lambda x: x.softmax(-1).sum(-1) + 1e-4 * x.sum(-1), {"x": [[0.25, -1.5, 3.0], [1.0, 1.0, 0.0]]}),
    ],
    ids=["rms_norm", "layer_norm", "softmax_sum"],
)  # fmt: skip
def test_a_gradient_that_cancels_is_judged_by_the_noise_of_its_arithmetic(pair, wrong, values, dtype):
    """So a kernel that computes in float32 is right, but may be imprecise in float64."""
    case = case_of(dtype, **values)
    twin = as_twin(replace(pair, fast=float32_only(pair.fast), takes="torch"))
    trial = examine(twin, case)
    assert trial.kind is None or (dtype == "float64" and only_rounding(twin, trial)), trial.message
    twin = as_twin(replace(pair, fast=wrong, takes="torch"))
    trial = examine(twin, case)
    assert trial.kind in ("value", "gradient")
    assert not only_rounding(twin, trial)


def test_a_gradient_that_is_zero_by_cancellation_is_no_sabotage():
    made = checked(SOFTMAX_SUM, examples=5)
    assert made.verdict == "degraded", made.rows[0].counterexample or made.rows[0].problems


@pytest.mark.parametrize(("bad", "kind"), [(False, None), (True, "gradient")])
def test_a_gradient_beyond_float16_is_judged_number_by_number(bad, kind):
    """Along a direction, two infinite numbers may be NaN, and finite ones may exceed 65504 together."""
    steep = Pair("steep", fast=lambda x: x * 1e6 if bad else (x.float() * 2e4).to(x.dtype), inputs={"x": arrays("N")},
                 reference=lambda x: x * 2e4, wrt="x", takes="torch")  # fmt: skip
    case = case_of("float16", x=np.zeros(100), cotangent=(1.0, 4.0, -4.0))
    assert examine(as_twin(steep), case).kind == kind


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.abs(x).sum(), lambda x: np.maximum(x, 0), lambda x: np.clip(x, -1, 0.5), lambda x: np.sort(x)[1:],
        lambda x: x.std(), lambda x: np.var(x, ddof=1), lambda x: np.where(x > 0, x, 2 * x), lambda x: np.median(x),
        lambda x: np.exp(x - x.max()), lambda x: np.floor(x) * x, lambda x: np.add.accumulate(np.sqrt(np.abs(x))),
        lambda x: np.pad(x, 1, mode="edge").cumsum(), lambda x: np.sign(x) * np.log1p(np.fabs(x)),
    ],
)  # fmt: skip
def test_a_complex_step_differentiates_what_numpy_does_not_continue(function):
    x, d = np.array([0.3, -1.2, 2.25], np.longdouble), np.array([1, 0.5, -0.25], np.longdouble)

    def along(t):
        moved = x + t * d
        return np.sum(np.asarray(function(moved.view(slopes.Analytic) if np.iscomplexobj(moved) else moved)))

    wanted = slopes.central(along, np.longdouble)
    assert wanted.error < 1e-12
    assert abs(slopes.complex_step(along, np.longdouble) - wanted.value) < 1e-13


def relu_of_slope(slope):
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, upstream):
            (x,) = ctx.saved_tensors
            return upstream * torch.where(x == 0, slope, (x > 0).to(x.dtype))

    return Relu.apply


@pytest.mark.parametrize("reference", [lambda x: np.maximum(x, 0), lambda x: (x + np.abs(x)) / 2])
@pytest.mark.parametrize(
    ("slope", "kind"), [(0.0, None), (0.5, None), (1.0, None), (1.5, "gradient"), (-0.5, "gradient")]
)
def test_a_gradient_at_a_kink_must_lie_between_both_sides(reference, slope, kind):
    fast = relu_of_slope(slope)
    pair = Pair("relu", fast=fast, reference=reference, inputs={"x": arrays("N")}, wrt="x", takes="torch")
    assert examine(as_twin(pair), case_of(x=[0.0, 1.0, -2.0])).kind == kind


def test_without_kinks_a_gradient_has_no_sides():
    pair = Pair("relu", fast=relu_of_slope(0.5), reference=lambda x: np.maximum(x, 0), inputs={"x": arrays("N")},
                wrt="x", takes="torch", options={}, kinks=lambda options: False)  # fmt: skip
    assert examine(as_twin(pair), case_of(x=[0.0, 1.0])).kind == "gradient"


def test_a_gradient_beside_numbers_without_one_is_still_judged():
    """A derivative that is NaN to one side of a kink hides no error."""
    pair = Pair("root", fast=relu_of_slope(7.0), reference=lambda x: np.maximum(x, 0), inputs={"x": arrays("N")},
                gradient=lambda x, *, cotangent: cotangent * np.where(x < 0, np.nan, x > 0), wrt="x",
                takes="torch")  # fmt: skip
    assert examine(as_twin(pair), case_of(x=[0.0, 1.0])).kind == "gradient"
    assert examine(as_twin(replace(pair, fast=relu_of_slope(0.0))), case_of(x=[0.0, 1.0])).kind is None


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [({}, ("pass", "pass")), ({"precise": True}, ("pass", "fail")), ({"precise": True, "unit": 1e8}, ("pass", "pass"))],
)
def test_a_precise_function_has_no_room_for_long_sums(changes, verdicts):
    x = np.ones(10_000)
    total = Pair("total", fast=lambda x: x.sum(), reference=lambda x: x.sum(), inputs={"x": arrays("N")}, wrt="x",
                 gradient=lambda x, *, cotangent: cotangent * np.ones_like(x), takes="torch", **changes)  # fmt: skip
    truth = Truth(as_twin(total), case_of("float64", x=x), np.float64)
    u = truth.precision.u
    assert tuple(judge_value(truth, np.asarray(x.sum() * (1 + k * u))).verdict for k in (4, 60)) == verdicts


def test_whole_numbers_that_are_exact_are_not_rounded():
    bounds = []
    for exact in (False, True):
        pair = Pair("difference", fast=lambda x, y: x - y, reference=lambda x, y: x - y,
                    inputs={"x": arrays("N", exact=exact), "y": arrays("N", exact=exact)})  # fmt: skip
        truth = Truth(as_twin(pair), case_of(x=[1000.0], y=[999.0]))
        bounds.append(value_bounds(truth, np.array([1.0]))[0])
    assert bounds[0] > 50 * bounds[1]


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        (lambda x: x.argsort() + 1, "value is 1, not 0 at (0,)"),
        (lambda x: torch.log(x - 1).argsort() * torch.nan, "value is nan, not 0 at (0,)"),
        (lambda x: (x, x), "value 2 outputs, not 1"),
        (lambda x: x[:1], "value of shape (1,), not (2,)"),
    ],
)
def test_a_message_says_what_came_and_what_was_expected(fast, message):
    pair = Pair("order", fast=fast, reference=np.argsort, inputs={"x": arrays("N")}, takes="torch")
    assert examine(as_twin(pair), case_of(x=[0.5, 2.0])).message == message


def test_a_message_says_where_the_reference_is_infinite():
    pair = Pair("log", fast=lambda x: x.log().clamp(min=-9), reference=np.log, inputs={"x": arrays("N")}, takes="torch")
    assert examine(as_twin(pair), case_of(x=[1.0, 0.0])).message == "value is -9, not -inf at (1,)"


@pytest.mark.parametrize(
    ("at_tie", "elsewhere", "kind"),
    [(0, 1, None), (1, 1, None), (-0.5, 1, None), (1.5, 1, "gradient"), (0, 1.001, "gradient")],
)
@pytest.mark.parametrize("distance", [np.abs, lambda d: np.hypot(d, 0)])
def test_a_tie_hides_no_error_of_its_neighbours(distance, at_tie, elsewhere, kind):
    class Distance(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x - y)
            return (x - y).abs()

        @staticmethod
        def backward(ctx, upstream):
            (d,) = ctx.saved_tensors
            slope = upstream * torch.where(d == 0, at_tie, d.sign() * elsewhere)
            return slope, -slope

    pair = Pair("distance", fast=Distance.apply, reference=lambda x, y: distance(x - y), wrt=("x", "y"),
                inputs={"x": arrays("N"), "y": arrays("N")}, takes="torch")  # fmt: skip
    assert examine(as_twin(pair), case_of(x=[2.0, 1.0, -2.0], y=[2.0, 0.25, 3.0])).kind == kind


def test_a_gradient_where_kinks_meet_must_lie_between_their_sides():
    """Torch shares the gradient of a maximum among the equal numbers."""
    boxes = {"x": arrays("N 4"), "y": arrays("N 4")}
    pair = Pair("hull", fast=lambda x, y: torch.maximum(x, y).prod(1), inputs=boxes, wrt=("x", "y"), takes="torch",
                reference=lambda x, y: np.maximum(x, y).prod(1))  # fmt: skip
    case = case_of(x=np.tile([1.0, -2.0, 3.0, 0.5], (20, 1)), y=np.tile([1.0, -2.0, 3.0, 0.5], (20, 1)))
    assert examine(as_twin(pair), case).kind is None
    wrong = replace(pair, fast=lambda x, y: torch.maximum(x, y).prod(1) + (x - x.detach())[:, 0] * 4)
    assert examine(as_twin(wrong), case).kind == "gradient"


@pytest.mark.parametrize(("at_zero", "kind"), [(0.0, None), (float("nan"), "gradient")])
def test_the_gradient_of_a_norm_at_zero_is_finite(at_zero, kind):
    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.norm()

        @staticmethod
        def backward(ctx, upstream):
            (x,) = ctx.saved_tensors
            return upstream * (x / x.norm() if x.any() else x + at_zero)

    pair = Pair("norm", fast=Norm.apply, reference=lambda x: np.sqrt((x * x).sum()), inputs={"x": arrays("N")}, wrt="x",
                takes="torch")  # fmt: skip
    assert examine(as_twin(pair), case_of(x=[0.0, 0.0])).kind == kind


def test_an_infinite_gradient_is_right_at_a_pole_and_only_there():
    root = Pair(
        "root", fast=lambda x: x.sqrt(), reference=lambda x: np.sqrt(np.abs(x)), wrt="x", takes="torch",
        inputs={"x": arrays("N", low=0)},
    )  # fmt: skip
    assert examine(as_twin(root), case_of(x=[0.0, 4.0])).kind is None
    wrong = replace(root, fast=lambda x: (x - 4).sqrt() * 0 + x.sqrt())
    assert examine(as_twin(wrong), case_of(x=[4.0, 9.0])).kind == "gradient"


def test_a_slope_that_is_steep_within_less_than_a_step_is_seen():
    """Differences do not converge at 0; the complex step is exact. Torch's own gradient ignores the clamp."""
    pair = Pair(
        "sign", fast=lambda x: x / x.detach().abs().clamp(min=1e-8), takes="torch", wrt="x",
        reference=lambda x: x / np.maximum(np.abs(x), 1e-8), inputs={"x": arrays("N")},
    )  # fmt: skip
    case = case_of(x=[0.0, 1e-9])
    truth = Truth(as_twin(pair), case)
    np.testing.assert_allclose(truth.gradient.astype(float), 1e8, rtol=1e-12)
    assert examine(as_twin(pair), case).kind is None
    assert examine(as_twin(pair), case_of(x=[1.0])).kind == "gradient"


def test_blocks_are_judged_each_by_itself():
    class Small(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (x**2).sum()

        @staticmethod
        def backward(ctx, upstream):
            return 2 * upstream * torch.tensor([[1e4], [1e-4 * (1 + 1e-3)]], dtype=upstream.dtype)

    pair = Pair("square", fast=Small.apply, reference=lambda x: (x**2).sum(), inputs={"x": arrays("B N")}, wrt="x",
                takes="torch")  # fmt: skip
    case = case_of(x=[[1e4], [1e-4]])
    case = replace(case, operands={"x": Operand(np.array([[1e4], [np.float32(1e-4)]]), "float32")})
    assert examine(as_twin(pair), case).kind is None
    assert examine(as_twin(replace(pair, blocks="B")), case).kind == "gradient"


def test_a_large_input_is_judged_along_directions_and_a_wrong_last_number_is_seen():
    class Tail(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            made = upstream.clone()
            made.flatten()[-1] *= 2
            return made

    pair = replace(PAIR, fast=lambda x, w, eps=1e-6: examples.fast_rms_norm(Tail.apply(x), w, eps), takes="torch")
    rng = np.random.default_rng(0)
    case = case_of("float64", x=rng.normal(size=(4, 10, 30)), w=rng.normal(size=30))
    assert Truth(as_twin(PAIR), case).slopes.directions is not None
    assert examine(as_twin(PAIR), case).kind is None
    assert examine(as_twin(pair), case).kind == "gradient"


def test_a_closed_form_that_is_wrong_is_contradicted_by_differences():
    def zeros(x, *, cotangent):
        return 0 * x

    wrong = replace(examples.STENCIL, gradient=zeros, fast_gradient=zeros)
    assert examine(as_twin(wrong), case_of("float64", x=X, cotangent=(1.0, -0.5, 2.0))).kind == "differences"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "letters"),
        ({"inputs": {}}, "no inputs"),
        ({"inputs": {"x": "B T H", "w": arrays("H")}}, "describe it with arrays"),
        ({"wrt": ("y",)}, "wrt: there is no input 'y'"),
        ({"options": {"eps": 1e-6}}, "tuple of values to try"),
        ({"options": {"epsilon": (1e-6,)}}, "cannot be called as rms_norm"),
        ({"blocks": "C"}, "there is no axis 'C'"),
        ({"sizes": {"B": (-1,)}}, "at least 0"),
        ({"names": {"epsilon": "eps"}}, "did you mean eps"),
        ({"reference": "numpy:sin"}, "import it"),
        ({"takes": "jax"}, "takes is"),
        ({"kinks": False}, "kinks is a function, as in kinks=lambda case: True, got False"),
        ({"constants": "esp"}, "constants: there is no option 'esp': did you mean eps"),
        ({"precise": True}, "precise=True needs the closed form of the gradient"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(PairError, match=message):
        replace(PAIR, **changes)


@pytest.mark.parametrize(
    ("axes", "more", "message"),
    [
        ("B t-1", {}, "an axis is a name"),
        ("B ...", {}, "comes first"),
        ("B", {"dtype": "flaot32"}, "did you mean float32"),
        ("B", {"below": "C"}, "integer dtype"),
        ("B", {"low": 1, "high": 0}, "no number"),
    ],
)
def test_arrays_that_cannot_be_drawn_are_refused(axes, more, message):
    with pytest.raises(PairError, match=message):
        arrays(axes, **more)


def modifies(x, w, *, eps=1e-6):
    x *= w
    return x


def returns_text(x, w, *, eps=1e-6):
    return "text"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fast": "no_such_package:norm"}, TargetError, "cannot be imported"),
        ({"fast": "pair_examples:fast_rms_nrom"}, TargetError, "fast_rms_norm"),
        ({"fast": 3}, PairError, "give a function"),
        ({"fast": lambda x, w: x}, PairError, "has no parameter eps"),
        ({"fast": lambda x, eps=1: x}, PairError, "cannot be called as"),
        ({"fast": lambda x, w, eps=1: x[..., 0]}, PairError, "returns shapes"),
        ({"fast": lambda x, w, eps=1: (x, w)}, PairError, "2 outputs, and the reference 1"),
        ({"fast": lambda x, w, eps=1: x.view(-7), "takes": "torch"}, PairError, "raised RuntimeError for x: float"),
        ({"fast": lambda x, w, eps=1: x.detach()}, PairError, "no gradient"),
        ({"fast": lambda x, w, eps=1: None}, PairError, "name that in writes="),
        ({"reference": modifies}, PairError, "modifies its input x"),
        ({"reference": returns_text}, PairError, "arrays of numbers"),
        ({"reference": lambda x, w, *, eps=1: x @ x}, PairError, "the reference <lambda> raised"),
        ({"reference": lambda x, w, *, eps=1: x.astype(np.float32)}, PairError, "in the precision of its inputs"),
        ({"gradient": lambda x, w, *, cotangent, eps=1: x}, PairError, "1 arrays, but wrt names 2"),
        ({"reference": lambda x, w, *, eps=1: (x, w), "fast": lambda x, w, eps=1: (x, w), "precise": True,
          "gradient": lambda x, w, *, cotangent, eps=1: cotangent}, PairError, "precise=True is for a single output"),
        ({"domain": lambda case: False}, PairError, "no case fits"),
        ({"laws": ["permutes"]}, PairError, "is no law"),
        ({"laws": [laws.permutes("B", dim=1)]}, PairError, "needs an option dim"),
    ],
)  # fmt: skip
def test_functions_that_do_not_fit_are_refused_before_the_hunt(changes, error, message):
    with pytest.raises(error, match=message):
        check_pair(replace(PAIR, **changes), dtypes=["float32"], examples=1)


def test_numpy_kernels_have_no_bfloat16():
    with pytest.raises(PairError, match="no bfloat16"):
        checked(examples.STENCIL, "bfloat16")


def test_the_judge_rejects_every_sabotage_of_a_right_kernel():
    """But a shuffled gradient of equal numbers is no sabotage."""
    total = Pair("total", fast=lambda x: x.sum(), reference=lambda x: x.sum(), inputs={"x": arrays("N M")}, wrt="x",
                 takes="torch")  # fmt: skip
    trials = [examine(as_twin(total), case_of(x=np.arange(12.0).reshape(3, 4) - 3)) for _ in range(2)]
    assert survivors(trials) == []


def test_a_hunt_whose_judge_accepts_wrong_gradients_says_which():
    """The reference is defined at a single point, so it has no derivative."""
    point = Pair(
        "point", fast=lambda x: x * 1, reference=lambda x: np.where(x == 0, 0, np.nan), wrt="x", takes="torch",
        inputs={"x": arrays("N", low=0, high=0)},
    )  # fmt: skip
    made = checked(point)
    assert made.verdict == "fail"
    assert "the judge accepts a gradient of x replaced by zeros" in made.rows[0].problems


def test_the_command_writes_a_script_that_runs_by_itself(tmp_path):
    file = tmp_path / "my_pairs.py"
    tests = Path(examples.__file__).parent
    file.write_text(
        f"import sys\nfrom dataclasses import replace\n\nsys.path.insert(0, {str(tests)!r})\n"
        "import pair_examples as p\n\nBAD = replace(p.STENCIL, fast=p.laplacian_without_last_row)\n"
    )
    out, saved = tmp_path / "out", tmp_path / "saved.json"
    line = ["check", "--pair", f"{file}:BAD", "--dtype", "float32", "--examples", "10", "--seed", "0"]
    done = CliRunner().invoke(
        with_all_commands(), [*line, "--report", str(out), "--save", str(saved), "--explain-bound"]
    )
    assert done.exit_code == 1, done.output
    assert "the reference computes in" in " ".join(done.output.split())
    assert json.loads(saved.read_text())["rows"][0]["verdict"] == "fail"
    script = out / "laplacian_float32_generated.py"
    run = subprocess.run([sys.executable, script], cwd="/", capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "value: off by" in run.stdout
    file.write_text(file.read_text().replace(", fast=p.laplacian_without_last_row", ""))
    run = subprocess.run([sys.executable, script], cwd="/", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--pair", "pair_examples:NROM"], "NORM"),
        (["--pair", "pair_examples:fast_scan"], "not a Pair"),
        (["--pair", "nowhere"], "package.module:PAIR"),
        (["math:sin", "--pair", "pair_examples:NORM"], "leave out the loss"),
        (["math:sin"], "--as LOSS"),
        (["math:sin", "--as", "dice", "--explain-bound"], "is for --pair"),
    ],
)
def test_a_bad_command_line_is_a_matter_of_usage(tmp_path, line, message):
    done = CliRunner().invoke(with_all_commands(), ["check", *line, "--report", str(tmp_path)])
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.replace("│", " ").split())


def test_the_tutorial_tells_the_truth(tmp_path):
    """Its files are written one after the other: the first kernel fails, and the second passes."""
    page = Path(harness.__file__).with_name("PAIRS.md").read_text()
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["mykernels.py", "mypairs.py", "mykernels.py", "test_mykernels.py"]
    (kernel, pair, mended, test) = files
    for name, text in (kernel, pair, test):
        (tmp_path / name).write_text(text.replace(', "bfloat16"', ""))  # one dtype saves time
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mykernels.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Differs with eps=1.0" in done.stdout
    (tmp_path / mended[0]).write_text(mended[1])
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def doubled_in_place(x, k):
    x.mul_(k)


def test_a_function_that_writes_into_its_input_is_called_with_a_copy():
    pair = Pair(
        "scaled", fast=doubled_in_place, reference=lambda x, k: x * k, wrt=("x", "k"), writes="x", takes="torch",
        inputs={"x": arrays("N M"), "k": arrays("")},
    )  # fmt: skip
    made = checked(pair)
    assert made.verdict == "pass", made.rows[0].counterexample


class Scale:
    """A callable object that takes an option in its call."""

    def __call__(self, x, factor=1.0):
        return x * factor


class ScaleModule(torch.nn.Module):
    def forward(self, x, factor=1.0):
        return x * factor


@pytest.mark.parametrize("fast", [Scale(), ScaleModule(), Scale, ScaleModule], ids=lambda each: type(each).__name__)
def test_objects_and_classes_may_take_options_when_called(fast):
    pair = Pair("scale", fast=fast, reference=lambda x, *, factor: x * factor, inputs={"x": arrays("N")}, wrt="x",
                options={"factor": (1.0, 0.5)}, takes="torch")  # fmt: skip
    made = checked(pair)
    assert made.verdict == "pass", made.rows[0].counterexample or made.rows[0].problems
    with pytest.raises(PairError, match="no parameter scale"):
        check_pair(replace(pair, names={"factor": "scale"}), dtypes=["float32"])


class Exported:
    """An array of another library."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **more):
        return self.values.__dlpack__(**more)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def test_outputs_of_any_library_with_dlpack_or_array_are_taken():
    pair = Pair(
        "twice", fast=lambda x: (Exported(2 * x), np.argmax(x)), takes="numpy", inputs={"x": arrays("N")},
        reference=lambda x: (2 * x, np.argmax(x)),
    )  # fmt: skip
    assert checked(pair).verdict == "pass"


def test_numbers_beyond_float16_are_drawn():
    """A sum of squares in half precision is infinite beyond 65504, where the root mean square is not."""
    pair = Pair(
        "rms", fast=lambda x: (x * x).mean(-1).sqrt(), reference=lambda x: np.sqrt((x * x).mean(-1)), takes="torch",
        inputs={"x": arrays("B N")},
    )  # fmt: skip
    assert checked(pair, "float32").verdict in RIGHT
    made = checked(pair, "float16")
    assert made.verdict == "fail"
    assert "value is inf, not " in made.rows[0].counterexample.message


def test_a_kernel_that_is_off_by_a_factor_is_told_so():
    pair = Pair(
        "half", fast=lambda x: x, reference=lambda x: x / 2, inputs={"x": arrays("N M")}, wrt="x", takes="torch"
    )
    assert checked(pair).relation == "2 times that of the reference, in value and gradient"


def test_pairs_of_installed_packages_are_found_by_name(monkeypatch):
    entry = EntryPoint("their_norm", "pair_examples:NORM", pairs.GROUP)
    monkeypatch.setattr(pairs, "entry_points", lambda group: [entry] if group == pairs.GROUP else [])
    assert pairs.find_pair("their_norm") == (examples.NORM, "pair_examples:NORM")
    done = CliRunner().invoke(with_all_commands(), ["list"])
    assert "their_norm" in done.output
    with pytest.raises(TargetError, match="their_norm"):
        pairs.find_pair("their_nrom")


def test_our_own_losses_are_pairs():
    place = "twinloss.harness.losses.own_pairs"
    assert all(pairs.load_pair(f"{place}:{name}").name == name for name in catalogue())
    assert check_pair(f"{place}:diffusion", dtypes=["float64"], examples=5).verdict in RIGHT


@pytest.mark.parametrize("name", catalogue())
def test_a_loss_and_its_pair_are_judged_alike(name):
    """Right answers, and those that differ by about the bound."""
    loss, pair = catalogue()[name], as_twin(pairs.load_pair(f"twinloss.harness.losses.own_pairs:{name}"))
    for case in drawn(pair, "float32", {}, None, 3, 0):
        as_pair = Truth(pair, case)
        as_loss = Truth(loss, replace(case, options=as_pair.options))
        value, gradient = as_loss.value, as_loss.gradient
        for size in (0, 2.0**-21, 1e-3):
            spoilt = Answer(np.asarray(value * (1 + size)), gradient * (1 + size))
            assert [(f.verdict, f.ratio) for f in judge(as_pair, spoilt)] == [
                (f.verdict, f.ratio) for f in judge(as_loss, spoilt)
            ]


@pytest.mark.parametrize(("library", "function"), [("torch", "avg_pool1d"), ("scipy", "distance_transform_edt")])
def test_functions_of_libraries_are_audited(library, function):
    rows = audit_functions(library, [function])
    assert [(row.dtype, row.verdict) for row in rows] == [("float32", "agrees"), ("float64", "agrees")]
    assert f"| {function} | float32 | agrees |" in as_markdown(library, rows, 0)
    with pytest.raises(LibraryError, match=function):
        audit_functions(library, [function[1:]])


def test_the_report_on_functions_says_what_is_known_about_those_that_differ(monkeypatch):
    row = Checked("ctc_loss", "float32", "differs", "gradient x: off by 1", "x")
    assert "pytorch/pytorch#52241" in as_markdown("torch", [row], 0)
    assert "pytorch/pytorch#52241" not in as_markdown("torch", [replace(row, verdict="agrees")], 0)
    unsure = check_pair(pairs_of("torch")[0], dtypes=["float32"], examples=2)
    unsure.rows[0].problems = ["the judge accepts zeros"]
    monkeypatch.setattr(functions, "check_pair", lambda pair, **given: unsure)
    assert {row.verdict for row in audit_functions("torch", ["log_softmax"])} == {"not judged"}


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "twinloss.harness.commands.pairs_of_torchvision", raising=False)
    with pytest.raises(LibraryError, match="pip install torchvision"):
        pairs_of("torchvision")


@pytest.mark.parametrize(("block", "verdict"), [(4, "pass"), (3, "fail")])
def test_options_that_only_tune_must_not_change_the_results(block, verdict):
    def total(x, block=1):
        whole = x[: len(x) // block * block].sum(0) if block == 3 else x.sum(0)
        return whole

    pair = Pair("total", fast=total, reference=lambda x: x.sum(0), inputs={"x": arrays("N M")}, takes="torch",
                tuning={"block": (1, block)})  # fmt: skip
    assert checked(pair).verdict == verdict


def test_a_domain_that_excludes_long_axes_is_no_obstacle():
    pair = Pair("total", fast=lambda x: x.sum(0), reference=lambda x: x.sum(0), inputs={"x": arrays("N M")},
                takes="torch", domain=lambda case: case["N"] <= 3 and case["M"] <= 4)  # fmt: skip
    assert checked(pair).verdict == "pass"
