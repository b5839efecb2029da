"""The fast bending energy: documented behaviour and corner cases."""

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, logits, value_and_gradient

from twinloss import fast, reference
from twinloss.fast import BendingEnergyLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (5, 7), (5, 6, 7)])
STEP = {"compact": 1, "wide": 2}
SPACING = (0.5, 3.0, 1.25)


def truth(u, **options):
    """The reference's value and the gradient of its sum, in long double."""
    wide = u.numpy().astype(np.longdouble)
    value = np.asarray(reference.bending_energy_loss(wide, **options))
    upstream = np.ones_like(value)
    slope = reference.bending_energy_loss_gradient(wide, cotangent=upstream, **options)
    return tuple(torch.from_numpy(np.asarray(a, np.float64)) for a in (value, slope))


def second(u, d, e, stencil):
    """d2u / (dx_d dx_e) of one component on its interior, by the definition and with NumPy's gradient only if wide."""
    step = STEP[stencil]
    inside = (slice(step, -step),) * u.ndim
    if stencil == "wide":  # central first differences, one after the other
        return np.gradient(np.gradient(u, axis=d), axis=e)[inside]
    near = [np.roll(u, [-i, -j], [d, e]) for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    if d == e:
        return (np.roll(u, -1, d) - 2 * u + np.roll(u, 1, d))[inside]
    return ((near[0] - near[1] - near[2] + near[3]) / 4)[inside]


def by_definition(u, stencil="compact", normalize=False, spacing=None):
    """The energies of the interior voxels of a field (B, C, *S), one derivative after the other."""
    spatial = u.shape[2:]
    h = spacing or (1,) * len(spatial)
    extent = [n * size for n, size in zip(spatial, h, strict=True)]
    energies = []
    for field in u:
        for c, component in enumerate(field):
            energy = 0
            for d, e in itertools.product(range(len(spatial)), repeat=2):  # both orders of a mixed derivative
                factor = extent[d] * extent[e] / extent[c] if normalize else 1
                energy = energy + (factor * second(component, d, e, stencil) / (h[d] * h[e])) ** 2
            energies.append(energy)
    return np.stack(energies).reshape(*u.shape[:2], *energies[0].shape)


def polynomial(spatial, f):
    """A field (1, 1, *spatial) with the value f(x_0, x_1, ...) at the voxel x."""
    return f(*torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in spatial), indexing="ij"))[None, None]


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spaced", [False, True])
def test_value_and_gradient_are_those_of_the_reference(form, reduction, stencil, spatial, normalize, spaced):
    u = logits(2, len(spatial), *spatial, dtype=torch.float64)
    spacing = SPACING[: len(spatial)] if spaced else None
    options = {"reduction": reduction, "stencil": stencil, "normalize": normalize, "spacing": spacing}
    loss = BendingEnergyLoss(**options)
    assert_all_close(value_and_gradient(loss, u, form=form), truth(u, **options), 1e-13, 1e-12)
    single = u.float()
    value, slope = truth(single, **options)
    found = value_and_gradient(loss, single, form=form)
    assert_all_close(found[:1], (value,), 3e-6, 3e-7 * value.abs().max().item())
    assert_all_close(found[1:], (slope,), 0, 2e-6 * slope.abs().max().item())


@BACKENDS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spaced", [False, True])
def test_loss_is_the_sum_of_all_squared_second_derivatives(form, stencil, spatial, normalize, spaced):
    u = logits(2, len(spatial), *spatial, dtype=torch.float64)
    options = {"stencil": stencil, "normalize": normalize, "spacing": SPACING[: len(spatial)] if spaced else None}
    expected = torch.from_numpy(by_definition(u.numpy(), **options))
    with dispatch.forced(form):
        found = BendingEnergyLoss(reduction="none", **options)(u)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@BACKENDS
@REDUCTIONS
@STENCILS
@SPATIAL
def test_gradient_is_that_of_automatic_differentiation_for_any_upstream(form, reduction, stencil, spatial):
    u = logits(2, 3, *spatial, dtype=torch.float64).requires_grad_()
    loss = BendingEnergyLoss(reduction=reduction, stencil=stencil, spacing=SPACING[: len(spatial)])
    with dispatch.forced("plain"):
        value = loss(u)
        upstream = logits(*value.shape, dtype=torch.float64, seed=5) if value.ndim else torch.tensor(0.7).double()
        expected = torch.autograd.grad(value, u, upstream)
    with dispatch.forced(form):
        found = torch.autograd.grad(loss(u), u, upstream)
    assert_all_close(found, expected, 1e-12, 1e-12)


