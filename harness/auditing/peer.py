"""A loss of another library: how its users call it, and what its documentation says about its input."""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from twinloss.harness.hunting.target import supports
from twinloss.harness.losses.catalogue import find
from twinloss.harness.losses.module_laws import ROUNDED_ONCE
from twinloss.harness.model.operand import DTYPES, Elementwise, PerCase, label
from twinloss.harness.model.twin import Case, Twin

# The names of the arguments in the printed code, in the order of our operands.
VARIABLES = ("x", "y", "mask")


@dataclass(frozen=True)
class Clause:
    """A statement of the documentation about some inputs.

    Attributes:
        name: the inputs.
        covers: whether a case is one of them.
        source: where the documentation says so.
        excluded: whether these inputs are outside the domain. Otherwise, the documentation says what the loss does
            with them, which our reference may do differently.
    """

    name: str
    covers: Callable[[Twin, Case], bool]
    source: str
    excluded: bool = True


@dataclass(frozen=True)
class Peer:
    """A loss of another library.

    Attributes:
        name: the class or function, as its users call it.
        like: our loss with the same formula.
        module: the module from which its users import it.
        source: the documentation and the papers that say what it computes.
        build: the code that makes the loss; `{options}` stands for its options, `{more}` for these after a comma.
        call: the code that calls it with the arguments x, y and mask.
        options: fixed values of our options, which say what the documentation describes.
        names: maps our names of options to its names.
        ranks: the spatial ranks that it takes.
        channels: the smallest number of channels.
        clauses: what the documentation says about some inputs.
        promises: errors that the documentation promises, by the kind of bad argument (see `arguments.py`).
        stated: findings of `probes.py` that the documentation announces, each with the place.
        unlike: options of the same name with another documented meaning, which are not compared.
        quotes: what the documentation says about options, traits and ways to fail, as the source of a defect.
        lowest: the lowest value of the formula, and the highest.
        range_source: where the documentation says that values stay in this range, if it does.
        hunted: whether it can be compared with our reference. If not, only the probes are run.
        imports: further import statements of the printed code.
    """

    name: str
    like: str
    module: str
    source: str
    build: str = "{name}({options})"
    call: str = "loss(x, y)"
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    ranks: tuple[int, ...] = (1, 2, 3)
    channels: int = 1
    clauses: tuple[Clause, ...] = ()
    promises: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, str] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    quotes: Mapping[str, str] = field(default_factory=dict)
    lowest: float | None = None
    highest: float | None = None
    range_source: str | None = None
    hunted: bool = True
    imports: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A name that is unique among all peers."""
        return f"{self.module}:{self.name} as {self.like}"

    @property
    def found(self) -> Any:
        """The class or function itself."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def head(self) -> str:
        """The import statements of code that calls the loss."""
        return "\n".join(["import torch", *self.imports, f"from {self.module} import {self.name}"])

    def theirs(self, name: str) -> str:
        """Return the peer's name of our option."""
        return self.names.get(name, name)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the constructor."""
        return _parameters(self.module, self.name)

    def defaults(self) -> dict[str, Any]:
        """Return the defaults of the peer's own parameters, under its own names."""
        return {name: plain(each.default) for name, each in self.parameters.items() if each.default is not each.empty}

    def expression(self, options: Mapping[str, Any], known: frozenset[str] = frozenset()) -> str:
        """Return the code that makes the loss with our options; the values of those in `known` are variables."""
        defaults, given = self.defaults(), []
        for name, value in options.items():
            theirs = self.theirs(name)
            if theirs not in self.parameters or name in (*self.options, *self.unlike) or isinstance(value, PerCase):
                continue
            text = name if name in known else self.literal(name, value)
            if theirs not in defaults or text != repr(defaults[theirs]):
                given.append(f"{theirs}={text}")
        listed = ", ".join(given)
        return self.build.format(name=self.name, options=listed, more=f", {listed}" if listed else "")

    def literal(self, name: str, value: Any) -> str:
        """Return the code of the value of an option, in the type that the signature asks for."""
        if isinstance(value, Elementwise):
            return f"lambda x: {value.torch}"
        annotation = str(self.parameters[self.theirs(name)].annotation)
        if isinstance(value, list) and value and isinstance(value[0], list):
            return f"torch.tensor({value})"
        if isinstance(value, list) and "Tensor" in annotation and not takes_lists(annotation):
            return f"torch.tensor({value})"
        return repr(value)

    def documented(self, name: str, value: Any) -> bool:
        """Return whether the signature allows the type of the value of our option."""
        annotation = str(self.parameters[self.theirs(name)].annotation)
        if annotation in ("", str(inspect.Parameter.empty)) or value is None:
            return True
        if isinstance(value, PerCase):
            single = label(value) in ("the last class", "255", "the rank")
            return "int" in annotation if single else takes_lists(annotation) or "Tensor" in annotation
        if isinstance(value, list):
            return takes_lists(annotation) or "Tensor" in annotation
        if isinstance(value, Elementwise):
            return "Callable" in annotation
        if isinstance(value, float):
            return "float" in annotation
        return True

    def make(self, options: Mapping[str, Any]) -> Any:
        """Make the loss with our options; functions are passed as they are."""
        functions = {name: value for name, value in options.items() if callable(value)}
        code = self.expression(options, frozenset(functions))
        return eval(code, {**_scope(self), **functions})

    def called(self, arguments: int) -> str:
        """Return the code of the call with a number of arguments."""
        return self.call if arguments > 2 else self.call.replace(", mask", "")

    def ask(self, loss: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
        """Call the loss."""
        arguments = dict(zip(VARIABLES, tensors, strict=False))
        return eval(self.called(len(tensors)), {**_scope(self), "loss": loss, **arguments})

    def twin(self) -> Twin:
        """Return a twin of this loss and our reference, with the peer's defaults and the options that both have."""
        known, takes, defaults = find(self.like), self.parameters, self.defaults()
        options: dict[str, tuple[Any, ...]] = {}
        for name, values in known.options.items():
            theirs = self.theirs(name)
            if name in self.options:
                options[name] = (self.options[name],)
            elif theirs in takes and all(isinstance(value, PerCase) for value in values):
                options[name] = values
            elif theirs in takes and name not in self.unlike:
                kept = [value for value in values if self.documented(name, value)]
                first = [defaults[theirs]] if theirs in defaults else []
                options[name] = (*first, *(v for v in kept if not first or label(v) != label(first[0])))
            else:
                options[name] = values[:1]
        changed = [n for n, values in options.items() if label(values[0]) != label(known.options[n][0])]
        changed += [n for n in options if self.theirs(n) in takes and self.theirs(n) not in defaults]
        return replace(
            known,
            fast=_class_of(self),
            options=options,
            required=tuple(dict.fromkeys((*known.required, *changed))),
            laws=tuple(law for law in known.laws if supports(options, law.needs) and law is not ROUNDED_ONCE),
            slopes=lambda twin, case: (),
            results=lambda case: DTYPES,
            ranks=self.ranks,
            channels=max(known.channels, self.channels),
            real=(),
        )

    def missing(self) -> dict[str, str]:
        """Return the options of ours that this loss does not have, each with the values that it does not take."""
        made = self.twin()
        gone = {}
        for name, values in find(self.like).options.items():
            kept = {label(value) for value in made.options[name]}
            if lost := [label(value) for value in values[1:] if label(value) not in kept]:
                gone[name] = ", ".join(lost)
        return gone


class Called(torch.nn.Module):
    """A module that calls a peer in the way that our losses are called; each subclass is for one peer."""

    peer: Peer

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.loss = self.peer.make(options)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the value of the peer."""
        made: torch.Tensor = self.peer.ask(self.loss, tensors)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the peer's own loss, as the class was made at run time and cannot be imported."""
        return _called, (self.peer.key, self.loss)


# The classes that were made at run time, from which a pickled module is made again within this process.
_CLASSES: dict[str, type[Called]] = {}


def _class_of(peer: Peer) -> type[Called]:
    return _CLASSES.setdefault(peer.key, type(peer.name, (Called,), {"peer": peer}))


def _called(key: str, loss: Any) -> Called:
    made = _CLASSES[key].__new__(_CLASSES[key])
    torch.nn.Module.__init__(made)
    made.loss = loss
    return made


@cache
def _parameters(module: str, name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(importlib.import_module(module), name)).parameters


@cache
def _imports(head: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(head, scope)
    return scope


def _scope(peer: Peer) -> dict[str, Any]:
    return _imports(peer.head)


def takes_lists(annotation: str) -> bool:
    """Return whether an annotation allows lists."""
    return any(word in annotation for word in ("Sequence", "list", "List"))


def plain(value: Any) -> Any:
    """Return the value of a member of an enumeration, and any other value as it is."""
    return value.value if isinstance(value, enum.Enum) else value


def is_soft(twin: Twin, case: Case) -> bool:
    """Return whether the target holds numbers other than 0 and 1, although it holds no labels."""
    values = case.operands["target"].values
    labels = bool(case.options.get("to_onehot_y", twin.options.get("to_onehot_y", (True,))[0]))
    if labels and case.input.values.shape[1] > 1:
        return False
    ignored = case.options.get("ignore_index")
    return not bool(((values == 0) | (values == 1) | (values == (0 if ignored is None else ignored))).all())


def is_multiple(twin: Twin, case: Case) -> bool:
    """Return whether some voxel of the target has not exactly one class, for a target with all channels."""
    values = case.operands["target"].values
    return values.shape[1] > 1 and not bool((values.astype(np.float64).sum(1) == 1).all())
