"""`twinloss diagnose`: a user's own batch, looked at from all sides, and what to make of it in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from twinloss.harness.answers import expected_warnings_silent, widened
from twinloss.harness.catalogue import find
from twinloss.harness.twin import DTYPES, Array, Twin
from twinloss.reference.activation import softmax

# What files call the arguments.
ALIASES = {
    "input": ("input", "logits", "pred", "prediction", "output", "x"),
    "pred": ("pred", "prediction", "input", "moving", "displacement", "ddf", "x"),
    "target": ("target", "label", "labels", "true", "fixed", "y", "g"),
    "mask": ("mask", "weight_map"),
}
# By how much smoothing may change a value before it is said to decide it, and rounding before it is said to cost.
DECIDES, COSTS = 0.01, 1e-3


class BatchError(ValueError):
    """A file that cannot be read, or that does not hold what the loss takes."""


@dataclass
class Diagnosis:
    """What was found: tables of texts, each with a title and a head, and sentences."""

    twin: Twin
    options: dict[str, Any]
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)


def load(path: Path) -> dict[str, Array]:
    """The arrays of a file: .npz or .npy, .pt or .pth with a dictionary of tensors, .nii or .nii.gz.

    Nothing in it is run: pickles are refused. A NIfTI image of three axes is one channel of one item; a fourth axis is
    that of the channels.

    Raises:
        BatchError: if the file is not there, of another kind, damaged, or holds more than arrays.
    """
    name = path.name.lower()
    if not path.is_file():
        raise BatchError(f"there is no file {path}")
    try:
        if name.endswith(".npz"):
            with np.load(path, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        if name.endswith(".npy"):
            return {path.stem: np.load(path, allow_pickle=False)}
        if name.endswith((".pt", ".pth")):
            return _tensors(torch.load(path, map_location="cpu", weights_only=True))
        if name.endswith((".nii", ".nii.gz")):
            return {name.removesuffix(".gz").removesuffix(".nii"): _image(path)}
    except BatchError:
        raise
    except UnpicklingError as error:
        raise BatchError(
            f"cannot read {path}: it holds more than tensors, or is damaged; what it holds was not run. A file that is "
            "made by torch.save({'input': …, 'target': …}) of tensors alone can be read"
        ) from error
    except Exception as error:
        raise BatchError(f"cannot read {path}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    raise BatchError(f"{path} is of no kind that is known: .npz, .npy, .pt, .pth, .nii or .nii.gz")


def _tensors(found: Any) -> dict[str, Array]:
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise BatchError(f"a dictionary of tensors is needed, such as {{'input': …, 'target': …}}, got {type(found)}")
    return {str(key): widened(value) for key, value in found.items()}


def _image(path: Path) -> Array:
    try:
        import nibabel
    except ImportError as error:
        raise BatchError(f"{path}: NIfTI needs nibabel: pip install 'twinloss[real]'") from error
    values = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    return values[np.newaxis, np.newaxis] if values.ndim < 4 else np.moveaxis(values, 3, 0)[np.newaxis]


def arguments(twin: Twin, found: Mapping[str, Array], names: Mapping[str, str]) -> dict[str, Array]:
    """The arguments of a loss among the arrays of a file, by name; what is alone needs none.

    Raises:
        BatchError: if one is missing.
    """
    made = {}
    for operand in twin.operands:
        wanted = [names[operand]] if operand in names else ALIASES[operand]
        name = next((key for key in wanted if key in found), None)
        if name is None and len(twin.operands) == len(found) == 1:
            name = next(iter(found))
        if name is not None:
            made[operand] = found[name]
        elif operand != "mask":
            have = ", ".join(f"{key} {value.shape}" for key, value in found.items())
            raise BatchError(f"no {operand} among {have}: name it by --map {operand}=NAME")
    return made


def diagnose(like: str, found: Mapping[str, Array], options: Mapping[str, Any] | None = None,
             names: Mapping[str, str] | None = None) -> Diagnosis:  # fmt: skip
    """Look at a batch.

    Args:
        like: the loss, by a name that `twinloss list` shows.
        found: arrays by name, such as `load` gives.
        options: of the loss; what is left out is guessed from the shapes and the numbers, and told.
        names: our names of the arguments to those of the arrays.

    Raises:
        BatchError: if an argument is missing, or the loss refuses them; its message says why.
    """
    twin = find(like)
    arrays = arguments(twin, found, names or {})
    if "mask" in twin.operands and "mask" not in arrays:
        twin = find("dice")
    guessed = _guessed(twin, arrays, options or {})
    made = Diagnosis(twin, {**guessed, **(options or {})})
    if guessed:
        told = ", ".join(f"{name}={value}" for name, value in guessed.items())
        made.verdict.append(f"Taken for granted: {told}. Say otherwise with --option.")
    made.tables.append(("arrays", ["", "shape", "type", "least", "largest", "NaN", "infinite"], _arrays(arrays)))
    made.verdict += _broken(arrays)
    if wrong := _wrong_labels(twin, made.options, arrays):
        made.verdict.append(wrong)
        return made
    made.verdict += _absent_classes(twin, made.options, arrays)
    dtype = str(next(iter(arrays.values())).dtype)
    answers = {name: _answer(twin, arrays, made.options, name) for name in DTYPES}
    truth = _truth(twin, arrays, made.options)
    made.tables.append(("value and gradient", ["", "value", "its error", "gradient, largest", "its error"],
                        _precisions(answers, truth)))  # fmt: skip
    made.verdict += _costs(answers, truth, dtype)
    made.verdict += _smoothing(twin, arrays, made.options, truth[0])
    by_class = _classes(twin, made.options, arrays, truth[1])
    if by_class:
        head = ["item", "class", "voxels", "predicted", "overlap", "Dice", "gradient, largest"]
        made.tables.append(("classes", head, by_class))
    if not made.verdict or (made.verdict == made.verdict[:1] and guessed):
        made.verdict.append("Nothing is wrong with this batch: reference and fast loss agree in every type.")
    return made


def _guessed(twin: Twin, arrays: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
    x, target = next(iter(arrays.values())), arrays.get("target")
    made: dict[str, Any] = {}
    if "ndim" in twin.options and "ndim" not in given:
        made["ndim"] = x.ndim - 2
    if "to_onehot_y" in twin.options and "to_onehot_y" not in given and target is not None:
        if x.ndim >= 2 and target.ndim >= 2 and target.shape[1] == 1 < x.shape[1]:
            made["to_onehot_y"] = True
    activations = {"softmax", "sigmoid", "other_act"}
    if "softmax" in twin.options and not activations & set(given) and x.ndim >= 2:
        finite = x[np.isfinite(x)]
        if finite.size and (finite.min() < 0 or finite.max() > 1):
            made["softmax" if x.shape[1] > 1 else "sigmoid"] = True
    return made


def _arrays(arrays: Mapping[str, Array]) -> list[list[str]]:
    rows = []
    for name, values in arrays.items():
        finite = values[np.isfinite(values)]
        ends = [f"{finite.min():.4g}", f"{finite.max():.4g}"] if finite.size else ["", ""]
        counts = [str(int(np.isnan(values).sum())), str(int(np.isinf(values).sum()))]
        rows.append([name, str(values.shape), str(values.dtype), *ends, *counts])
    return rows


def _broken(arrays: Mapping[str, Array]) -> Iterator[str]:
    for name, values in arrays.items():
        bad = ~np.isfinite(values)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            yield (
                f"In {name}, {int(bad.sum())} of {bad.size} numbers are NaN or infinite, the first at {at}: what comes "
                "before the loss made them."
            )


def _labels(twin: Twin, options: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array | None:
    """The target, if it holds labels."""
    return arrays.get("target") if options.get("to_onehot_y") or "dist_matrix" in twin.options else None


def _wrong_labels(twin: Twin, options: Mapping[str, Any], arrays: Mapping[str, Array]) -> str | None:
    target, classes = _labels(twin, options, arrays), next(iter(arrays.values())).shape[1]
    if target is None:
        return None
    values, counts = np.unique(target, return_counts=True)
    wrong = (values < 0) | (values >= classes) | (values != np.round(values))
    wrong &= values != options.get("ignore_index")
    told = ", ".join(f"{v:g} ({n} voxels)" for v, n in zip(values[wrong][:5], counts[wrong][:5], strict=True))
    return told and (
        f"Labels must be whole numbers in [0, {classes}), one for each channel of the input; there are {told}: "
        "relabel, or pass --option ignore_index=…. With these the loss is an error, so that nothing else is looked at."
    )


def _absent_classes(twin: Twin, options: Mapping[str, Any], arrays: Mapping[str, Array]) -> Iterator[str]:
    target, classes = _labels(twin, options, arrays), next(iter(arrays.values())).shape[1]
    for b, item in enumerate(() if target is None else target):
        absent = sorted(set(range(classes)) - {int(v) for v in np.unique(item) if 0 <= v < classes})
        if absent:
            yield (
                f"Item {b} has no voxel of class {', '.join(map(str, absent))}: what is predicted of it is false, and "
                "if nothing is, only smoothing keeps the loss from 0 / 0."
            )


def _answer(twin: Twin, arrays: Mapping[str, Array], options: Mapping[str, Any], dtype: str) -> tuple[Array, Array]:
    tensors = [torch.from_numpy(np.ascontiguousarray(values)) for values in arrays.values()]
    x = tensors[0].to(getattr(torch, dtype)).requires_grad_()
    try:
        with expected_warnings_silent():
            value = twin.fast(**options)(x, *tensors[1:])
        (gradient,) = torch.autograd.grad(value.sum(), x)
    except (ValueError, TypeError, AssertionError) as error:
        raise BatchError(f"{twin.fast.__name__} refuses this: {error}") from error
    return widened(value).astype(np.float64), widened(gradient).astype(np.float64)


def _truth(twin: Twin, arrays: Mapping[str, Array], options: Mapping[str, Any]) -> tuple[Array, Array]:
    lifted = [v.astype(np.float64) if v.dtype.kind == "f" else v for v in arrays.values()]
    with np.errstate(all="ignore"):
        value = np.asarray(twin.value(*lifted, **options))
        return value, np.asarray(twin.gradient(*lifted, cotangent=np.ones(value.shape), **options))


def _precisions(answers: Mapping[str, tuple[Array, Array]], truth: tuple[Array, Array]) -> list[list[str]]:
    value, gradient = truth
    rows = [["reference", f"{value.mean():.8g}", "", f"{np.abs(gradient).max():.4g}", ""]]
    for dtype, (v, g) in answers.items():
        errors = [f"{_relative(a, b):.1e}" for a, b in ((v, value), (g, gradient))]
        rows.append([dtype, f"{v.mean():.8g}", errors[0], f"{np.abs(g).max():.4g}", errors[1]])
    return rows


def _relative(got: Array, want: Array) -> float:
    with np.errstate(all="ignore"):
        both = np.isnan(got) & np.isnan(want) | (got == want)
        off = np.max(np.where(both, 0, np.abs(got - want)), initial=0)
        return float(off / max(np.abs(want).max(initial=0), np.finfo(float).tiny)) if off else 0.0


def _costs(answers: Mapping[str, tuple[Array, Array]], truth: tuple[Array, Array], dtype: str) -> Iterator[str]:
    for part, name in enumerate(("value", "gradient")):
        exact = truth[part]
        if not np.isfinite(exact).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(exact))[0]) if exact.ndim else ()
            at = f", first at {where}" if where else ""
            yield f"The {name} is NaN or infinite in any precision{at}: the input or the formula makes it so."
            continue
        for each in ("float32", "float16", "bfloat16"):
            off = _relative(answers[each][part], exact)
            if not off <= max(COSTS, 4 * torch.finfo(getattr(torch, each)).eps):  # more than rounding the result does
                own = ", the batch's own type," if each == dtype else ""
                yield f"In {each}{own} the {name} is off by {off:.1%} of its largest number, by rounding alone."
        if name == "gradient" and not exact.any():
            yield "The gradient is 0 everywhere: this batch teaches nothing."


def _smoothing(twin: Twin, arrays: Mapping[str, Array], options: Mapping[str, Any], value: Array) -> Iterator[str]:
    for name in ("smooth_nr", "smooth_dr"):
        if name not in twin.options or not np.isfinite(value).all():
            continue
        without = _truth(twin, arrays, {**options, name: 0.0})[0]
        if not np.isfinite(without).all():
            yield f"Without {name} the value would be NaN or infinite: something is absent, and it stands in for that."
        elif np.abs(without - value).max() > DECIDES * max(np.abs(value).max(), DECIDES):
            yield f"{name} decides: without it the value is {without.mean():.4g} in place of {value.mean():.4g}."


def _classes(twin: Twin, options: Mapping[str, Any], arrays: Mapping[str, Array], gradient: Array) -> list[list[str]]:
    """Sizes and overlap by item and class of a segmentation loss."""
    x, target = next(iter(arrays.values())), arrays.get("target")
    if "input" not in twin.operands or target is None or x.ndim < 2:
        return []
    lifted = x.astype(np.float64)
    p = softmax(lifted) if options.get("softmax") or "softmax" not in twin.options else lifted
    if options.get("sigmoid"):
        p = 1 / (1 + np.exp(-lifted))
    channels = np.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
    labels = target.reshape(len(target), 1, *x.shape[2:]) if target.size == x.size // x.shape[1] else target
    g = labels if labels.shape[1] == x.shape[1] else labels == channels
    rows = []
    for b, c in np.ndindex(*x.shape[:2]):
        volume, predicted, overlap = float(g[b, c].sum()), float(p[b, c].sum()), float((p[b, c] * g[b, c]).sum())
        dice = f"{2 * overlap / (volume + predicted):.4f}" if volume + predicted > 0 else ""
        numbers = [f"{volume:.6g}", f"{predicted:.6g}", f"{overlap:.6g}", dice, f"{np.abs(gradient[b, c]).max():.3g}"]
        rows.append([str(b), str(c), *numbers])
    return rows