@BACKENDS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_field_costs_nothing_and_has_no_gradient(form, stencil, spatial, dtype):
    u = polynomial(spatial, lambda *x: 3 + sum((d + 2) * at for d, at in enumerate(x))).to(dtype)
    value, gradient = value_and_gradient(BendingEnergyLoss(stencil=stencil), u, form=form)
    assert value == 0
    assert (gradient == 0).all()


@BACKENDS
@STENCILS
def test_quadratic_field_costs_its_squared_second_derivatives(form, stencil):
    # d2/dx2 = 6, d2/dy2 = -2, d2/dz2 = 4; d2/dxdy = 5, d2/dxdz = 0, d2/dydz = -1: the stencils are exact here.
    u = polynomial((7, 6, 9), lambda x, y, z: 3 * x**2 - y**2 + 2 * z**2 + 5 * x * y - y * z)
    with dispatch.forced(form):
        energies = BendingEnergyLoss(stencil=stencil, reduction="none")(u)
    expected = 6.0**2 + 2.0**2 + 4.0**2 + 2 * (5.0**2 + 1.0**2)
    torch.testing.assert_close(energies, torch.full_like(energies, expected), rtol=1e-13, atol=0)


@BACKENDS
def test_checkerboard_costs_something_unless_the_stencil_is_wide(form):
    u = polynomial((6, 7, 8), lambda *x: (-1) ** sum(x))
    with dispatch.forced(form):
        # Each of three pure differences is 4, each mixed one 0.
        assert BendingEnergyLoss()(u) == 3 * 4**2
        assert BendingEnergyLoss(stencil="wide")(u) == 0


