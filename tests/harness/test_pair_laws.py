"""Laws for pairs: each is kept by a right function, and broken by a wrong one."""

import functools
import itertools

import numba
import numpy as np
import pytest
import torch

from twinloss.harness import Pair, arrays, check_pair, laws
from twinloss.harness.hunting.pairs import as_twin
from twinloss.harness.judging.law_check import breach
from twinloss.harness.judging.trial import examine
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case


def rms_norm(x, w, *, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


NORM = Pair(
    "rms_norm", fast="pair_examples:fast_rms_norm", reference=rms_norm,
    inputs={"x": arrays("B T H"), "w": arrays("H")}, wrt=("x", "w"), options={"eps": (1e-6, 1.0)},
)  # fmt: skip
X, W = np.array([[[0.5, -1.5, 3.0]], [[1.0, 2.0, -0.75]]]), np.array([1.0, -2.0, 0.25])


def broken(pair, name, **values):
    """Return how a law of the protocol is broken, or None."""
    twin = as_twin(pair)
    (law,) = (each for each in twin.laws if each.name == name)
    return breach(law, twin, case_of(**values))


def case_of(law=None, **values):
    operands = {name: Operand(np.asarray(each), "float64") for name, each in values.items()}
    return Case(operands, tested="float64", law=law)


@pytest.mark.parametrize(
    ("law", "holds"),
    [
        (laws.scales("w"), True),
        (laws.scales("x"), False),
        (laws.linear("w"), True),
        (laws.linear("x"), False),
        (laws.independent("B"), True),
        (laws.permutes("H"), True),
        (laws.bounded(-1, 1), False),
        (laws.invariant("the sign of w", lambda inputs: {"w": -inputs["w"]}), False),
        (laws.equivariant("the sign of w flips", lambda inputs: {"w": -inputs["w"]}, np.negative), True),
        (laws.holds("no output is zero", lambda inputs, outputs, options: bool(outputs[0].all())), True),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_laws_hold_or_are_broken(law, holds):
    trial = examine(as_twin(NORM), case_of(law, x=X, w=W))
    assert (trial.kind is None) == holds, trial.message


def doubled(x):
    return 2 * x


def branches(x):
    return 2 * x if x.sum() > 0 else x + x


def multiplied(x):
    return x @ torch.full((3, 3), 2.0, dtype=x.dtype).diag().diag()


DOUBLED = Pair("doubled", fast=doubled, reference=lambda x: 2 * x, inputs={"x": arrays("N M")}, wrt="x", takes="torch")


@pytest.mark.parametrize(
    ("law", "fast", "holds"),
    [
        (laws.compiles("eager"), doubled, True),
        (laws.compiles("eager"), branches, False),
        (laws.ignores_autocast(), doubled, True),
        (laws.ignores_autocast(), multiplied, False),
    ],
)
def test_functions_are_compiled_and_run_under_autocast(law, fast, holds):
    pair = Pair("doubled", fast=fast, reference=lambda x: 2 * x, inputs={"x": arrays("N M")}, takes="torch", wrt="x")
    twin = as_twin(pair)
    case = Case({"x": Operand(np.array([[0.1, 0.7, 3.3]], np.float32), "float32")}, tested="float32", law=law)
    trial = examine(twin, case)
    assert trial.kind == (None if holds else "law"), trial.message


def test_torch_compiles_a_right_kernel():
    assert examine(as_twin(DOUBLED), case_of(laws.compiles(), x=[[1.0, -2.0]])).kind is None


CALLS, BUFFER = itertools.count(), {}
GAIN = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))


def in_place(x):
    with torch.no_grad():
        x.mul_(2)
    return x * 1


def of_calls(x):
    return 2 * x * (1 + 1e-15 * next(CALLS))


def buffered(x):
    with torch.no_grad():
        made = BUFFER.setdefault(tuple(x.shape), torch.empty_like(x))
        return torch.mul(x, 2, out=made)


def with_a_graph(x):
    return x * GAIN


def of_plain_tensors(x):
    return 2 * x if type(x) is torch.Tensor else 3 * x


def on_default_device(x):
    return 2 * x + torch.zeros(x.shape[-1])


def of_threads(x):
    return 2 * x * (1 + 1e-6 * (torch.get_num_threads() - 1))


def of_numba_threads(x):
    return 2 * x * (1 + 1e-6 * (numba.get_num_threads() - 1))


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


class Counts(Doubled):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return 2 * x


class Uncopied(Doubled):
    def __init__(self):
        super().__init__()
        self.gain = 2.0

    def __deepcopy__(self, memo):
        made = type(self)()
        made.gain = 2.5
        return made

    def forward(self, x):
        return self.gain * x


@pytest.mark.parametrize(
    ("law", "right", "wrong"),
    [
        ("inputs stay unchanged", doubled, in_place),
        ("a second call gives the same bits", doubled, of_calls),
        ("results are not reused as buffers", doubled, buffered),
        ("a graph is built only on request", doubled, with_a_graph),
        ("a subclass of tensors gives the same", doubled, of_plain_tensors),
        ("default dtype and device do not matter", doubled, on_default_device),
        ("the number of threads does not matter", doubled, of_threads),
        pytest.param(
            "the number of threads does not matter", doubled, of_numba_threads,
            marks=pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="Numba has one thread"),
        ),
        ("a call leaves no state", Doubled, Counts),
        ("copies give the same answer, by deepcopy, pickle or state_dict", Doubled, Uncopied),
    ],
)  # fmt: skip
def test_functions_of_bad_conduct_break_a_law(law, right, wrong):
    for fast, keeps in ((right, True), (wrong, False)):
        differentiable = fast not in (in_place, buffered)
        pair = Pair("doubled", fast=fast, reference=lambda x: 2 * x, inputs={"x": arrays("N M")}, takes="torch",
                    wrt="x" if differentiable else ())  # fmt: skip
        assert (broken(pair, law, x=[[1.0, -2.0], [0.5, 3.0]]) is None) == keeps


