"""Correlations in moving windows on a GPU: value and gradient are those of the reference, for all windows and types."""

import weakref

import numpy as np
import pytest
import torch
from support import assert_all_close, exact, logits
from torch.utils._python_dispatch import TorchDispatchMode

from twinloss import reference
from twinloss.fast import LocalNormalizedCrossCorrelationLoss as LNCC
from twinloss.fast.kernels.contract import CORRELATION, CorrelationPlan
from twinloss.harness.judging.trial import examine
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model import device as tested
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case

DTYPES = ("float32", "float64", "float16", "bfloat16")
# The smallest and the largest windows for which one launch is enough, or two, and one that takes three.
SIZES = (1, 3, 5, 7, 9, 11)


@pytest.fixture(autouse=True)
def harness_on(device):
    """Let the harness run the fast twins where the kernels run."""
    tested.use(device)
    yield
    tested.use("cpu")


def host():
    """Return the module that launches the kernels."""
    return pytest.importorskip("twinloss.fast.kernels.gpu.correlation")


@pytest.fixture
def small_programs(monkeypatch):
    """Let many small programs do the work, as on a GPU, a few planes at a time."""
    from twinloss.fast.kernels.gpu import window

    monkeypatch.setattr(window, "_LANES", 16)
    monkeypatch.setattr(window, "interpreted", lambda: False)
    monkeypatch.setattr(window, "processors", lambda device: 1)
    monkeypatch.setattr(host(), "_SMALL", 0)


def pair(*shape, dtype=torch.float64):
    """Two images that have something in common, so that all terms of the formula count."""
    common = logits(*shape, dtype=torch.float64)
    return common.to(dtype), (0.5 * common + logits(*shape, dtype=torch.float64, seed=3)).to(dtype)


def judge(p, t, dtype="float32", **options):
    """Assert that the fast twin is within the bounds of the hunt."""
    operands = {name: Operand(np.asarray(image, np.float64), dtype) for name, image in (("pred", p), ("target", t))}
    trial = examine(find("lncc"), Case(operands, {"ndim": p.ndim - 2, **options}))
    assert trial.kind is None, trial.message


def truth(p, t, **options):
    """Return the reference's value and the gradient of its sum in p, in long double."""
    value, slope = (
        reference.local_normalized_cross_correlation_loss,
        reference.local_normalized_cross_correlation_loss_gradient,
    )
    return exact(value, slope, p, t, ndim=p.ndim - 2, **options)


def on(device, *images):
    return [image.detach().to(device).requires_grad_() for image in images]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spatial", [(9,), (5, 7), (3, 4, 5)])
def test_windows_of_each_size_along_each_number_of_axes(size, spatial):
    judge(*pair(1, 1, *spatial), "float64", kernel_size=size)


@pytest.mark.parametrize("size", [3, 9, 11])
@pytest.mark.parametrize("kernel_type", ["triangular", "gaussian"])
def test_weighted_windows(size, kernel_type):
    judge(*pair(1, 2, 4, 5), kernel_size=size, kernel_type=kernel_type, denominator="clamp", smooth_dr=1.0)


def test_weighted_windows_of_three_axes():
    for size in (3, 7):
        judge(*pair(1, 1, 3, 4, 5), kernel_size=size, kernel_type="gaussian", reduction="none")


def test_one_launch_may_take_a_window_that_is_not_small(monkeypatch):
    monkeypatch.setattr(host(), "interpreted", lambda: False)
    judge(*pair(1, 1, 2, 3, 4), kernel_size=7)


def test_window_may_be_larger_than_a_block_of_threads():
    judge(*pair(1, 1, 6), kernel_size=135, kernel_type="triangular")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_images_of_all_types(dtype, reduction):
    p, t = (image.double() for image in pair(2, 1, 4, 5, dtype=getattr(torch, dtype)))
    judge(p, t, dtype, reduction=reduction)


def test_halves_are_read_by_the_kernels_themselves(device, monkeypatch):
    kernels = CORRELATION.kernels(torch.empty(0, device=device))
    seen, true = [], kernels.value_and_gradient

    def value_and_gradient(p, t, *rest):
        seen.extend([p.dtype, t.dtype])
        return true(p, t, *rest)

    monkeypatch.setattr(kernels, "value_and_gradient", value_and_gradient)
    p, t = pair(1, 1, 9, dtype=torch.float16)
    (p,) = on(device, p)
    gradient = torch.autograd.grad(2**15 * LNCC(1)(p, t.float().to(device)).float(), p)[0]
    assert seen == [torch.float16, torch.float32]
    assert gradient.dtype == torch.float16


