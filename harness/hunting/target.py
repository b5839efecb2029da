"""Make a twin of a user's own loss, the target: load it, and call it in the way that our losses are called.

A target is a class, an instance or a function, of torch or of arrays. An option of ours is varied if the target has a
parameter of this name, or of the name that it is mapped to. The other options keep one value: the value in `options`,
which says what the target computes, or else our default.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from twinloss.harness.drawing.input_kinds import HARD
from twinloss.harness.hunting.loading import TargetError, load
from twinloss.harness.judging.answers import fast_options
from twinloss.harness.losses.catalogue import find
from twinloss.harness.losses.module_laws import ROUNDED_ONCE
from twinloss.harness.model.operand import PerCase, widened
from twinloss.harness.model.twin import Ground, Twin, UnsupportedError

# Converts our value of an option, given its name, to the target's value.
Convert = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Wiring:
    """A description of a target and of how to call it.

    Attributes:
        target: the place of the target, as `load` takes it.
        like: the name of the twin with the same formula.
        options: fixed values for our options, passed on if the target has them; also the target's own options.
        names: maps our names of options and arguments to the target's names.
        gradient: the place of a function that takes the target's arguments and returns the gradient of its value.
        value_only: whether the gradient is not to be judged.
        ranks: the spatial ranks that the target supports; by default all.
        channels: the number of channels that it takes; by default any.
        hard_targets: whether it does not take soft targets.
        labels_without_channel: whether it takes labels of shape (B, *S), without the axis of channels.
    """

    target: str
    like: str
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    gradient: str | None = None
    value_only: bool = False
    ranks: tuple[int, ...] | None = None
    channels: int | None = None
    hard_targets: bool = False
    labels_without_channel: bool = False

    def __repr__(self) -> str:
        """Show only what differs from the defaults."""
        given = {each.name: getattr(self, each.name) for each in fields(self)[2:]}
        more = "".join(f", {name}={value!r}" for name, value in given.items() if value)
        return f"Wiring({self.target!r}, {self.like!r}{more})"

    def theirs(self, name: str) -> str:
        """Return the target's name for our `name`."""
        return self.names.get(name, name)

    def twin(self) -> Twin:
        """Return the twin of the target."""
        return as_twin(self)


def as_twin(wiring: Wiring) -> Twin:
    """Load a target and make a twin of it and the reference, with the options and laws that the target supports.

    Raises:
        TargetError: if the target cannot be loaded, an option or a name is unknown, or options exclude each other.
    """
    return replace(adapted(wiring, load(wiring.target)), origin=wiring)


def matrix_as_array(name: str, value: Any) -> Any:
    """Convert a matrix of nested lists to an array, as losses expect; float32, since most want the input's dtype."""
    return np.array(value, np.float32) if isinstance(value, list) and value and isinstance(value[0], list) else value


def adapted(wiring: Wiring, found: Any, convert: Convert = matrix_as_array) -> Twin:
    """Make a twin of a target that is already loaded; `convert` converts our option values to the target's."""
    known, takes = find(wiring.like), parameters(found)
    for name in (*wiring.options, *wiring.names):
        if name not in known.options and name not in known.operands and not takes(name):
            raise TargetError(_unknown(name, [*known.options, *known.operands], found))
    wiring = _with_onehot_option(wiring, known)
    free = {name for name in known.options if name not in wiring.options and takes(wiring.theirs(name))}
    fixed = {name: value for name, value in wiring.options.items() if name in known.options}
    kept = {name: values if name in free else values[:1] for name, values in known.options.items()}
    kept |= {name: (value,) for name, value in fixed.items()}
    if not known.allowed({name: values[0] for name, values in kept.items()}):
        raise TargetError(f"{known.name} does not support this combination of options: {fixed}")
    by_arrays = is_of_arrays(found)
    members = {
        "found": staticmethod(found), "wiring": wiring, "known": known, "free": frozenset(free), "takes": takes,
        "convert": staticmethod(convert), "by_arrays": by_arrays,
        "slope": staticmethod(load(wiring.gradient)) if wiring.gradient else None,
    }  # fmt: skip
    module = type(_name(wiring.target), (Target,), members)
    return replace(
        known,
        fast=module,
        options=kept,
        required=tuple(dict.fromkeys((*known.required, *fixed))),
        # Other losses may compute in half precision; the judge calls this imprecise.
        laws=tuple(law for law in known.laws if supports(kept, law.needs) and law is not ROUNDED_ONCE),
        slopes=lambda twin, case: (),
        results=lambda case: (*known.results(case), case.dtype),
        infinite=False,
        differentiable=not wiring.value_only and (bool(wiring.gradient) or not by_arrays),
        ranks=wiring.ranks or known.ranks,
        ground=_restrictions(wiring, known),
        real=tuple(case for case in known.real if supports(kept, case.options) and 3 in (wiring.ranks or known.ranks)),
        source=f"from twinloss.harness.hunting.target import Wiring, as_twin\n\ntwin = as_twin({wiring!r})\n"
        f"{module.__name__} = twin.fast",
    )


def _with_onehot_option(wiring: Wiring, known: Twin) -> Wiring:
    """Set `to_onehot_y`, where the loss has it, for a target that takes labels without a channel axis."""
    if not wiring.labels_without_channel:
        return wiring
    if "target" not in known.operands or known.operands[0] != "input":
        raise TargetError(f"{known.name} takes no labels: remove --labels-without-channel")
    if "to_onehot_y" not in known.options:
        return wiring
    if not wiring.options.get("to_onehot_y", True):
        raise TargetError("labels have no channels without to_onehot_y: remove that option, or set it to True")
    return replace(wiring, options={**wiring.options, "to_onehot_y": True})


