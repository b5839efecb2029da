"""The records of the registration losses, and of the multi-scale wrapper around two losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from twinloss import fast, reference
from twinloss.harness.drawing.registration_cases import FIRST, displacements, image_pair
from twinloss.harness.losses import benchmark_inputs, bounds, gradient_term_sizes, lost_digits, peers
from twinloss.harness.losses import registration_laws as laws
from twinloss.harness.losses.benchmark_inputs import bench
from twinloss.harness.losses.module_laws import PROTOCOL
from twinloss.harness.model.benchmark_spec import BenchmarkSpec, LeastWork
from twinloss.harness.model.operand import Array, PerCase, Sizes
from twinloss.harness.model.real_case import RealCase
from twinloss.harness.model.twin import Case, Twin

REDUCTION = {"reduction": ("mean", "sum", "none")}


def _type_of_images(case: Case) -> tuple[str]:
    """Return float64 if either image is float64, else the dtype of the first image."""
    return ("float64" if "float64" in (operand.dtype for operand in case.operands.values()) else case.dtype,)


# Attributes that all losses of two images share: the dtype of the result, and a gradient with respect to both images.
OF_IMAGES: dict[str, Any] = {"results": _type_of_images, "slopes": lambda twin, case: ("target",)}


def _rank(sizes: Sizes) -> int:
    return sizes.rank


def _anisotropic(sizes: Sizes) -> list[float]:
    return [0.5 * (d + 1) for d in range(sizes.rank)]


RANK = PerCase("the rank", _rank)
NDIM = {"ndim": (RANK,)}
ANISOTROPIC = PerCase("½, 1, 1½", _anisotropic)


def _warped(*names: str) -> Callable[[], Mapping[str, Array]]:
    def operands() -> Mapping[str, Array]:
        from twinloss.harness.data.warp import load_warped

        images = load_warped()
        return {argument: getattr(images, name) for argument, name in zip(("pred", "target"), names, strict=False)}

    return operands


FIELD = RealCase("displacement field", _warped("field"))
PAIR = RealCase("brain and warped brain", _warped("moving", "fixed"), {"ndim": 3})
T1_AND_GREY = RealCase("grey matter and brain", _warped("grey_matter", "fixed"))

OF_FIELDS = {"stencil": ("compact", "wide"), "normalize": (False, True), "spacing": (None, ANISOTROPIC)}

FIELD_WORK = LeastWork(6, 0, 0, "three components are read, and their gradient is written")

BENDING_ENERGY = Twin(
    name="bending_energy",
    fast=fast.BendingEnergyLoss,
    value=reference.bending_energy_loss,
    gradient=reference.bending_energy_loss_gradient,
    operands=("pred",),
    options=REDUCTION | OF_FIELDS,
    cases=displacements,
    unit=0.0,
    bounds=bounds.not_negative,
    laws=laws.BENDING_ENERGY + PROTOCOL,
    real=(FIELD,),
    compiles_first=True,
    benches=(bench(benchmark_inputs.displacement, "BendingEnergyLoss", {}, work=FIELD_WORK),),
)

DIFFUSION = Twin(
    name="diffusion",
    fast=fast.DiffusionLoss,
    value=reference.diffusion_loss,
    gradient=reference.diffusion_loss_gradient,
    operands=("pred",),
    options=REDUCTION | OF_FIELDS,
    cases=partial(displacements, least=FIRST),
    unit=0.0,
    bounds=bounds.not_negative,
    laws=laws.DIFFUSION + PROTOCOL,
    real=(FIELD,),
    unlike_monai=True,
    compiles_first=True,
    benches=(
        bench(
            benchmark_inputs.displacement, "DiffusionLoss", {},
            note="MONAI's differences are those of the wide stencil", work=FIELD_WORK,
        ),
        BenchmarkSpec(
            benchmark_inputs.displacement, {"stencil": "wide"}, benchmark_inputs.of_monai("DiffusionLoss", {}),
            "stencil = wide", work=FIELD_WORK,
        ),
    ),
)  # fmt: skip


def _contrast_or_smoothing(options: Mapping[str, Any]) -> bool:
    """Return whether the loss is defined: a window of one voxel is always flat, which is 0 / 0 without smoothing."""
    return bool(options["kernel_size"] > 1 or options["smooth_dr"] > 0)


LNCC = Twin(
    name="lncc",
    fast=fast.LocalNormalizedCrossCorrelationLoss,
    value=reference.local_normalized_cross_correlation_loss,
    gradient=reference.local_normalized_cross_correlation_loss_gradient,
    operands=("pred", "target"),
    options=NDIM | {"kernel_size": (3, 1, 5, 9), "kernel_type": ("rectangular", "triangular", "gaussian")}
    | REDUCTION | {
        "smooth_nr": (1e-5, 0.0, 1.0), "smooth_dr": (1e-5, 0.0, 1.0), "denominator": ("product", "clamp"),
    },
    cases=image_pair,
    **OF_IMAGES,
    allowed=_contrast_or_smoothing,
    required=("ndim",),
    constants=("smooth_nr", "smooth_dr"),
    terms=gradient_term_sizes.lncc,
    value_terms=gradient_term_sizes.lncc_value,
    kinks=lambda options: options.get("denominator") == "clamp",
    bounds=bounds.correlation,
    laws=laws.LNCC + PROTOCOL,
    real=(PAIR,),
    lost_digits=lost_digits.WINDOWS,
    unlike_monai=True,
    compiles_first=True,
    benches=tuple(
        bench(
            benchmark_inputs.images, "LocalNormalizedCrossCorrelationLoss", {"kernel_size": k},
            name=f"k = {k}", memory=8.0, swept=k == 9, others={
                "voxelmorph": partial(peers.voxelmorph_ncc, k), peers.FIREANTS: partial(peers.fireants_ncc, k),
            },
            work=LeastWork(3, 0, 0, "two images are read, one gradient is written; no intermediate image is counted"),
            note="voxelmorph also squares and averages, but smooths in another way",
        )
        for k in (3, 9, 21)
    ),
)  # fmt: skip


def _enough_bins(options: Mapping[str, Any]) -> bool:
    return bool(options["kernel_type"] == "gaussian" or options["num_bins"] >= 5)


GLOBAL_MUTUAL_INFORMATION = Twin(
    name="mutual_information",
    fast=fast.GlobalMutualInformationLoss,
    value=reference.global_mutual_information_loss,
    gradient=reference.global_mutual_information_loss_gradient,
    operands=("pred", "target"),
    options={"num_bins": (23, 2, 8, 64), "sigma_ratio": (0.5, 0.25, 2.0)} | REDUCTION | {
        "smooth_nr": (1e-7, 1e-3), "smooth_dr": (1e-7, 1e-3), "kernel_type": ("gaussian", "b-spline"),
    },
    cases=image_pair,
    **OF_IMAGES,
    allowed=_enough_bins,
    constants=("smooth_nr", "smooth_dr", "sigma_ratio"),
    terms=gradient_term_sizes.mutual_information,
    kinks=lambda options: True,
    bounds=bounds.information,
    laws=laws.MUTUAL_INFORMATION + PROTOCOL,
    real=(T1_AND_GREY,),
    lost_digits=lost_digits.HISTOGRAM,
    unlike_monai=True,
    compiles_first=True,
    benches=(
        bench(
            benchmark_inputs.images, "GlobalMutualInformationLoss", {}, memory=2.0,
            others={"kornia": peers.kornia_information, peers.FIREANTS: peers.fireants_information},
            work=LeastWork(5, 0, 0, "two images are read twice, one gradient is written; the histogram stays in cache"),
            note="kornia's kernel is not Gaussian, and reaches only one bin to either side",
        ),
    ),
)  # fmt: skip


class MultiScale(torch.nn.Module):
    """The wrapper around our LNCC, or around torch's MSELoss; it takes `pred` first."""

    def __init__(self, ndim: int = 3, loss: str = "lncc", kernel_size: int = 3, **options: Any) -> None:
        super().__init__()
        lncc = fast.LocalNormalizedCrossCorrelationLoss(ndim, kernel_size)
        wrapped = lncc if loss == "lncc" else torch.nn.MSELoss()
        self.multi_scale = fast.MultiScaleLoss(wrapped, **options)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Call the wrapper, which takes its arguments in the opposite order."""
        loss: torch.Tensor = self.multi_scale(target, pred)
        return loss


def multi_scale(pred: Array, target: Array, *, ndim: int = 3, loss: str = "lncc", **options: Any) -> Array:
    """Return the reference's value for the wrapper around LNCC or squared differences."""
    return reference.multi_scale_loss(target, pred, _wrapped(loss, ndim)[0], **options)


