"""Tests of drawn cases: every kind, layout and dtype occurs, pairs of options are covered, numbers are exact."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from twinloss.harness.drawing import coverage, input_kinds, registration_cases, segmentation_cases
from twinloss.harness.drawing.draft import TARGET_TYPES
from twinloss.harness.drawing.segmentation_cases import LARGE, SMALL
from twinloss.harness.drawing.segmentation_options import PER_CLASS
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.losses.segmentation import DICE, MASKED_DICE
from twinloss.harness.model.operand import LAYOUTS, Operand, function, label


def drawn(twin, dtype, count, options=None, law=None, large=False):
    cases = []

    @seed(0)
    @settings(max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(twin.cases(twin, dtype, options or {}, law, large))
    def run(case):
        cases.append(case)

    run()
    return cases


@pytest.fixture(scope="module")
def masked():
    return drawn(MASKED_DICE, "float32", 1500)


def test_every_kind_occurs(masked):
    seen = Counter(item for case in masked for item in case.traits.items())
    expected = {
        "input": (*input_kinds.NUMBERS, "perfect"), "labels": input_kinds.LABELS, "target": input_kinds.TARGETS,
        "mask": input_kinds.MASKS, "input_layout": LAYOUTS, "target_layout": LAYOUTS, "mask_layout": LAYOUTS,
        "target_type": TARGET_TYPES, "masked_nan": ("True", "False"), "ignored_nan": ("True", "False"),
    }  # fmt: skip
    missing = [(trait, kind) for trait, kinds in expected.items() for kind in kinds if not seen[trait, kind]]
    assert not missing


def test_every_rank_and_size_occur(masked):
    shapes = {case.input.values.shape for case in masked}
    assert {len(shape) - 2 for shape in shapes} == {0, 1, 2, 3}
    assert {shape[0] for shape in shapes} == {1, 2, 3}
    assert {shape[1] for shape in shapes} == {1, 2, 3, 4, 5}
    assert {shape[2:] for shape in shapes} == set(SMALL)


def test_large_cases_are_large():
    assert {case.input.values.shape[2:] for case in drawn(DICE, "float32", 30, large=True)} == set(LARGE)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_cases_of_many_equal_numbers_have_them_in_all_blocks_of_a_kernel(twin):
    cases = drawn(coverage.narrowed(twin, {coverage.EQUAL: True}), "float64", 6, large=True)
    shapes = segmentation_cases.MANY + registration_cases.MANY
    many = [
        case for case in cases if case.input.values.shape[2:] in shapes and case.traits["input"] in input_kinds.EQUAL
    ]
    assert len(many) >= 3  # no smoothing, or a value for each voxel, needs other numbers
    for case in many:
        for channel in case.input.values[0]:
            assert len(np.unique(channel[np.isfinite(channel)])) <= 2
        if case.traits.get("labels"):
            assert case.traits["labels"] == "one_voxel"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_are_exact_in_their_types(dtype):
    for case in drawn(MASKED_DICE, dtype, 100):
        for name, operand in case.operands.items():
            tensor = operand.tensor()
            assert tensor.dtype == getattr(torch, operand.dtype)
            np.testing.assert_array_equal(tensor.double().numpy(), operand.values, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_numbers_and_match_their_names(layout):
    shape = (2, 3, 4, 5, 6) if layout.endswith("3d") else (2, 3, 4, 5)
    numbers = np.broadcast_to(np.arange(np.prod(shape[1:])).reshape(1, *shape[1:]), shape) / 4
    tensor = Operand(numbers, "float32", layout).tensor()
    np.testing.assert_array_equal(tensor.numpy(), numbers)
    assert tensor.is_contiguous() == (layout == "contiguous")
    assert (tensor.storage_offset() > 0) == (layout == "sliced")


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_covering_rows_cover_all_pairs(twin):
    possible = coverage.possible_pairs(twin)
    rows = coverage.covering_rows(twin, possible)
    assert all(twin.allowed(row) for row in rows)
    tried = set().union(*(coverage.pairs_of({k: label(v) for k, v in row.items()}) for row in rows))
    assert tried >= possible
    assert len(rows) < 40


def test_given_options_are_kept():
    for case in drawn(DICE, "float32", 30, {"softmax": True, "weight": PER_CLASS}):
        assert case.options["softmax"]
        kept = case.input.values.shape[1] - ("include_background" in case.options and case.input.values.shape[1] > 1)
        assert len(case.options["weight"]) == kept


@pytest.mark.parametrize("law", DICE.laws, ids=lambda law: law.name)
def test_each_law_finds_cases(law):
    assert any(law.applies(case) for case in drawn(DICE, "float32", 100, law=law))


@pytest.mark.parametrize("act", [value for value in DICE.options["other_act"] if value is not None], ids=str)
def test_activations_agree_with_their_derivatives(act):
    x = np.linspace(-3, 3, 25)
    tensor = torch.tensor(x, requires_grad=True)
    made = function(act.torch)(tensor)
    made.sum().backward()
    np.testing.assert_allclose(made.detach(), function(act.numpy)(x), rtol=1e-14)
    np.testing.assert_allclose(tensor.grad, function(act.derivative)(x), rtol=1e-12)
