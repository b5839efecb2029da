"""Reading a user's batch from files, without running anything that a file holds."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from twinloss.harness.model.operand import Array

KINDS = ".npz, .npy, .pt, .pth, .nii or .nii.gz"
SAVE = (
    "Objects are not made, as that could run code: save torch.save({'input': …, 'target': …}) of tensors, or "
    "np.savez(input=…, target=…) of arrays"
)


class BatchError(ValueError):
    """A file that cannot be read, or a batch that the loss does not take."""


@dataclass
class LoadedBatch:
    """The arrays of a batch by name.

    Attributes:
        arrays: of numbers that torch knows, in native byte order.
        types: what each had in its file, such as "bfloat16", which NumPy lacks.
        asking: the tensors that ask for a gradient.
        left_out: what is no array of numbers, by name, and what it is.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    asking: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LoadedBatch:
        """Sort values by whether they are arrays of numbers; a list of tensors, as of deep supervision, is numbered."""
        found = cls()
        for name, value in values.items():
            if isinstance(value, (list, tuple)) and value and all(isinstance(v, torch.Tensor) for v in value):
                for n, tensor in enumerate(value):
                    found.take(f"{name}.{n}", tensor)
            else:
                found.take(name, value)
        return found

    def take(self, name: str, value: Any) -> None:
        """Add an array or a tensor; anything else is left out, with a reason."""
        try:
            self.arrays[name], self.types[name] = native(value)
        except BatchError as reason:
            self.left_out[name] = str(reason)
        if isinstance(value, torch.Tensor) and value.requires_grad:
            self.asking.add(name)

    @property
    def names(self) -> list[str]:
        """Of arrays, and of what was left out."""
        return [*self.arrays, *self.left_out]

    def adopt(self, called: str, other: LoadedBatch, name: str) -> None:
        """Add what another batch has by some name, under another."""
        if name in other.arrays:
            self.arrays[called], self.types[called] = other.arrays[name], other.types[name]
        else:
            self.left_out[called] = other.left_out[name]
        if name in other.asking:
            self.asking.add(called)


def listed(left_out: Mapping[str, str]) -> str:
    """What was left out, and why."""
    return ", ".join(f"{name} ({reason})" for name, reason in left_out.items())


def native(value: Any) -> tuple[Array, str]:
    """An array in C order and a type that torch computes with, and the name of the type it came in.

    Wide unsigned integers become int64, and types beyond 64 bits float64.

    Raises:
        BatchError: if the value is no array of real numbers; its message says what it is.
    """
    if isinstance(value, _Unread):
        value = value.array()
    if isinstance(value, torch.Tensor):
        value, own = _dense(value), str(value.dtype).removeprefix("torch.")
    elif isinstance(value, np.ndarray):
        own = value.dtype.newbyteorder("=").name if value.dtype.kind in "buif" else str(value.dtype)
    elif isinstance(value, (list, tuple, dict)):
        raise BatchError(f"{type(value).__name__} of {len(value)}")
    else:
        raise BatchError(type(value).__name__)
    kind, width = value.dtype.kind, value.dtype.itemsize
    if kind == "c":
        raise BatchError(f"complex numbers ({own}): losses take real ones, such as the magnitude, by abs()")
    if kind not in "buif":
        raise BatchError(f"array of {own}")
    if value.ndim == 0:
        raise BatchError("single number")
    dtype = value.dtype.newbyteorder("=")
    if kind == "u" and width > 1:
        dtype = np.dtype(np.int64)
    elif width > 8:
        dtype = np.dtype(np.float64)
    return np.ascontiguousarray(value, dtype), own


def _dense(tensor: torch.Tensor) -> Array:
    if tensor.is_meta:
        raise BatchError("tensor on the meta device, which holds no numbers")
    if tensor.layout == torch.strided:
        tensor = tensor.as_subclass(torch.Tensor)  # of a subclass, every operation would copy its meta data
    else:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16 or (tensor.is_floating_point() and tensor.dtype.itemsize == 1):
        tensor = tensor.float()
    made: Array = tensor.resolve_conj().resolve_neg().numpy()
    return made