def multi_scale_gradient(
    pred: Array, target: Array, *, ndim: int = 3, loss: str = "lncc", cotangent: Array | float = 1.0, **options: Any
) -> Array:
    """Return the gradient with respect to `pred`."""
    return reference.multi_scale_loss_gradient(target, pred, *_wrapped(loss, ndim), cotangent=cotangent, **options)


def _wrapped(loss: str, ndim: int) -> tuple[Callable[..., Array], Callable[..., Array]]:
    if loss == "squares":
        return _squares, _squares_gradient
    value = reference.local_normalized_cross_correlation_loss
    gradient = reference.local_normalized_cross_correlation_loss_gradient
    return (
        lambda pred, target: value(pred, target, ndim=ndim),
        lambda pred, target, cotangent: gradient(pred, target, ndim=ndim, cotangent=cotangent),
    )


def _squares(pred: Array, target: Array) -> Array:
    return np.asarray(np.mean((pred - target) ** 2))


def _squares_gradient(pred: Array, target: Array, cotangent: Array) -> Array:
    return np.asarray(2 * cotangent * (pred - target) / pred.size)


def _monai_multi_scale(losses: Any) -> Callable[..., torch.Tensor]:
    wrapped = losses.LocalNormalizedCrossCorrelationLoss(kernel_size=9)
    made: Callable[..., torch.Tensor] = losses.MultiScaleLoss(wrapped, scales=[0, 1, 2])
    return made