def _restrictions(wiring: Wiring, known: Twin) -> Ground:
    """Return the restrictions on shapes and targets that the wiring asks for."""
    if wiring.channels is not None and wiring.channels < known.channels:
        raise TargetError(f"{known.name} needs at least {known.channels} channels, got {wiring.channels}")
    if wiring.hard_targets and known.operands[0] != "input":
        raise TargetError(f"{known.name} has no segmentation target: remove --hard-targets")
    channels = None if wiring.channels is None else (wiring.channels,)
    return Ground(channels, targets=HARD if wiring.hard_targets or wiring.labels_without_channel else None)


def parameters(found: Any) -> Callable[[str], bool]:
    """Return a predicate: whether a target takes an option of a name. An instance takes none; its options are set."""
    function_of = getattr(found, "py_func", found)  # Numba's dispatchers
    if not inspect.isclass(function_of) and not inspect.isroutine(function_of):
        return lambda name: False
    if getattr(function_of, "__init__", None) is torch.nn.Module.__init__:
        return lambda name: False  # its signature accepts all names, but it rejects them at run time
    try:
        known = inspect.signature(function_of).parameters.values()
    except (TypeError, ValueError):
        return lambda name: False
    if any(p.kind is p.VAR_KEYWORD for p in known):
        return lambda name: True
    return {p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}.__contains__


def is_of_arrays(found: Any) -> bool:
    """Return whether a target takes NumPy arrays: it is a Numba function, or its module does not import torch."""
    if hasattr(found, "py_func"):
        return True
    owner = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    if inspect.isclass(owner) and issubclass(owner, torch.nn.Module):
        return False
    around = vars(sys.modules[owner.__module__]).values() if owner.__module__ in sys.modules else ()
    origins = (str(getattr(v, "__module__", None) or getattr(v, "__name__", "")) for v in around)
    return not any(origin.partition(".")[0] == "torch" for origin in origins)


def _name(target: str) -> str:
    return target.rpartition(":")[2].rpartition(".")[2]


def supports(options: Mapping[str, tuple[Any, ...]], needs: Mapping[str, Any]) -> bool:
    """Return whether the values that a law or a case needs are among the remaining values of the options."""
    return all(any(_same(value, v) for v in options[n]) for n, value in needs.items() if n in options)


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and bool(np.all(np.asarray(a == b))))


def _unknown(name: str, known: list[str], found: Any) -> str:
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known names are {', '.join(known)}"
    return f"no option or argument is called {name}, nor a parameter of {getattr(found, '__name__', found)}: {hint}"


class Target(torch.nn.Module):
    """A module that calls a target in the way that our losses are called; each subclass is for one target."""

    found: Callable[..., Any]
    slope: Callable[..., Any] | None
    wiring: Wiring
    known: Twin
    free: frozenset[str]
    takes: Callable[[str], bool]
    convert: Convert
    by_arrays: bool

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.passed = self.passes(options)
        self.loss: Any = self.found(**self.passed) if inspect.isclass(self.found) else self.found

    @classmethod
    def passes(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options to pass to the target, under its own names.

        Raises:
            UnsupportedError: if the target does not take an option that is set, or has it fixed at another value.
        """
        wiring, known = cls.wiring, cls.known
        passed = {name: v for name, v in wiring.options.items() if name not in known.options}
        for name, value in {**fast_options(known.defaults()), **options}.items():
            held = wiring.options.get(name, known.options.get(name, (None,))[0])
            if name not in cls.free and name not in known.required and not _same(value, held):
                raise UnsupportedError(f"{name}={value!r}")
            if cls.takes(wiring.theirs(name)) and not isinstance(value, PerCase):
                passed[wiring.theirs(name)] = cls.convert(name, value)
        return passed

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the value of the target as a tensor."""
        # The last argument may be left out, for example a mask.
        arguments: dict[str, Any] = dict(zip(self.known.operands, tensors, strict=False))
        if self.wiring.labels_without_channel and arguments["target"].shape[1] == 1:
            arguments["target"] = arguments["target"][:, 0]
        if not self.by_arrays and not self.wiring.value_only:
            made: torch.Tensor = self._called(self.loss, arguments)
            return made
        values: torch.Tensor = _WithGradient.apply(tensors[0], self, arguments)  # type: ignore[no-untyped-call]
        return values

    def of_arrays(self, function_of: Callable[..., Any], arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Call a function with arrays, or with tensors detached from the graph, and return its result as a tensor."""
        plain = {name: t.detach() if not self.by_arrays else widened(t) for name, t in arguments.items()}
        made = self._called(function_of, plain)
        return torch.as_tensor(made if isinstance(made, torch.Tensor) else np.array(made))

    def _called(self, function_of: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        more = {} if inspect.isclass(self.found) else self.passed
        if any(name in self.wiring.names for name in arguments):
            return function_of(**{self.wiring.theirs(name): value for name, value in arguments.items()}, **more)
        return function_of(*arguments.values(), **more)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the wiring, as the class was made at run time and cannot be imported."""
        return _rebuilt, (self.wiring, self.convert, self.options, self.loss)


def _rebuilt(wiring: Wiring, convert: Convert, options: Mapping[str, Any], loss: Any) -> torch.nn.Module:
    made = adapted(wiring, load(wiring.target), convert).fast(**options)
    made.loss = loss
    return made


class _WithGradient(torch.autograd.Function):
    """An autograd function for a value without a graph; backward calls the gradient function, or returns zeros."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: Target, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ctx.loss, ctx.arguments = loss, arguments
        return loss.of_arrays(loss.loss, arguments).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        loss, x = ctx.loss, next(iter(ctx.arguments.values()))
        if loss.slope is None:
            return torch.zeros_like(x), None, None
        return (upstream[0] * loss.of_arrays(loss.slope, ctx.arguments)).to(x.dtype), None, None