@pytest.mark.parametrize(
    ("reduction", "spatial", "size"),
    [("mean", (3, 4), 3), ("none", (3, 4), 3), ("sum", (3, 4), 11), ("none", (3, 4), 11), ("none", (2, 2, 4), 7)],
)
def test_both_images_may_need_a_gradient_for_any_upstream(device, reduction, spatial, size):
    images = pair(2, 1, *spatial)
    loss = LNCC(len(spatial), size, "gaussian", reduction)
    shape = images[0].shape
    upstream = logits(*shape, dtype=torch.float64, seed=5) if reduction == "none" else torch.tensor(0.7).double()
    p, t = on(device, *images)
    found = torch.autograd.grad(loss(p, t), (p, t), upstream.to(device))
    cotangent = upstream.expand(shape) / (p.numel() if reduction == "mean" else 1)
    slope = reference.local_normalized_cross_correlation_loss_gradient
    options = {"ndim": len(spatial), "kernel_size": size, "kernel_type": "gaussian", "reduction": "none"}
    p, t, cotangent = (each.numpy().astype(np.longdouble) for each in (*images, cotangent))
    expected = [slope(*order, cotangent=cotangent, **options) for order in ((p, t), (t, p))]
    expected = [torch.from_numpy(each.astype(np.float64)) for each in expected]
    assert_all_close([each.cpu() for each in found], expected, 1e-12, 1e-13)


# --- what is numerically hard -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [3, 9])
def test_faint_contrast_on_a_large_offset(dtype, size):
    offset, contrast = (1e4, 0.01) if dtype == "float32" else (1e6, 1e-7)
    p, t = (offset + contrast * image for image in pair(1, 1, 5, 6))
    if dtype == "float32":
        p, t = p.float().double(), t.float().double()
    judge(p, t, dtype, kernel_size=size, smooth_nr=0.0, smooth_dr=1e-9)
    judge(p, t, dtype, kernel_size=size, kernel_type="gaussian", smooth_nr=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [2, 3])
def test_bright_region_leaves_no_trace_in_a_dark_one_of_tiny_contrast(device, dtype, axis):
    dtype = getattr(torch, dtype)
    p, t = (1e-3 * image for image in pair(1, 1, 16, 16))
    p.movedim(axis, -1)[..., :5] += 1e5
    t.movedim(axis, -1)[..., :7] -= 3e4
    p, t = p.to(dtype), t.to(dtype)
    options = {"kernel_size": 5, "smooth_nr": 0.0, "smooth_dr": 1e-12}
    value, slope = truth(p.double(), t.double(), reduction="none", **options)
    (p,) = on(device, p)
    found = LNCC(2, reduction="none", **options)(p, t.to(device))
    gradient = torch.autograd.grad(found.sum(), p)[0]
    assert_all_close([found.cpu()], [value], 1e-6, 1e-6)
    dark, expected = (each.movedim(axis, -1)[..., 11:] for each in (gradient.cpu(), slope))
    assert_all_close([dark], [expected], 0, 1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [3, 9])
def test_lone_bright_voxels_and_constant_patches(dtype, size):
    p, t = (np.zeros((2, 1, 5, 6)) for _ in range(2))
    p[0, 0, 2, 3], t[0, 0, 2, 3], t[0, 0, 0, 0] = 4.75, -0.125, 300.0
    p[1, 0, :3], t[1, 0, 1:] = 0.75, -2.5
    for kernel_type in ("rectangular", "gaussian"):
        judge(p, t, dtype, kernel_size=size, kernel_type=kernel_type, reduction="none")
    judge(p, p, dtype, kernel_size=size)


def test_lone_bright_voxels_keep_the_digits_of_a_weak_correlation():
    p, t = np.float32([[[[[0.0, 4.4704757]]]]]), np.float32([[[[[-4.8816319, -0.0072552]]]]])
    for size in (3, 9):
        judge(p, t, kernel_size=size, kernel_type="gaussian")


def test_contrast_of_a_few_roundoffs_is_not_lost_in_the_mean_of_a_window():
    rng = np.random.default_rng(0)
    pred, steps = rng.integers(-12, 13, (2, 1, 5, 7)) / 4, rng.integers(0, 4, (2, 1, 5, 7))
    pred[:, :, :3] = 0
    target = 8192 * (1 + np.finfo(np.float64).eps * steps)
    for kernel_type in ("rectangular", "gaussian"):
        judge(pred, target, "float64", kernel_size=5, kernel_type=kernel_type, smooth_nr=1.0)


def test_one_voxel():
    judge(np.full((1, 1, 1, 1, 1), 2.0), np.full((1, 1, 1, 1, 1), 3.0), kernel_size=3)
    judge(np.full((1, 1, 1), 2.0), np.full((1, 1, 1), 3.0), kernel_size=1, smooth_dr=0.5)