class Shares(torch.nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return x + sum(self.shift)


class Owns(Shares):
    def __init__(self, shift):
        super().__init__(list(shift))


@pytest.mark.parametrize(("fast", "keeps"), [(Owns, True), (Shares, False)])
def test_a_list_that_a_constructor_keeps_is_seen(fast, keeps):
    pair = Pair(
        "shift", fast=fast, reference=lambda x, *, shift: x + sum(shift), inputs={"x": arrays("N")},
        options={"shift": ([1.0, 2.0],)},
    )  # fmt: skip
    assert (broken(pair, "arguments of the constructor are copied", x=[1.0, 2.0]) is None) == keeps


class Scales(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden))

    def forward(self, x):
        return x * self.weight**2


class Caches(Scales):
    """Computes the square of its weights once for each tensor that holds them."""

    @functools.cached_property
    def squares(self):
        return {}

    def forward(self, x):
        return x * self.squares.setdefault(id(self.weight), self.weight**2)


@pytest.mark.parametrize(("fast", "keeps"), [(Scales, True), (Caches, False)])
def test_a_module_that_ignores_a_loaded_state_dict_is_seen(fast, keeps):
    pair = Pair("scale", fast=fast, reference=lambda x, w: x * w**2, inputs={"x": arrays("N H"), "w": arrays("H")},
                names={"H": "hidden"}, state={"w": "weight"}, wrt=("x", "w"))  # fmt: skip
    assert (broken(pair, "a state_dict that is loaded takes effect", x=[[1.0, -2.0]], w=[0.5, 3.0]) is None) == keeps


def added(x, y):
    return x + 2 * y


def added_in_place(x, y):
    """Double y for the sum and halve it again, so that both inputs are as before."""
    with torch.no_grad():
        made = y.mul_(2) + x
        y.div_(2)
    return made


@pytest.mark.parametrize(("fast", "keeps"), [(added, True), (added_in_place, False)])
def test_a_function_that_one_tensor_confuses_is_seen(fast, keeps):
    pair = Pair("added", fast=fast, reference=lambda x, y: x + 2 * y, takes="torch",
                inputs={"x": arrays("N"), "y": arrays("N")})  # fmt: skip
    assert (broken(pair, "one tensor may be given for two inputs", x=[1.0, -2.0], y=[0.5, 3.0]) is None) == keeps


def test_a_hunt_finds_a_kernel_that_keeps_state():
    made = check_pair(
        Pair("same", fast=Counts, reference=lambda x: 2 * x, inputs={"x": arrays("N M")}),
        dtypes=["float32"],
        examples=9,
    )
    assert "a call leaves no state" in made.rows[0].counterexample.message
