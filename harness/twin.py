"""What the harness knows of a loss: one record, and the cases that are put to its two twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from twinloss.harness.laws import Law
    from twinloss.harness.line import Bench
    from twinloss.harness.real import RealCase
    from twinloss.harness.truth import Truth

Array = npt.NDArray[Any]

HALVES = ("float16", "bfloat16")
DTYPES = ("float32", "float64", *HALVES)

# How a tensor lies in memory, as the text of a function of the contiguous tensor `x`: snippets print
# the very text that was run. Channels last falls back to contiguous where the rank does not fit.
LAYOUTS = {
    "contiguous": "x",
    "transposed": "x.mT.contiguous().mT",
    "sliced": "torch.stack([x, x], -1)[..., 1]",
    "expanded": "x[:1].expand_as(x)",
    "channels_last": "x.contiguous(memory_format=torch.channels_last)",
    "channels_last_3d": "x.contiguous(memory_format=torch.channels_last_3d)",
}


@cache
def function(source: str, names: str = "x") -> Callable[..., Any]:
    """The function of `names` whose body is the expression `source`; torch and np are at hand."""
    made: Callable[..., Any] = eval(f"lambda {names}: {source}", {"torch": torch, "np": np})
    return made


@dataclass(frozen=True)
class Elementwise:
    """An elementwise function of x as three expressions, so that snippets print what was run."""

    torch: str
    numpy: str
    derivative: str

    def __str__(self) -> str:
        """What the option tables show."""
        return self.torch


@dataclass(frozen=True)
class Sizes:
    """What an option value may depend on: the sizes of a case, and what its target holds."""

    batch: int
    classes: int
    taking_part: int
    labels: bool
    rank: int = 0


def unbounded(options: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """The bounds of a loss of which none are known."""
    return -math.inf, math.inf


@dataclass(frozen=True)
class Ground:
    """Narrows the shapes and targets of the cases that are drawn; whatever is None stays free.

    Attributes:
        channels: the numbers of channels of the input.
        items: the sizes of the batch.
        unit_axis: whether some spatial axis has size 1.
        targets: the kinds of targets that have all channels, of `values.TARGETS`.
        numbers: the kinds of numbers of the input, where they suit the options.
    """

    channels: tuple[int, ...] | None = None
    items: tuple[int, ...] | None = None
    unit_axis: bool | None = None
    targets: tuple[str, ...] | None = None
    numbers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PerCase:
    """An option value that is known only when the case is, such as one weight per class."""

    name: str
    make: Callable[[Sizes], Any]

    def __str__(self) -> str:
        """What the option tables show."""
        return self.name


@dataclass(frozen=True)
class Operand:
    """One argument of a loss: exact numbers, and the type and layout in which the fast twin gets them."""

    values: Array
    dtype: str
    layout: str = "contiguous"

    def tensor(self) -> torch.Tensor:
        """The numbers as a tensor of their own."""
        made = torch.tensor(self.values).to(getattr(torch, self.dtype))
        laid: torch.Tensor = function(LAYOUTS[self.layout])(made)
        return laid

    def lifted(self, real: type[np.floating[Any]]) -> Array:
        """The same numbers for the reference, in `real`; whole numbers stay whole."""
        whole = self.values.dtype.kind in "iub"
        return self.values if whole else self.values.astype(real, copy=False)


@dataclass(frozen=True)
class Case:
    """One question: arguments, options, and what the loss's gradient is weighted with.

    Attributes:
        operands: the arguments of forward in order; the first one gets the gradient.
        options: what differs from the defaults.
        cotangent: weights of the loss's elements in what is differentiated, repeated to fill its
            shape, or None for ones.
        traits: how it was made, for the coverage: option and kind names to text.
        law: the law that is tried on it.
        judged_as: the type whose roundoff the answer is held to, if not that of the type under test.
    """

    operands: Mapping[str, Operand]
    options: Mapping[str, Any] = field(default_factory=dict)
    cotangent: tuple[float, ...] | None = None
    traits: Mapping[str, str] = field(default_factory=dict)
    law: Law | None = None
    judged_as: str | None = None

    def weights(self, shape: tuple[int, ...]) -> Array:
        """The cotangent for a loss of a shape."""
        return np.ones(shape) if self.cotangent is None else np.resize(self.cotangent, shape)

    @property
    def input(self) -> Operand:
        """The argument that gets the gradient."""
        return next(iter(self.operands.values()))

    @property
    def dtype(self) -> str:
        """The type under test."""
        return self.input.dtype

    @property
    def tolerance(self) -> str:
        """The type whose roundoff the answer is held to."""
        return self.judged_as or self.dtype

    def in_double(self) -> Case:
        """The same numbers in float64, held to no more than float32's roundoff."""
        name = next(iter(self.operands))
        judged_as = "float32" if self.dtype == "float64" else self.dtype
        return replace(self.with_operand(name, replace(self.input, dtype="float64")), judged_as=judged_as)

    def having(self, **options: Any) -> Case:
        """The same with other options; None takes an option out."""
        merged = {k: v for k, v in {**self.options, **options}.items() if v is not None}
        return replace(self, options=merged)

    def with_values(self, **values: Array) -> Case:
        """The same with the numbers of some operands exchanged."""
        operands = {k: replace(o, values=values.get(k, o.values)) for k, o in self.operands.items()}
        return replace(self, operands=operands)

    def with_operand(self, name: str, operand: Operand) -> Case:
        """The same with one operand exchanged."""
        return replace(self, operands={**self.operands, name: operand})

    def contiguous(self) -> Case:
        """The same, every operand contiguous."""
        return self.each(lambda values: values)

    def each(self, change: Callable[[Array], Array]) -> Case:
        """The same with every operand's numbers changed alike, contiguous."""
        operands = {k: Operand(change(o.values).copy(), o.dtype) for k, o in self.operands.items()}
        return replace(self, operands=operands)