@BACKENDS
@pytest.mark.parametrize("size", [0.5, 2.0])
def test_spacing_divides_each_second_derivative_by_two_voxel_sizes(form, size):
    u = logits(1, 2, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        value = BendingEnergyLoss(spacing=[size, size])(u)
        torch.testing.assert_close(value, BendingEnergyLoss()(u) / size**4, rtol=1e-13, atol=0)


@BACKENDS
@STENCILS
def test_anisotropic_spacing_measures_the_same_physical_field_alike(form, stencil):
    # x^2 + x y + y^2 of positions in mm: the derivatives do not depend on how the field is sampled.
    loss, h = BendingEnergyLoss(stencil=stencil, spacing=(0.5, 3.0)), (0.5, 3.0)
    u = polynomial((7, 8), lambda x, y: (h[0] * x) ** 2 + (h[0] * x) * (h[1] * y) + (h[1] * y) ** 2)
    with dispatch.forced(form):
        torch.testing.assert_close(loss(u).item(), 2.0**2 + 2.0**2 + 2 * 1.0**2, rtol=1e-12, atol=0)


@BACKENDS
@pytest.mark.parametrize("spacing", [None, (0.5, 3.0)])
def test_normalized_energy_does_not_hang_on_the_sampling(form, spacing):
    # u_c = S_c h_c q_c(position / extent): one deformation of the unit square, sampled twice. Its second derivatives
    # are (2, 0, 6) of component 0 and (2, 2, 0) of component 1, mixed one in the middle.
    expected = ((2**2 + 2 * 0 + 6**2) + (2**2 + 2 * 2**2 + 0)) / 2
    for spatial in ((8, 8), (10, 32)):
        extent = [n * h for n, h in zip(spatial, spacing or (1, 1), strict=True)]
        first = polynomial(spatial, lambda x, y, s=spatial: (x / s[0]) ** 2 + 3 * (y / s[1]) ** 2)
        second_ = polynomial(spatial, lambda x, y, s=spatial: (x / s[0]) ** 2 + 2 * (x / s[0]) * (y / s[1]))
        u = torch.cat([first * extent[0], second_ * extent[1]], 1)
        with dispatch.forced(form):
            value = BendingEnergyLoss(normalize=True, spacing=spacing)(u)
        torch.testing.assert_close(value.item(), expected, rtol=1e-9, atol=0)


@BACKENDS
@STENCILS
@SPATIAL
def test_none_covers_the_interior_and_mean_and_sum_reduce_it(form, stencil, spatial):
    u = logits(2, 3, *spatial, dtype=torch.float64)
    with dispatch.forced(form):
        none, mean, total = (BendingEnergyLoss(r, stencil=stencil)(u) for r in ("none", "mean", "sum"))
    assert none.shape == (2, 3, *(n - 2 * STEP[stencil] for n in spatial))
    torch.testing.assert_close(mean, none.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, none.sum(), rtol=1e-13, atol=0)


@BACKENDS
@STENCILS
@SPATIAL
def test_field_of_the_least_size_has_one_interior_voxel(form, stencil, spatial):
    least = [2 * STEP[stencil] + 1] * len(spatial)
    u = logits(1, 2, *least, dtype=torch.float64)
    loss = BendingEnergyLoss("none", stencil=stencil)
    found = value_and_gradient(loss, u, form=form)
    assert found[0].shape == (1, 2, *[1] * len(spatial))
    assert_all_close(found, truth(u, reduction="none", stencil=stencil), 1e-13, 1e-13)


@BACKENDS
def test_any_number_of_components_will_do_without_normalize(form):
    u = logits(2, 4, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        together = BendingEnergyLoss("none")(u)
        for c in range(4):
            torch.testing.assert_close(together[:, c : c + 1], BendingEnergyLoss("none")(u[:, c : c + 1]))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("normalize", [False, True])
def test_compact_stencil_is_what_monai_1_6_computes(normalize):
    monai = pytest.importorskip("monai.losses")
    u = logits(2, 3, 6, 7, 8, dtype=torch.float64)
    expected = value_and_gradient(monai.BendingEnergyLoss(normalize=normalize), u)
    found = value_and_gradient(BendingEnergyLoss(normalize=normalize), u)
    assert_all_close(found, expected, 1e-6, 1e-6)  # their ratios of extents are float32


def test_documented_arguments_have_their_order_and_defaults():
    found = {name: (p.default, p.kind) for name, p in inspect.signature(BendingEnergyLoss).parameters.items()}
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert list(found.items()) == [
        ("reduction", ("mean", inspect.Parameter.POSITIONAL_OR_KEYWORD)),
        ("stencil", ("compact", keyword)),
        ("normalize", (False, keyword)),
        ("spacing", (None, keyword)),
    ]
    assert list(inspect.signature(BendingEnergyLoss.forward).parameters) == ["self", "pred"]
    assert "BendingEnergyLoss" in fast.__all__
    assert isinstance(BendingEnergyLoss(), torch.nn.modules.loss._Loss)
    assert BendingEnergyLoss().state_dict() == {}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "median"}, "reduction must be .* got 'median'"),
        ({"stencil": "narrow"}, "stencil must be .* got 'narrow'"),
        ({"spacing": (1.0, -2.0)}, r"spacing must be positive .*-2\.0"),
        ({"spacing": (1.0, 0.0)}, "spacing must be positive"),
        ({"spacing": (1.0, float("inf"))}, "spacing must be positive"),
        ({"spacing": (1.0, float("nan"))}, "spacing must be positive"),
    ],
)
def test_option_that_makes_no_sense_is_a_value_error(options, message):
    with pytest.raises(ValueError, match=message):
        BendingEnergyLoss(**options)


@BACKENDS
@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 3), r"1 to 3 spatial axes.*\(2, 3\)"),
        ({}, (2, 3, 5, 5, 5, 5), r"1 to 3 spatial axes.*\(2, 3, 5, 5, 5, 5\)"),
        ({}, (0, 3, 5), r"\(0, 3, 5\)"),
        ({}, (2, 0, 5), r"\(2, 0, 5\)"),
        ({}, (1, 2, 5, 2), r"at least 3 voxels.*compact.*\(1, 2, 5, 2\)"),
        ({}, (1, 2, 5, 1), r"at least 3 voxels.*\(1, 2, 5, 1\)"),
        ({"stencil": "wide"}, (1, 2, 4, 5), r"at least 5 voxels.*wide.*\(1, 2, 4, 5\)"),
        ({"spacing": [1.0]}, (1, 2, 5, 5), r"spacing has 1 sizes for 2 spatial axes"),
        ({"spacing": []}, (1, 2, 5, 5), r"spacing has 0 sizes for 2 spatial axes"),
        ({"normalize": True}, (1, 3, 5, 5), r"component for each of the 2 spatial axes.*\(1, 3, 5, 5\)"),
    ],
)
def test_field_that_does_not_fit_is_a_value_error_that_names_its_shape(form, options, shape, message):
    with dispatch.forced(form), pytest.raises(ValueError, match=message):
        BendingEnergyLoss(**options)(torch.zeros(shape))


