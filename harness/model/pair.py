"""The description of a user's own pair of functions: a fast one, and a slow reference that computes the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from twinloss.harness.model import device
from twinloss.harness.model.operand import Array

# The sizes that are tried for an axis, unless the pair states others, and those of a large case.
SIZES = (1, 2, 3, 4, 5, 7)
LARGE = (13, 31, 64)
# The sizes that each axis has in some cases while the others are small.
LONG = (67, 1031)

# Stands for any number of leading axes, of which up to this many are drawn.
ANY = "..."
MOST_LEADING = 2

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


class PairError(ValueError):
    """A pair contradicts itself, or its functions do not fit its description."""


@dataclass(frozen=True)
class ArraySpec:
    """The arrays to draw for one input; `arrays` makes it and describes the attributes."""

    axes: tuple[str, ...]
    dtype: str | None = None
    low: float | None = None
    high: float | None = None
    below: str | None = None
    also: tuple[float, ...] = ()
    finite: bool = True
    make: Callable[[np.random.Generator, tuple[int, ...]], Any] | None = None
    logits: bool = False
    exact: bool = False

    @property
    def floating(self) -> bool:
        """Whether the numbers are floating point."""
        return self.dtype is None or self.dtype in FLOATS

    def names(self) -> list[str]:
        """Return the names of the axes whose size is drawn."""
        return [axis for axis in self.axes if axis != ANY and not axis.isdigit()]

    def shape(self, sizes: Mapping[str, int], leading: Sequence[int] = ()) -> tuple[int, ...]:
        """Return the shape for these sizes of the axes; `leading` replaces an ellipsis."""
        made: list[int] = []
        for axis in self.axes:
            made += leading if axis == ANY else [int(axis) if axis.isdigit() else sizes[axis]]
        return tuple(made)

    def sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the sizes of the named axes in an array of this shape."""
        before = self.axes.index(ANY) if ANY in self.axes else len(self.axes)
        after = len(self.axes) - before - 1
        found = list(zip(self.axes[:before], shape[:before], strict=False))
        if after > 0:
            found += zip(self.axes[-after:], shape[-after:], strict=True)
        return {axis: size for axis, size in found if not axis.isdigit()}

    def holds(self, values: Array, sizes: Mapping[str, int]) -> bool:
        """Return whether an array has the numbers that are allowed."""
        if self.make is not None:
            return True
        known = np.isin(values, self.also) if self.also else np.zeros(values.shape, bool)
        most = self.high if self.below is None else sizes[self.below] - 1
        with np.errstate(invalid="ignore"):
            wrong = np.zeros(values.shape, bool) if self.low is None else values < self.low
            if most is not None:
                wrong |= values > most
        return not (wrong & ~known).any()


