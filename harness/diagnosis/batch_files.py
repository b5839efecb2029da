"""Read a user's batch from files without running any code that a file contains."""

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
    "Other objects are not unpickled, as that could run code: save torch.save({'input': …, 'target': …}) with tensors, "
    "or np.savez(input=…, target=…) with arrays"
)


class BatchError(ValueError):
    """A file cannot be read, or the loss does not accept the batch."""


@dataclass
class LoadedBatch:
    """The arrays of a batch by name.

    Attributes:
        arrays: arrays of numbers, in native byte order and a dtype that torch supports.
        types: the dtype of each array in its file, such as "bfloat16", which NumPy lacks.
        asking: the names of tensors with requires_grad.
        left_out: what is not an array of numbers: by name, with a description.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    asking: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LoadedBatch:
        """Sort values into arrays and others; a list of tensors, as from deep supervision, gets numbered names."""
        found = cls()
        for name, value in values.items():
            if isinstance(value, (list, tuple)) and value and all(isinstance(v, torch.Tensor) for v in value):
                for n, tensor in enumerate(value):
                    found.take(f"{name}.{n}", tensor)
            else:
                found.take(name, value)
        return found

    def take(self, name: str, value: Any) -> None:
        """Add an array or a tensor; anything else goes to `left_out` with a description."""
        try:
            self.arrays[name], self.types[name] = native(value)
        except BatchError as reason:
            self.left_out[name] = str(reason)
        if isinstance(value, torch.Tensor) and value.requires_grad:
            self.asking.add(name)

    @property
    def names(self) -> list[str]:
        """The names of all arrays and of what was left out."""
        return [*self.arrays, *self.left_out]

    def adopt(self, called: str, other: LoadedBatch, name: str) -> None:
        """Add the value called `name` in another batch, under the name `called`."""
        if name in other.arrays:
            self.arrays[called], self.types[called] = other.arrays[name], other.types[name]
        else:
            self.left_out[called] = other.left_out[name]
        if name in other.asking:
            self.asking.add(called)


def listed(left_out: Mapping[str, str]) -> str:
    """Return a text that lists what was left out, and why."""
    return ", ".join(f"{name} ({reason})" for name, reason in left_out.items())


def native(value: Any) -> tuple[Array, str]:
    """Convert a value to a C-ordered array of a dtype that torch supports; also return the name of its original dtype.

    Unsigned integers of more than 8 bits become int64, and floats of more than 64 bits become float64.

    Raises:
        BatchError: if the value is not an array of real numbers; the message describes it.
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
        raise BatchError(f"complex numbers ({own}): losses take real numbers, such as the magnitude, by abs()")
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
        tensor = tensor.as_subclass(torch.Tensor)  # in a subclass, every operation would copy its meta data
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
    """Read the arrays of files: .npz or .npy, .pt or .pth with a dictionary of tensors, .nii or .nii.gz.

    No code in them is run: objects other than tensors and arrays are neither constructed nor imported. A NIfTI image
    with three axes is one channel of one item. A fourth axis holds the channels; a fifth one does if the fourth
    has size 1. If two files hold the same name, both names get the folder as a prefix.

    Raises:
        BatchError: if a file is missing, damaged, of an unknown type, or holds no array of numbers.
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
        raise BatchError(f"{path} has an unknown file type; known types are {KINDS}")
    try:
        found = LoadedBatch.of(dict(reader(path)))
    except BatchError as error:
        raise BatchError(f"cannot read {path}: {error}") from error
    except UnpicklingError as error:
        raise BatchError(f"cannot read {path}: it is damaged, or holds objects other than tensors. {SAVE}") from error
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        kind = type(error).__name__
        raise BatchError(f"cannot read {path}: it is damaged or of another type: {kind}: {why}") from error
    if not found.arrays:
        why = listed(found.left_out) or "it is empty"
        raise BatchError(f"cannot read {path}: it holds no array of numbers: {why}. {SAVE}")
    return found


def _npz(path: Path) -> Iterator[tuple[str, Any]]:
    with np.load(path, allow_pickle=False) as found:
        for name in found.files:
            try:
                yield name, found[name]
            except ValueError:  # NumPy does not unpickle objects
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
        raise BatchError(f"an image has up to three spatial axes and one axis of channels, got shape {values.shape}")
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
    """An object of a pickle that was not constructed: the name of its class or function, arguments and state."""

    def __init__(self, name: str = "", args: tuple[Any, ...] = ()) -> None:
        self.name, self.args, self.state = name, args, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Array:
        """Return the array if this is a pickled NumPy array; it is read from the bytes, without NumPy's unpickling."""
        if not self.name.endswith("multiarray._reconstruct") or len(self.state) != 5:
            raise BatchError(f"object of {self.name}, which is not unpickled")
        _, shape, dtype, fortran, raw = self.state
        code = dtype.args[0]
        if not isinstance(raw, bytes):
            raise BatchError("array of object")
        order = dtype.state[1].replace("|", "=")
        return np.frombuffer(raw, np.dtype(code).newbyteorder(order)).reshape(shape, order="F" if fortran else "C")


def _stand_in(name: str) -> type:
    """Make the class that a pickle gets in place of the class or function `name`.

    A call returns an `_Unread`. A tensor subclass, such as MONAI's MetaTensor, becomes this class of tensor, and the
    state of the subclass is not read.
    """

    class StandIn(torch.Tensor):
        @staticmethod
        def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
            return _Unread(name, args)

        def __setstate__(self, state: Any) -> None:
            pass

    return StandIn
