"""The kernels in operators of torch: where checks can read numbers, and what invalid numbers do where they cannot."""

import math

import pytest
import torch
from every_loss import EVERY_LOSS
from support import labels, logits, value_and_gradient

from twinloss.fast import DiceCELoss, DiceLoss, FocalLoss, GeneralizedWassersteinDiceLoss, MaskedDiceLoss
from twinloss.fast.engine.eager import voxels
from twinloss.fast.engine.eager.windows import filtered, summed
from twinloss.fast.engine.segmentation import labels as checks_of_labels
from twinloss.fast.engine.segmentation import plain
from twinloss.fast.runtime import checks, constants, dispatch

ON_LABELS = {"softmax": True, "to_onehot_y": True}


class OnDevice:
    """What a check asks of a tensor on a device other than the CPU."""

    is_meta = is_cpu = is_cuda = False
    __torch_dispatch__ = torch._C._disabled_torch_dispatch_impl


@pytest.fixture
def unreadable(monkeypatch):
    """No check reads a number, as on a GPU."""
    for module in (voxels, plain, checks_of_labels):
        monkeypatch.setattr(module, "is_readable", lambda tensor: False)


def test_checks_read_numbers_on_the_cpu_and_elsewhere_if_asked():
    x = torch.zeros(1)
    assert checks.is_readable(x)
    assert not checks.is_readable(x.to("meta"))
    assert not checks.is_readable(OnDevice())
    with checks.checked():
        assert checks.is_readable(OnDevice())
        assert not checks.is_readable(x.to("meta"))
    assert not checks.is_readable(OnDevice())


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("label", [3, -1, 255])
@pytest.mark.parametrize("form", ["sums", "autograd"])
@pytest.mark.parametrize(
    "loss",
    [
        DiceLoss(**ON_LABELS), DiceLoss(sigmoid=True, to_onehot_y=True, squared_pred=True), DiceCELoss(**ON_LABELS),
        FocalLoss(to_onehot_y=True), FocalLoss(to_onehot_y=True, use_softmax=False),
        GeneralizedWassersteinDiceLoss([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]),
        DiceLoss(to_onehot_y=True, soft_label=True),
    ],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
def test_invalid_labels_make_the_loss_and_its_gradient_nan_where_numbers_cannot_be_read(loss, form, label):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    y[1, 0, 3] = label
    if form == "autograd":
        with dispatch.forced("plain"):
            assert torch.func.vjp(lambda x: loss(x, y), x)[0].isnan()
        return
    value, gradient = value_and_gradient(loss, x, y, form="plain")
    assert value.isnan()
    assert gradient.isnan().any()
    ignoring = type(loss) in (DiceLoss, FocalLoss)
    if ignoring:
        loss.ignore_index = label
        assert value_and_gradient(loss, x, y, form="plain")[0].isfinite()
        loss.ignore_index = None


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("weight", [1.5, -0.5, math.nan])
def test_an_invalid_mask_makes_the_loss_nan_where_numbers_cannot_be_read(weight):
    x, y, mask = logits(2, 3, 7), labels(2, 1, 7), torch.ones(2, 1, 7)
    loss = MaskedDiceLoss(**ON_LABELS)
    assert value_and_gradient(loss, x, y, mask, form="plain")[0].isfinite()
    mask[0, 0, 2] = weight
    assert value_and_gradient(loss, x, y, mask, form="plain")[0].isnan()


@pytest.mark.usefixtures("unreadable")
def test_an_invalid_label_makes_the_unreduced_focal_loss_of_its_voxel_nan():
    x, y = logits(1, 3, 4), torch.tensor([[[0, 1, 7, 2]]])
    value, _ = value_and_gradient(FocalLoss(to_onehot_y=True, reduction="none"), x, y, form="plain")
    assert value[0].isnan().any(0).tolist() == [False, False, True, False]


@pytest.mark.filterwarnings("ignore")
@EVERY_LOSS
def test_a_loss_without_compiled_kernels_compiles_to_one_graph(each):
    arguments = each.arguments(torch.float32)
    torch.compiler.reset()
    with dispatch.forced("plain"):
        expected = each(*arguments)
        loss = each.make()
        found = torch.compile(lambda *arguments: loss(*arguments), fullgraph=True, backend="eager")(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@EVERY_LOSS
def test_a_loss_without_compiled_kernels_gives_the_same_bits_twice(each):
    x, *rest = each.arguments(torch.float32)
    with dispatch.forced("plain"):
        found = [value_and_gradient(each, x, *rest) for _ in range(2)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 5, 4), (6, 5, 4)])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_images_are_filtered_along_their_axes_as_by_a_sum_over_the_window(shape, size):
    rank = sum(n > 1 for n in shape)
    images = logits(2, 3, *shape, dtype=torch.float64)
    taps = tuple(1.0 / (1 + abs(j - size // 2)) for j in range(size))
    weights = torch.ones((1, 1, 1, 1, 1), dtype=torch.float64)
    for axis in range(3 - rank, 3):
        along = [size if each == axis else 1 for each in range(3)]
        weights = weights * torch.tensor(taps, dtype=torch.float64).reshape(1, 1, *along)
    pad = [n // 2 for n in weights.shape[2:]]

    def expected(kernel):
        flat = images.reshape(6, 1, *shape)
        return torch.nn.functional.conv3d(flat, kernel, padding=pad).reshape(images.shape)

    torch.testing.assert_close(summed(images, size, rank), expected(torch.ones_like(weights)))
    torch.testing.assert_close(filtered(images, taps, rank), expected(weights))


def test_numbers_that_are_not_finite_reach_the_windows_that_hold_them_and_no_others():
    images = torch.ones(1, 1, 1, 1, 9, dtype=torch.float64)
    images[..., 4] = math.inf
    found = filtered(images, (0.25, 0.5, 0.25), 1)[0, 0, 0, 0]
    assert found.isinf().tolist() == [False, False, False, True, True, True, False, False, False]
    assert found[[0, 8]].tolist() == [0.75, 0.75]


def test_constants_are_kept_for_a_device_and_a_type():
    x = torch.zeros(1)
    assert constants.constant((1.0, 2.0), x) is constants.constant((1.0, 2.0), x)
    assert constants.constant((1.0, 2.0), x.double()).dtype == torch.float64
    assert constants.accumulator(torch.device("mps")) == torch.float32
    assert constants.accumulator(torch.device("cuda")) == torch.float64