def test_field_of_complex_numbers_is_a_type_error():
    with pytest.raises(TypeError, match="complex64"):
        BendingEnergyLoss()(torch.zeros(1, 1, 5, dtype=torch.complex64))


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(form, reduction, half):
    u = logits(1, 3, 9, 10, 11).to(half)
    loss = BendingEnergyLoss(reduction)
    value, gradient = value_and_gradient(loss, u, form=form)
    wide = value_and_gradient(loss, u.float(), form=form)
    assert value.dtype == gradient.dtype == half
    assert torch.equal(value, wide[0].to(half))
    assert torch.equal(gradient, wide[1].to(half))


@BACKENDS
def test_half_precision_counts_more_voxels_than_a_half_can(form):
    # 2^17 voxels of energy 4: a float16 sum would stop at 65504, or at 2048 steps of 1.
    u = torch.arange(8.0).square().repeat(2**17 // 8 + 2, 1)[None, None].half()
    with dispatch.forced(form):
        value = BendingEnergyLoss()(u)
    assert value == 4


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constant_field_has_neither_value_nor_gradient(form, reduction, dtype):
    for constant in (0.0, 300.7):
        u = torch.full((2, 3, 5, 6, 7), constant, dtype=dtype)
        value, gradient = value_and_gradient(BendingEnergyLoss(reduction), u, form=form)
        assert (value == 0).all()
        assert (gradient == 0).all()


@BACKENDS
def test_patch_of_a_float16_field_that_is_nearly_all_background_keeps_its_energy(form):
    u = torch.zeros(1, 3, 40, 40, 40, dtype=torch.float16)
    u[0, 1, 20, 20, 20] = 0.25
    value, gradient = value_and_gradient(BendingEnergyLoss("sum"), u, form=form)
    # One voxel: 1, 4, 1 by three axes, and four corners of 1/16 in each of three planes, counted twice; times 1/16.
    torch.testing.assert_close(value.item(), (3 * 6 + 2 * 3 * 4 / 16) / 16, rtol=1e-3, atol=0)
    assert (gradient[:, [0, 2]] == 0).all()
    assert gradient[0, 1].count_nonzero() > 0


@BACKENDS
def test_large_offset_does_not_spoil_a_small_bend(form):
    bend = logits(1, 1, 8, 9, 10, dtype=torch.float64) / 64
    u = (bend + 1024).float()  # what is left of the bend is exact
    left = u.double() - 1024
    value, gradient = value_and_gradient(BendingEnergyLoss(), u, form=form)
    expected = value_and_gradient(BendingEnergyLoss(), left, form="plain")
    assert_all_close((value,), expected[:1], 1e-6)
    assert_all_close((gradient,), expected[1:], 0, 1e-6 * expected[1].abs().max().item())


@BACKENDS
def test_float64_is_not_rounded_to_float32_on_the_way(form):
    u = logits(2, 3, 6, 7, 8, dtype=torch.float64)
    options = {"spacing": (0.1, 0.3, 0.7), "normalize": True}
    value, gradient = value_and_gradient(BendingEnergyLoss(**options), u, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(u, **options)
    assert_all_close((value, gradient), expected, 1e-13, 1e-14 * expected[1].abs().max().item())


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_reaches_value_and_gradient(form, reduction, poison):
    u = logits(2, 2, 6, 7, 8)
    u[1, 0, 3, 3, 3] = poison
    value, gradient = value_and_gradient(BendingEnergyLoss(reduction), u, form=form)
    if reduction == "none":
        assert not value[1, 0, 2, 2, 2].isfinite()
        assert value[0].isfinite().all()
        assert value[1, 1].isfinite().all()
    else:
        assert not value.isfinite()
    assert not gradient[1, 0, 3, 3, 3].isfinite()
    assert gradient[0].isfinite().all()
    assert gradient[1, 1].isfinite().all()


# --- differentiation -------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@STENCILS
@pytest.mark.parametrize("spatial", [(6,), (5, 6), (5, 5, 6)])
def test_gradcheck_and_gradgradcheck(form, reduction, stencil, spatial):
    u = logits(1, len(spatial), *spatial, dtype=torch.float64).requires_grad_()
    loss = BendingEnergyLoss(reduction, stencil=stencil, normalize=True, spacing=SPACING[: len(spatial)])
    with dispatch.forced(form):
        assert torch.autograd.gradcheck(loss, u, fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, u, fast_mode=True)


@pytest.mark.parametrize("voxelwise", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (2, 1, 6, 7), (2, 5, 6, 7)])
def test_operator_keeps_the_rules_of_torch(voxelwise, shape):
    terms = 6 if shape[1] > 1 else 3 if shape[2] > 1 else 1
    u, weights = logits(*shape).requires_grad_(), torch.ones(2, terms, dtype=torch.float64)
    torch.library.opcheck(torch.ops.twinloss.bending_energy.default, (u, weights, 1, voxelwise))


@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"stencil": "wide", "normalize": True, "spacing": (0.5, 2.0)}])
def test_compiles_without_a_graph_break_to_the_same_numbers(reduction, options):
    torch.compiler.reset()  # which has a limit on how often the forward of all losses of fields is compiled
    u = logits(2, 2, 8, 9)
    loss = BendingEnergyLoss(reduction, **options)
    expected = value_and_gradient(loss, u)
    assert_all_close(value_and_gradient(torch.compile(loss, fullgraph=True), u), expected, 1e-6, 1e-7)