def arrays(
    axes: str,
    dtype: str | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    below: str | None = None,
    also: Sequence[float] = (),
    finite: bool = True,
    make: Callable[[np.random.Generator, tuple[int, ...]], Any] | None = None,
    logits: bool = False,
    exact: bool = False,
) -> ArraySpec:
    """Describe the arrays to draw for an input.

    Args:
        axes: the names of the axes, as in "B T H". Axes of one name have the same size in all inputs. A number is a
            fixed size, "..." stands for any leading axes, and "" is a single number.
        dtype: the dtype; by default the dtype under test. "float64", "int64", "bool" and others are fixed dtypes.
        low: the smallest number.
        high: the largest number.
        below: the name of an axis; the integers are at least 0 and less than its size, as labels of classes are.
        also: further numbers that may occur, such as -100 for a label that is ignored.
        finite: whether to draw neither NaN nor infinity.
        make: makes the numbers from a NumPy generator and a shape, if `low` and `high` cannot describe them.
        logits: whether an exponential is applied to the numbers. A relative error of a roundoff in exp(x) equals an
            absolute error of a roundoff in x, so that small numbers are perturbed by as much as 1.
        exact: whether whole numbers are exact, as the 0 and 1 of a hard target are, so that they are not perturbed.

    Raises:
        PairError: if the arguments contradict each other; the message says how to mend them.
    """
    if not isinstance(axes, str):
        raise PairError(f'axes are a text such as "B T H", got {axes!r}')
    names = tuple(axes.split())
    for name in names:
        if name != ANY and not name.isdigit() and not name.isidentifier():
            raise PairError(f'an axis is a name such as B, a number or "...", got {name!r} in arrays({axes!r})')
    if names.count(ANY) > 1 or (ANY in names and names[0] != ANY):
        raise PairError(f'"..." stands for leading axes and so comes first, got arrays({axes!r})')
    if dtype is not None and dtype not in (*FLOATS, *INTEGERS, "bool"):
        near = get_close_matches(str(dtype), (*FLOATS, *INTEGERS, "bool"), 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join((*FLOATS, *INTEGERS, 'bool'))}"
        raise PairError(f"there is no dtype {dtype!r}: {hint}")
    if below is not None and (dtype not in INTEGERS or high is not None):
        raise PairError(f'below={below!r} is for labels: give an integer dtype such as "int64", and no high')
    if low is not None and high is not None and low > high:
        raise PairError(f"no number is at least low={low} and at most high={high}")
    return ArraySpec(
        names,
        dtype,
        0 if below is not None and low is None else low,
        high,
        below,
        tuple(also),
        finite,
        make,
        logits,
        exact,
    )


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair of functions: a fast one and a slow reference, with a description of their inputs.

    Both are called with the inputs in their order, and with the options by name. They return one array, or a tuple of
    arrays. The fast function takes torch tensors, or NumPy arrays if its module does not use torch.

    Attributes:
        name: the name of the pair in reports.
        fast: "package.module:attr", "path/file.py:attr", or the function, class or instance itself. A class is
            constructed with the options, and with the sizes of axes that it has a parameter for, and then called.
        reference: a function of NumPy arrays. It must compute in the precision of its inputs: it gets longdouble.
        inputs: for each input, what to draw for it; see `arrays`.
        wrt: the inputs with respect to which the gradient is judged.
        options: the values to try for each option, the default first.
        tuning: the values of further options of the fast function that must not change its results, such as the size
            of a block. The reference does not get them.
        laws: relations that must hold, besides those that hold for any function; see `twinloss.harness.laws`.
        blocks: the axes along which parts are judged each by itself, as in "B C".
        gradient: the gradient of the reference, `gradient(*inputs, cotangent=…, **options)`. It returns an array for
            each input in `wrt`. Without it, the reference is differentiated numerically.
        fast_gradient: the same for the fast function, if it has no autograd.
        kinks: whether the gradient may jump under some options, as at a tie or a clamp; it then may lie between the
            derivatives to both sides.
        unit: the magnitude of the terms that the outputs subtract, if it is known, such as 1 in 1 - Dice.
        precise: whether the fast function is held to the bounds of a careful implementation, which leave no room for
            long sums in low precision. This needs `gradient`.
        constants: the options that are real numbers and so are rounded like the inputs; by default those of which some
            value is no whole number.
        terms: computes from a `Truth` the magnitude of the terms that each number of the gradient adds or subtracts;
            None if these are not larger than the gradient.
        value_terms: the same for the output of a precise function.
        sizes: the sizes to try for some axes, the most ordinary first; a 0 among them allows empty arrays.
        names: maps our names of inputs, options and axes to the names of the fast function's parameters.
        state: maps inputs to the parameters or buffers of a module that hold them.
        writes: the parameters of the fast function that it writes its outputs to, such as "out", or an input.
        results: the dtypes that floating outputs of the fast function may have; "same" is the dtype under test.
        takes: "torch" or "numpy", if it cannot be seen from the fast function.
        allowed: whether a combination of options is valid.
        domain: whether a case is valid, given the sizes of the axes, the options and the arrays by their names.
        device: the device on which the fast function runs, such as "cuda:1", if it is always the same one.
    """

    name: str
    fast: Any
    reference: Callable[..., Any]
    inputs: Mapping[str, ArraySpec]
    wrt: str | tuple[str, ...] = ()
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tuning: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    laws: Sequence[Any] = ()
    blocks: str = ""
    gradient: Callable[..., Any] | None = None
    fast_gradient: Any = None
    kinks: Callable[[Mapping[str, Any]], bool] = lambda options: True
    unit: float = 0.0
    precise: bool = False
    constants: str | tuple[str, ...] | None = None
    terms: Callable[[Any], Array | None] | None = None
    value_terms: Callable[[Any], Array] | None = None
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    writes: str | tuple[str, ...] = ()
    results: str | tuple[str, ...] = ()
    takes: str | None = None
    allowed: Callable[[Mapping[str, Any]], bool] = lambda options: True
    domain: Callable[[Mapping[str, Any]], bool] = lambda case: True
    device: str | None = None

    def __post_init__(self) -> None:
        """Check that the description does not contradict itself.

        Raises:
            PairError: if it does.
        """
        for name in ("wrt", "writes", "results", "constants"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for which in ("options", "tuning"):
            tried = {name: _tried(name, values) for name, values in getattr(self, which).items()}
            object.__setattr__(self, which, tried)
        _check_inputs(self)
        _check_names(self)
        _check_reference(self)

    def runs_on(self) -> torch.device:
        """Return the device of the tensors that the fast function gets."""
        return device.current() if self.device is None else torch.device(self.device)

    def axes(self) -> list[str]:
        """Return the named axes of all inputs, in the order in which they occur."""
        return list(dict.fromkeys(axis for spec in self.inputs.values() for axis in spec.names()))

    def has_leading_axes(self) -> bool:
        """Return whether some input has any number of leading axes."""
        return any(ANY in spec.axes for spec in self.inputs.values())

    def tried_sizes(self, axis: str, large: bool = False) -> tuple[int, ...]:
        """Return the sizes to try for an axis."""
        if axis in self.sizes:
            return tuple(self.sizes[axis])
        return LARGE if large else SIZES

    def sizes_of(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the size of each named axis, given the shapes of the inputs."""
        return {axis: n for name, spec in self.inputs.items() for axis, n in spec.sizes(shapes[name]).items()}

    def all_options(self) -> dict[str, tuple[Any, ...]]:
        """Return the values to try for each option of the fast function."""
        return {**self.options, **self.tuning}

    def defaults(self) -> dict[str, Any]:
        """Return the default of each option of the fast function."""
        return {name: tried[0] for name, tried in self.all_options().items()}

    def block_axes(self, name: str, ndim: int) -> tuple[int, ...]:
        """Return the positions of the block axes in an input of so many axes."""
        wanted, spec = self.blocks.split(), self.inputs[name]
        skipped = ndim - len(spec.axes) if ANY in spec.axes else 0
        return tuple(i + skipped for i, axis in enumerate(spec.axes) if axis in wanted)