@dataclass(frozen=True)
class Twin:
    """A loss that exists twice. A new loss is a new record; all commands pick it up.

    Attributes:
        name: how commands call it.
        fast: the torch module.
        value: the reference, `value(*operands, **options)`.
        gradient: its closed-form gradient, with `cotangent` and, for each option that is an
            `Elementwise`, `<option>_derivative`.
        operands: names of the arguments, in order; the first one gets the gradient.
        options: the values of each option that are tried, the default first.
        cases: draws a case of a type; the options that are given are kept, and if asked for it is
            a large one, beyond what a kernel does in one go.
        allowed: whether options go together.
        domain: whether the numbers of a case suit its options, as those of drawn cases do.
        unit: the size of the terms whose difference the loss may be (1 - Dice: 1).
        channels: how many the input has at least.
        required: options without a default; the first of their values stands for it.
        constants: options that are real numbers and so, like the input, known only to rounding.
        logits: whether the input is logits: a rounded exponential is that of a logit that is off by
            one roundoff of 1, however small the logit.
        slope: dL/dp of the softmax p of the input, from a truth, or None where no softmax is asked for.
        terms: the size of what each element of the gradient is a sum or difference of, from a truth.
        value_terms: the size of what each element of the value is made of, from a truth, if its conditioning in the
            arguments does not tell.
        kinks: whether the loss has kinks under these options (clamp, tie): see judgement.py.
        ranks: the spatial ranks that are drawn, of those that the loss has.
        ground: the other sizes, and the targets, that are drawn.
        bounds: the smallest and largest value for an input and target in the loss's domain, from all options and the
            shape of the input; see `bounds.py`.
        differentiable: whether the fast twin's gradient is judged; otherwise the judge skips it.
        results: the types that the value may have, given a case; that of the gradient is always the input's.
        infinite: whether infinite logits are drawn, of which each library decides for itself what they mean.
        slopes: the further arguments in which the fast twin has a gradient, given a case.
        origin: what another process can make the twin of, see `shards.py`, if it is not in the catalogue.
        source: the statements that make the twin again, and bind the name of `fast`, if it is not in the catalogue.
        laws: what must hold between the answers of the fast twin to related questions.
        real: cases on real images.
        benches: what `twinloss bench` times.
    """

    name: str
    fast: type[torch.nn.Module]
    value: Callable[..., Any]
    gradient: Callable[..., Any]
    operands: tuple[str, ...]
    options: Mapping[str, tuple[Any, ...]]
    cases: Callable[[Twin, str, Mapping[str, Any], Law | None, bool], SearchStrategy[Case]]
    allowed: Callable[[Mapping[str, Any]], bool] = lambda options: True
    domain: Callable[[Case], bool] = lambda case: True
    unit: float = 1.0
    channels: int = 1
    required: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    logits: Callable[[Mapping[str, Any]], bool] = lambda options: False
    slope: Callable[[Truth], Array | None] = lambda truth: None
    terms: Callable[[Truth], Array] | None = None
    value_terms: Callable[[Truth], Array] | None = None
    kinks: Callable[[Mapping[str, Any]], bool] = lambda options: False
    ranks: tuple[int, ...] = (0, 1, 2, 3)
    ground: Ground = Ground()
    bounds: Callable[[Mapping[str, Any], tuple[int, ...]], tuple[float, float]] = unbounded
    differentiable: bool = True
    results: Callable[[Case], tuple[str, ...]] = lambda case: (case.dtype,)
    infinite: bool = True
    slopes: Callable[[Twin, Case], tuple[str, ...]] = lambda twin, case: ()
    source: str = ""
    origin: Any = None
    laws: tuple[Law, ...] = ()
    real: tuple[RealCase, ...] = ()
    benches: tuple[Bench, ...] = ()

    def laws_for(self, dtype: str) -> tuple[Law, ...]:
        """Return the laws that say something about a type under test."""
        return tuple(law for law in self.laws if dtype in law.dtypes)

    def defaults(self) -> dict[str, Any]:
        """Each option at its default."""
        return {name: values[0] for name, values in self.options.items()}


def label(value: Any) -> str:
    """An option value in tables and coverage."""
    return str(value) if isinstance(value, (PerCase, Elementwise, str)) else repr(value)
