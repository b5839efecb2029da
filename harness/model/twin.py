"""The records that the harness works with: `Twin` describes a loss, and `Case` is one input for both versions of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twinloss.harness.model.benchmark_spec import BenchmarkSpec
from twinloss.harness.model.operand import DTYPES, Array, Operand
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.real_case import RealCase

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def unbounded(options: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """Return infinite bounds, for a loss without known bounds."""
    return -math.inf, math.inf


@dataclass(frozen=True)
class Ground:
    """Restricts the shapes and targets of the drawn cases; an attribute that is None restricts nothing.

    Attributes:
        channels: allowed numbers of input channels.
        items: allowed batch sizes.
        unit_axis: whether some spatial axis must have size 1.
        targets: allowed kinds of targets that have all channels, from `input_kinds.TARGETS`.
        numbers: allowed kinds of input values, where they suit the options.
        equal: whether a case has so many equal numbers that the rounding errors of a plain sum would show.
    """

    channels: tuple[int, ...] | None = None
    items: tuple[int, ...] | None = None
    unit_axis: bool | None = None
    targets: tuple[str, ...] | None = None
    numbers: tuple[str, ...] | None = None
    equal: bool = False


@dataclass(frozen=True)
class Case:
    """One input for a loss: arguments, options and the upstream gradient.

    Attributes:
        operands: the arguments of forward, in order; the gradient is with respect to the first one.
        options: the options that differ from their defaults.
        cotangent: the upstream gradient, that is, the weight of each element of the loss. It is repeated to fill the
            shape of the loss; None stands for ones.
        traits: how the case was made, for the coverage report: names of options and kinds, and their values as text.
        law: the law that is checked on this case.
        judged_as: the dtype whose roundoff sets the tolerance, if it is not the dtype under test.
        tested: the dtype under test, if it is not that of the first argument. All arguments of a pair that have this
            dtype are under test.
    """

    operands: Mapping[str, Operand]
    options: Mapping[str, Any] = field(default_factory=dict)
    cotangent: tuple[float, ...] | None = None
    traits: Mapping[str, str] = field(default_factory=dict)
    law: Law | None = None
    judged_as: str | None = None
    tested: str | None = None

    def weights(self, shape: tuple[int, ...]) -> Array:
        """Return the upstream gradient for a loss of this shape."""
        return np.ones(shape) if self.cotangent is None else np.resize(self.cotangent, shape)

    @property
    def input(self) -> Operand:
        """The first argument; the gradient is with respect to it."""
        return next(iter(self.operands.values()))

    @property
    def dtype(self) -> str:
        """The dtype under test."""
        return self.tested or self.input.dtype

    @property
    def tolerance(self) -> str:
        """The dtype whose roundoff sets the tolerance."""
        return self.judged_as or self.dtype

    def in_double(self, every: bool = False) -> Case:
        """Return the case in float64, with the tolerance of its dtype but at least that of float32.

        With `every`, all arguments of real numbers become float64, otherwise only those under test.
        """
        judged_as = "float32" if self.dtype == "float64" else self.dtype
        first = next(iter(self.operands))
        operands = {
            name: replace(o, dtype="float64")
            if (o.dtype == self.tested if self.tested else name == first) or (every and o.dtype in DTYPES)
            else o
            for name, o in self.operands.items()
        }
        return replace(self, operands=operands, judged_as=judged_as, tested="float64" if self.tested else None)

    def having(self, **options: Any) -> Case:
        """Return the case with other options; a value of None removes the option."""
        merged = {k: v for k, v in {**self.options, **options}.items() if v is not None}
        return replace(self, options=merged)

    def with_values(self, **values: Array) -> Case:
        """Return the case with new values for the named operands."""
        operands = {k: replace(o, values=values.get(k, o.values)) for k, o in self.operands.items()}
        return replace(self, operands=operands)

    def with_operand(self, name: str, operand: Operand) -> Case:
        """Return the case with one operand replaced or added."""
        return replace(self, operands={**self.operands, name: operand})

    def contiguous(self) -> Case:
        """Return the case with all operands contiguous."""
        return self.each(lambda values: values)

    def each(self, change: Callable[[Array], Array]) -> Case:
        """Return the case with `change` applied to the values of every operand, all contiguous."""
        operands = {k: Operand(change(o.values).copy(), o.dtype) for k, o in self.operands.items()}
        return replace(self, operands=operands)


@dataclass(frozen=True)
class Claim:
    """The claim that `got` equals `want`; both are a part ("value" or "gradient") of answers to cases like `base`.

    `scale` is the magnitude of the terms that make up the arrays, by default their own. With `exact`, no difference is
    allowed.
    """

    part: str
    got: Array
    want: Array
    base: Case
    scale: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class Law:
    """A law, the options that it needs, and the cases and dtypes to which it applies."""

    name: str
    claims: Callable[[Twin, Case], Iterator[Claim]]
    needs: Mapping[str, Any] = field(default_factory=dict)
    applies: Callable[[Case], bool] = lambda case: True
    dtypes: tuple[str, ...] = DTYPES


class UnsupportedError(Exception):
    """A loss is asked for something that it does not support, such as an option that it does not have."""


@dataclass(frozen=True)
class Twin:
    """A loss that is written twice. Each loss is one such record, which all commands use.

    Attributes:
        name: the name of the loss in commands.
        fast: the torch module.
        value: the reference, `value(*operands, **options)`.
        gradient: the closed-form gradient of the reference; it also takes `cotangent` and, for each option that is an
            `Elementwise`, `<option>_derivative`. None if the reference is to be differentiated numerically.
        operands: the names of the arguments, in order; the gradient is with respect to the first one.
        options: the values to try for each option, the default first.
        cases: makes a strategy of cases for a dtype. Options that are given are kept. The last argument asks for large
            cases, which exceed what a kernel processes in one chunk.
        allowed: whether a combination of options is valid.
        domain: whether the values of a case suit its options, as those of drawn cases do.
        unit: the magnitude of the terms that the loss may subtract (1 - Dice: 1).
        precise: whether the fast twin is judged by the bounds of a careful implementation; see judgement.py.
        channels: the smallest number of input channels.
        required: options without a default; the first of their values is used in its place.
        constants: options that are real numbers, and so are rounded like the input.
        logits: whether the input holds logits. Then a relative error of one roundoff in exp(x) equals an absolute error
            of one roundoff in x, however small x is.
        terms: computes from a truth the magnitude of the terms that are added or subtracted in each element of the
            gradient; None if these are not larger than the gradient.
        value_terms: the same for each element of the value, if its condition numbers do not cover its rounding errors.
        kinks: whether the loss has kinks under these options (clamp, tie); see judgement.py.
        ranks: the spatial ranks to draw, of those that the loss supports.
        ground: restricts the other sizes and the targets that are drawn.
        bounds: computes from all options and the shape of the input the smallest and largest value of the loss for an
            input and target in its domain; see `losses.bounds`.
        differentiable: whether the gradient of the fast twin is judged; if not, the judge skips it.
        results: the dtypes that the value of a case may have; the gradient always has the dtype of the input.
        infinite: whether to draw infinite logits, whose meaning differs between libraries.
        slopes: the names of the further arguments of a case for which the fast twin has a gradient.
        pair: the user's pair that this record was made from, or None; see `hunting.pairs`.
        origin: the data from which another process makes a twin that is not in the catalogue; see `hunting.parallel`.
        source: the statements that make the twin and bind the name of `fast`, if it is not in the catalogue.
        laws: relations that must hold between answers of the fast twin.
        real: cases on real images.
        benches: the benchmarks that `twinloss bench` runs; `warmup` and `reliability` use the first one.
        wraps: the class in `twinloss.fast`, if `fast` is a module of the harness around it.
        shards: options with which `reliability` computes the loss on several ranks; without any, and if the loss takes
            a process group, those of the first benchmark.
        unlike_monai: whether MONAI defines the loss in another way, so that the two train differently: for example, the
            focal term of its Dice + focal uses a sigmoid, see reports/errata.md.
        lost_digits: why cases may be degraded, that is, which digits the formula itself loses in a dtype.
        compiles_first: whether `warmup` compiles the kernels of this loss before those of others, which share them.
    """

    name: str
    fast: type[torch.nn.Module]
    value: Callable[..., Any]
    gradient: Any
    operands: tuple[str, ...]
    options: Mapping[str, tuple[Any, ...]]
    cases: Callable[[Twin, str, Mapping[str, Any], Law | None, bool], SearchStrategy[Case]]
    allowed: Callable[[Mapping[str, Any]], bool] = lambda options: True
    domain: Callable[[Case], bool] = lambda case: True
    unit: float = 1.0
    precise: bool = True
    channels: int = 1
    required: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    logits: Callable[[Mapping[str, Any]], bool] = lambda options: False
    terms: Callable[[Any], Array | None] | None = None
    value_terms: Callable[[Any], Array] | None = None
    kinks: Callable[[Mapping[str, Any]], bool] = lambda options: False
    ranks: tuple[int, ...] = (0, 1, 2, 3)
    ground: Ground = Ground()
    bounds: Callable[[Mapping[str, Any], tuple[int, ...]], tuple[float, float]] = unbounded
    differentiable: bool = True
    results: Callable[[Case], tuple[str, ...]] = lambda case: (case.dtype,)
    infinite: bool = True
    slopes: Callable[[Twin, Case], tuple[str, ...]] = lambda twin, case: ()
    pair: Pair | None = None
    source: str = ""
    origin: Any = None
    laws: tuple[Law, ...] = ()
    real: tuple[RealCase, ...] = ()
    benches: tuple[BenchmarkSpec, ...] = ()
    wraps: type[torch.nn.Module] | None = None
    shards: tuple[Mapping[str, Any], ...] = ()
    unlike_monai: bool = False
    lost_digits: str = ""
    compiles_first: bool = False

    @property
    def public(self) -> type[torch.nn.Module]:
        """The class in `twinloss.fast`."""
        return self.wraps or self.fast

    @property
    def of_fields(self) -> bool:
        """Whether the argument is a displacement field."""
        return self.operands == ("pred",)

    @property
    def of_images(self) -> bool:
        """Whether the arguments are two images."""
        return self.operands == ("pred", "target")

    @property
    def of_registration(self) -> bool:
        """Whether this is a loss of fields or images, and not of a segmentation."""
        return self.of_fields or self.of_images

    @property
    def wrt(self) -> tuple[str, ...]:
        """The arguments with respect to which the gradient is judged."""
        return self.operands[:1] if self.pair is None else tuple(self.pair.wrt)

    def block_axes(self, name: str, ndim: int) -> tuple[int, ...]:
        """Return the axes of blocks in the gradient with respect to an argument; by default, items and channels."""
        return tuple(range(min(2, ndim))) if self.pair is None else self.pair.block_axes(name, ndim)

    def is_exact(self, name: str) -> bool:
        """Return whether whole numbers in an argument are exact, as the labels 0 and 1 in a target are."""
        return name != self.operands[0] if self.pair is None else self.pair.inputs[name].exact

    def has_logits(self, name: str, options: Mapping[str, Any]) -> bool:
        """Return whether an argument holds logits."""
        return self.logits(options) if self.pair is None else self.pair.inputs[name].logits

    def laws_for(self, dtype: str) -> tuple[Law, ...]:
        """Return the laws that apply to a dtype under test."""
        return tuple(law for law in self.laws if dtype in law.dtypes)

    def defaults(self) -> dict[str, Any]:
        """Return the default of each option."""
        return {name: values[0] for name, values in self.options.items()}

    @property
    def usual(self) -> BenchmarkSpec:
        """The first benchmark: usual options, and inputs of any size.

        Raises:
            ValueError: if the record has no benchmark.
        """
        if not self.benches:
            raise ValueError(f"the record of {self.name} has no benchmark: add one as benches=(BenchmarkSpec(...),)")
        return self.benches[0]