MULTI_SCALE = Twin(
    name="multi_scale",
    fast=MultiScale,
    wraps=fast.MultiScaleLoss,
    value=multi_scale,
    gradient=multi_scale_gradient,
    operands=("pred", "target"),
    options=NDIM | {"loss": ("lncc", "squares"), "scales": (None, [0], [0, 1, 2], [0.3, 1.5]),
                    "kernel": ("gaussian", "cauchy")} | REDUCTION | {"normalize_kernel": (False, True)},
    cases=image_pair,
    **OF_IMAGES,
    required=("ndim",),
    terms=lambda truth: gradient_term_sizes.multi_scale_lncc(truth, *_wrapped("lncc", truth.case.options["ndim"])),
    bounds=bounds.multi_scale,
    laws=laws.MULTI_SCALE + PROTOCOL,
    real=(PAIR.having("brain and warped brain, scale 2", ndim=3, scales=[2]),),
    lost_digits=lost_digits.WINDOWS,
    unlike_monai=True,
    benches=(
        BenchmarkSpec(
            benchmark_inputs.images, {"kernel_size": 9, "scales": [0, 1, 2]}, _monai_multi_scale,
            "LNCC, k = 9, scales 0, 1, 2", memory=8.0,
            work=LeastWork(
                3 * 3 + 2 * 3 * 2, 0, 0,
                "LNCC is computed three times; at two scales, two images and one gradient are smoothed: read and "
                "written",
            ),
        ),
    ),
)  # fmt: skip
