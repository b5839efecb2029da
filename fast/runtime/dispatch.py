"""Which kernels compute a statistic of which tensor, or whether plain torch does. The choice is made here alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Backend = Literal["kernel", "plain"]
Kernels = TypeVar("Kernels")

HALVES = (torch.float16, torch.bfloat16)

# The device of kernels in operators of torch.
_ANY = "any"

_forced: Backend | None = None


class Statistic(Generic[Kernels]):
    """A statistic, and for each type of device the kernels that compute it.

    Kernels are any object that offers what the type `Kernels` asks for. On a device, or in a dtype, that nobody has
    registered, the plain form computes the statistic.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._dtypes: dict[str, tuple[torch.dtype, ...]] = {}
        self._load: dict[str, Callable[[], Kernels]] = {}
        self._loaded: dict[str, Kernels] = {}
        self._falls_back: Callable[[Tensor], bool] = lambda x: False

    def fall_back(self, load: Callable[[], Kernels], serves: Callable[[Tensor], bool] = lambda x: True) -> None:
        """Let kernels in operators of torch compute the statistic on devices that have no others.

        Args:
            load: as in `register`.
            serves: returns whether these kernels serve a tensor.
        """
        self._load[_ANY], self._falls_back = load, serves

    def register(self, device: str, dtypes: tuple[torch.dtype, ...], load: Callable[[], Kernels]) -> None:
        """Let kernels compute the statistic on a type of device.

        Args:
            device: as in `torch.device(device)`.
            dtypes: of the tensors that the kernels take.
            load: returns the kernels; called when they are first needed, as to import a compiler takes time.
        """
        self._dtypes[device], self._load[device] = dtypes, load
        self._loaded.pop(device, None)

    def unregister(self, device: str) -> None:
        """Leave a type of device to the plain form."""
        for registered in (self._dtypes, self._load, self._loaded):
            registered.pop(device, None)

    def serves(self, x: Tensor) -> bool:
        """Return whether there are kernels for the device and the dtype of a tensor."""
        return x.dtype in self._dtypes.get(x.device.type, ())

    def is_compiled(self, x: Tensor) -> bool:
        """Return whether compiled kernels compute the statistic of a tensor."""
        return _forced != "plain" and self.serves(x)

    def has_kernels(self, x: Tensor) -> bool:
        """Return whether there are kernels for a tensor, compiled or in operators of torch."""
        return self.is_compiled(x) or self._falls_back(x)

    def taken(self, x: Tensor) -> Tensor:
        """Return a tensor in a dtype that kernels take: a half becomes float32, unless compiled kernels take halves."""
        return x if self.is_compiled(x) else widened(x)

    def kernels(self, x: Tensor) -> Kernels:
        """Return the kernels for the device and the dtype of a tensor."""
        device = x.device.type if self.is_compiled(x) else _ANY
        found = self._loaded.get(device)
        if found is None:
            found = self._loaded[device] = self._load[device]()
        return found


def choose(statistic: Statistic[Kernels], x: Tensor, *constants: Tensor | None) -> Backend:
    """Choose kernels, or the plain form if all derivatives are needed, or that in a constant."""
    if _forced == "kernel":
        return _forced
    if observed() or not statistic.has_kernels(x):
        return "plain"
    for constant in constants:  # a generator would take twice as long
        if constant is not None and constant.requires_grad:
            return "plain"
    return "kernel"


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    """Compute every statistic within the block with compiled kernels, or without any ("plain"), in all threads.

    For tests and benchmarks.
    """
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


_watched = False


def is_watched() -> bool:
    """Return whether a dispatch mode only watches the operators of torch, see `watched`."""
    return _watched


@contextmanager
def watched() -> Iterator[None]:
    """Let the losses compute as without a dispatch mode within the block, so that a mode sees their inner operators."""
    global _watched
    before, _watched = _watched, True
    try:
        yield
    finally:
        _watched = before


def widened(x: Tensor) -> Tensor:
    """Return a half as float32, and any other tensor as it is."""
    return x.float() if x.dtype in HALVES else x


def result_type(input: Tensor, image: Tensor | None = None) -> torch.dtype:
    """Return the type of a loss: that of its input, as that of torch's losses.

    It is float64 if another image is, float32 for integers and, under autocast, float32 for a half, so that a scaled
    loss does not overflow.
    """
    if image is not None and image.dtype == torch.float64:
        return image.dtype
    dtype = input.dtype if input.is_floating_point() else torch.float32
    return torch.float32 if dtype in HALVES and _autocast(input.device.type) else dtype


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast does not lower the precision of matrix products on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _autocast(kind) else nullcontext()


def _autocast(device_type: str) -> bool:
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def transformed() -> bool:
    """Return whether torch.func or a tracer is at work, so that no branch may depend on numbers."""
    return bool(torch._C._are_functorch_transforms_active()) or _recorded_here()


def observed() -> bool:
    """Return whether torch.func, a forward-mode derivative or a tracer needs to see operators of torch."""
    return transformed() or forward_ad._current_level >= 0


def by_torch(upstream: Tensor) -> bool:
    """Return whether a backward needs operators of torch: for a graph of the gradient, or for a batch of slopes.

    For `torch.autograd.grad(…, is_grads_batched=True)` an older vmap than that of torch.func batches the slopes.
    """
    return torch.is_grad_enabled() or observed() or torch._C._functorch.is_legacy_batchedtensor(upstream)


# The thread whose losses are recorded as operators of torch.
_recorder: int | None = None


def _recorded_here() -> bool:
    return _recorder is not None and _recorder == threading.get_ident()


@contextmanager
def recording() -> Iterator[None]:
    """Compute the losses of this thread with operators of torch and without branches on numbers, for a tracer."""
    global _recorder
    before, _recorder = _recorder, threading.get_ident()
    try:
        yield
    finally:
        _recorder = before