def load(*paths: Path) -> LoadedBatch:
    """The arrays of files: .npz or .npy, .pt or .pth with a dictionary of tensors, .nii or .nii.gz.

    Nothing in them is run: objects other than tensors and arrays are neither made nor imported. A NIfTI image of three
    axes is one channel of one item; a fourth axis is that of the channels, and so is a fifth beside a fourth of size 1.
    Where files hold the same name, the folder comes before it.

    Raises:
        BatchError: if a file is not there, of another kind, damaged, or holds no array of numbers.
    """
    files = [(path, _read(path)) for path in paths]
    names = [name for _, each in files for name in each.names]
    found = LoadedBatch()
    for path, each in files:
        for name in each.names:
            called = name if names.count(name) == 1 else str(path.parent / name)
            if called in found.names:
                raise BatchError(f"two arrays are called {called}: rename one of them")
            found.adopt(called, each, name)
    return found


def _read(path: Path) -> LoadedBatch:
    name = path.name.lower()
    if not path.is_file():
        raise BatchError(f"there is no file {path}")
    readers = {".npz": _npz, ".npy": _npy, ".pt": _torch, ".pth": _torch, ".nii": _nifti, ".nii.gz": _nifti}
    reader = next((reader for end, reader in readers.items() if name.endswith(end)), None)
    if reader is None:
        raise BatchError(f"{path} is of no kind that is known: {KINDS}")
    try:
        found = LoadedBatch.of(dict(reader(path)))
    except BatchError as error:
        raise BatchError(f"cannot read {path}: {error}") from error
    except UnpicklingError as error:
        raise BatchError(f"cannot read {path}: it is damaged, or holds what is no tensor. {SAVE}") from error
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        kind = type(error).__name__
        raise BatchError(f"cannot read {path}: it is damaged or of another kind: {kind}: {told}") from error
    if not found.arrays:
        told = listed(found.left_out) or "it is empty"
        raise BatchError(f"cannot read {path}: it holds no array of numbers: {told}. {SAVE}")
    return found


def _npz(path: Path) -> Iterator[tuple[str, Any]]:
    with np.load(path, allow_pickle=False) as found:
        for name in found.files:
            try:
                yield name, found[name]
            except ValueError:  # NumPy refuses to unpickle
                yield name, np.empty(1, object)


def _npy(path: Path) -> Iterator[tuple[str, Any]]:
    yield path.stem, np.load(path, allow_pickle=False)


def _nifti(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import nibabel
    except ImportError as error:
        raise BatchError("NIfTI needs nibabel: pip install 'twinloss[real]'") from error
    values = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    if values.ndim == 5 and values.shape[3] == 1:  # a field of vectors
        values = values[:, :, :, 0]
    if values.ndim > 4:
        raise BatchError(f"an image has up to three spatial axes and one of channels, got shape {values.shape}")
    values = values[np.newaxis] if values.ndim < 4 else np.moveaxis(values, 3, 0)
    yield path.name.lower().removesuffix(".gz").removesuffix(".nii"), values[np.newaxis]


def _torch(path: Path) -> Iterator[tuple[str, Any]]:
    names = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
    with safe_globals([*stand_ins, (_Unread, "twinloss.unread")]):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, torch.Tensor | _Unread):
        yield path.stem, found
    elif isinstance(found, dict):
        inner = [value for value in found.values() if isinstance(value, dict)]
        if len(inner) == len(found) == 1:
            found = inner[0]
        yield from ((str(key), value) for key, value in found.items())
    elif isinstance(found, Iterable):
        yield from ((str(n), value) for n, value in enumerate(found))
    else:
        raise BatchError(f"a dictionary of tensors is needed, such as {{'input': …, 'target': …}}, got {type(found)}")


class _Unread:
    """An object of a pickle that was not made: what it was to be made of."""

    def __init__(self, name: str = "", args: tuple[Any, ...] = ()) -> None:
        self.name, self.args, self.state = name, args, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Array:
        """The array, if it is one of NumPy's; its bytes are read and NumPy's own way to unpickle is not used."""
        if not self.name.endswith("multiarray._reconstruct") or len(self.state) != 5:
            raise BatchError(f"object of {self.name}, which was not made")
        _, shape, dtype, fortran, raw = self.state
        code = dtype.args[0]
        if not isinstance(raw, bytes):
            raise BatchError("array of object")
        order = dtype.state[1].replace("|", "=")
        return np.frombuffer(raw, np.dtype(code).newbyteorder(order)).reshape(shape, order="F" if fortran else "C")


def _stand_in(name: str) -> type:
    """What a pickle gets for the class or function `name`.

    Called, it gives an `_Unread`. A tensor of a subclass, such as MONAI's MetaTensor, becomes one of it, and leaves the
    state of the subclass unread.
    """

    class StandIn(torch.Tensor):
        @staticmethod
        def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
            return _Unread(name, args)

        def __setstate__(self, state: Any) -> None:
            pass

    return StandIn