@np.errstate(invalid="ignore")  # the interpreter computes with NumPy
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("spatial", "size"), [((7, 8), 3), ((1, 12, 11), 7)])
def test_nan_reaches_the_windows_that_see_it_and_no_others(device, poison, which, spatial, size):
    images = pair(1, 1, *spatial, dtype=torch.float32)
    images[which][..., 3, 4] = poison
    p, t = on(device, *images)
    value = LNCC(len(spatial), size, reduction="none")(p, t)
    gradient = torch.autograd.grad(value.sum(), p)[0]
    place, reach = (slice(max(c - size // 2, 0), c + size // 2 + 1) for c in (3, 4)), size - 1
    seen, reached = torch.zeros(2, 1, 1, *spatial, dtype=torch.bool)
    seen[(..., *place)] = True
    reached[(..., *(slice(max(c - reach, 0), c + reach + 1) for c in (3, 4)))] = True
    assert torch.equal(value.cpu().isnan(), seen)
    assert gradient.cpu()[seen].isnan().all()
    assert gradient.cpu()[~reached].isfinite().all()
    assert LNCC(len(spatial), 1)(p, t).isnan()


# --- layouts, programs, memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels_last"])
def test_layout_of_the_images_does_not_matter(device, layout):
    change = {
        "transposed": lambda x: x.mT.contiguous().mT,
        "sliced": lambda x: torch.stack([x, x], -1)[..., 1],
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    }[layout]
    images = pair(1, 2, 3, 4)
    both = []
    for given in (images, map(change, images)):
        p, t = on(device, *given)
        value = LNCC(2, reduction="none")(p, t)
        upstream = change(logits(*p.shape, dtype=torch.float64)).to(device)
        both.append([value, *torch.autograd.grad(value, (p, t), upstream)])
    assert_all_close(*both, 0)


@pytest.mark.usefixtures("small_programs")
@pytest.mark.parametrize(("spatial", "size"), [((9, 3, 7), 3), ((12, 2, 3), 7), ((18, 1), 11), ((40,), 5)])
def test_programs_and_slabs_know_of_each_other(spatial, size):
    judge(*pair(1, 1, *spatial), kernel_size=size)


@pytest.mark.usefixtures("small_programs")
def test_result_is_bitwise_the_same_from_run_to_run(device):
    images = pair(1, 1, 8, 20, dtype=torch.float32)
    runs = []
    for _ in range(2):
        p, t = on(device, *images)
        value = LNCC(2, 3)(p, t.detach())
        runs.append([value, *torch.autograd.grad(value, p)])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_gradient_can_be_taken_twice_from_one_graph(device):
    p, t = (image.to(device) for image in pair(1, 1, 4, 5))
    p.requires_grad_()
    value = LNCC(2)(p, t)
    first = torch.autograd.grad(value, p, retain_graph=True)
    assert_all_close(torch.autograd.grad(3 * value, p), [3 * g for g in first], 1e-13, 1e-16)


def test_gradient_of_the_gradient(device):
    images = on(device, *pair(1, 1, 5))
    assert torch.autograd.gradgradcheck(LNCC(1, smooth_dr=0.5), images)
    p, t = on(device, *pair(1, 1, 5, dtype=torch.float16))
    (slope,) = torch.autograd.grad(LNCC(1)(p, t).float(), p, create_graph=True)
    (second,) = torch.autograd.grad(slope.float().square().sum(), p)
    assert second.isfinite().all()


def test_offsets_beyond_int32(device):
    # Only the pages that are touched get memory. One image is spread along z, the other along y.
    store = torch.empty(2**31 + 2**20, dtype=torch.float16, device=device)
    p = store.as_strided((1, 1, 3, 4, 5), (0, 0, 2**30, 5, 1))
    t = store.as_strided((1, 1, 3, 4, 5), (0, 0, 5, 2**29 + 2**18, 1), 2**19)
    near = pair(1, 1, 3, 4, 5, dtype=torch.float16)
    for there, here in zip((p, t), near, strict=True):
        there.copy_(here)
    results = []
    for one, other in ((p, t), near):
        one = one.detach().to(device).requires_grad_()
        value = LNCC()(one, other.to(device))
        results.append([value, *torch.autograd.grad(value, one)])
    assert_all_close(*results, 0)


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ == "empty":
            size = made.untyped_storage().nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(made.untyped_storage(), self._free, size)
        return made

    def _free(self, size):
        self.now -= size


@pytest.mark.parametrize("shape", [(1, 1, 112, 112, 112), (2, 1, 64, 64, 64), (1, 1, 1024, 1024)])
@pytest.mark.parametrize("size", [3, 9, 21])
def test_peak_is_four_images_beyond_the_inputs(device, monkeypatch, shape, size):
    p, t = torch.empty(2, shape[0] * shape[1], *[1] * (5 - len(shape)), *shape[2:], device=device)
    kernels = CORRELATION.kernels(p)
    monkeypatch.setattr(kernels, "launch", lambda *_, **__: None)
    plan = CorrelationPlan(size, "rectangular", len(shape) - 2, 1e-5, 1e-5, False)
    with _Live() as live:
        kernels.value_and_gradient(p, t, plan, -1.0, torch.float32)
    assert 3 * p.nbytes < live.most <= 4.01 * p.nbytes