def _tried(name: str, tried: Any) -> tuple[Any, ...]:
    if isinstance(tried, list):
        tried = tuple(tried)
    if not isinstance(tried, tuple) or not tried:
        raise PairError(
            f"option {name} has the value {tried!r}: give a tuple of values to try, the default first, as in "
            f"{{'{name}': ({tried!r},)}}"
        )
    return tried


def _check_inputs(pair: Pair) -> None:
    if not re.fullmatch(r"[\w.-]+", pair.name):
        raise PairError(f"a name consists of letters, digits, _ and -, got {pair.name!r}")
    if not pair.inputs:
        raise PairError(f'{pair.name} has no inputs: give inputs={{"x": arrays("B H")}}')
    for name, spec in pair.inputs.items():
        if not isinstance(spec, ArraySpec):
            raise PairError(f'input {name} is {spec!r}: describe it with arrays, as in arrays("B H")')
        if spec.below is not None and spec.below not in pair.axes():
            raise PairError(_unknown(f"below of input {name}", spec.below, pair.axes(), "axis"))
    for name in pair.wrt:
        if name not in pair.inputs:
            raise PairError(_unknown("wrt", name, pair.inputs, "input"))
        if not pair.inputs[name].floating:
            raise PairError(f"wrt: input {name} is {pair.inputs[name].dtype}, which has no gradient: leave it out")


def _check_names(pair: Pair) -> None:
    for axis, tried in pair.sizes.items():
        if axis not in pair.axes():
            raise PairError(_unknown("sizes", axis, pair.axes(), "axis"))
        if not len(tried) or any(not isinstance(n, int) or n < 0 for n in tried):
            raise PairError(f"sizes of axis {axis} are whole numbers of at least 0, got {tried!r}")
    for axis in pair.blocks.split():
        if axis not in pair.axes():
            raise PairError(_unknown("blocks", axis, pair.axes(), "axis"))
    for name in pair.names:
        if name not in (*pair.inputs, *pair.all_options(), *pair.axes(), *pair.writes):
            raise PairError(_unknown("names", name, [*pair.inputs, *pair.all_options(), *pair.axes()], "name"))
    for name in pair.constants or ():
        if name not in pair.options:
            raise PairError(_unknown("constants", name, pair.options, "option"))
    for which in ("kinks", "allowed", "domain"):
        if not callable(getattr(pair, which)):
            raise PairError(f"{which} is a function, as in {which}=lambda case: True, got {getattr(pair, which)!r}")
    if pair.precise and pair.gradient is None:
        raise PairError("precise=True needs the closed form of the gradient: give gradient=, or leave it out")
    for name in pair.state:
        if name not in pair.inputs:
            raise PairError(_unknown("state", name, pair.inputs, "input"))
    if pair.takes not in (None, "torch", "numpy"):
        raise PairError(f'takes is "torch" or "numpy", got {pair.takes!r}')
    if not pair.allowed(pair.defaults()):
        raise PairError(f"the defaults of the options are not allowed together: {pair.defaults()}")


def _check_reference(pair: Pair) -> None:
    if isinstance(pair.reference, str) or not callable(pair.reference):
        raise PairError(f"the reference must be a function of NumPy arrays, got {pair.reference!r}: import it")
    for function, more in ((pair.reference, ()), (pair.gradient, ("cotangent",))):
        if function is None:
            continue
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(*pair.inputs, **dict.fromkeys((*pair.options, *more)))
        except TypeError as error:
            called = ", ".join((*pair.inputs, *(f"{name}=…" for name in (*more, *pair.options))))
            name = getattr(function, "__name__", "the reference")
            raise PairError(
                f"{name}{signature} cannot be called as {name}({called}), as the inputs and options say: {error}"
            ) from error


def _unknown(where: str, name: str, known: Any, kind: str) -> str:
    near = get_close_matches(str(name), list(known), 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"{where}: there is no {kind} {name!r}: {hint}"