# --- layouts, threads, state -----------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
def test_layout_of_the_field_does_not_matter(form, reduction):
    u = logits(2, 3, 6, 5, 7)
    loss = BendingEnergyLoss(reduction)
    expected = value_and_gradient(loss, u, form=form)
    sliced = torch.zeros(2, 4, 9, 5, 14)[:, 1:, 2:8, :, ::2].copy_(u)
    for strided in (u.to(memory_format=torch.channels_last_3d), u.mT.contiguous().mT, sliced):
        assert not strided.is_contiguous()
        assert_all_close(value_and_gradient(loss, strided, form=form), expected, 1e-6, 1e-6)


@REDUCTIONS
def test_result_is_bitwise_the_same_for_any_number_of_threads(reduction):
    before = torch.get_num_threads()
    u = logits(1, 3, 30, 31, 67)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(value_and_gradient(BendingEnergyLoss(reduction), u))
    finally:
        torch.set_num_threads(before)
    for value, gradient in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_kernel_and_plain_form_agree_beyond_one_chunk():
    # Longer than a slab of planes, and rows longer and shorter than a block.
    for shape in ((1, 3, 60, 50, 40), (1, 2, 70, 2100), (1, 1, 9, 3, 3), (1, 1, 3, 700, 3), (1, 1, 5000)):
        u = logits(*shape, dtype=torch.float64)
        for stencil in ("compact",) if 3 in shape[2:] else ("compact", "wide"):
            loss = BendingEnergyLoss(stencil=stencil)
            expected = value_and_gradient(loss, u, form="plain")
            assert_all_close(value_and_gradient(loss, u, form="kernel"), expected, 1e-12, 1e-15)


@BACKENDS
def test_field_and_module_stay_as_they_were(form):
    u = logits(2, 2, 6, 7)
    loss = BendingEnergyLoss(spacing=(1.0, 2.0), normalize=True)
    before, field = copy.deepcopy(vars(loss)), u.clone()
    value_and_gradient(loss, u, form=form)
    assert vars(loss) == before
    assert torch.equal(u, field)


def test_options_survive_half_copying_and_pickling():
    u = logits(1, 2, 6, 7, dtype=torch.float64)
    loss = BendingEnergyLoss("sum", stencil="wide", spacing=[0.1, 0.3], normalize=True)
    for twin in (copy.deepcopy(loss).half(), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(u), loss(u))


def test_spacing_is_copied():
    spacing = [1.0, 2.0]
    loss, u = BendingEnergyLoss(spacing=spacing), logits(1, 2, 6, 7)
    expected = loss(u)
    spacing[0] = 5.0
    assert torch.equal(loss(u), expected)
