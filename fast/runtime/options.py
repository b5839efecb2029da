"""Options of a loss: attributes that are checked on every assignment.

Both the constructor and the user can assign them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from numbers import Integral
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch.nn.modules.loss import _Loss

from twinloss.fast.runtime.arguments import is_one_of

# Takes the value and the name of an option, and returns the value to store, or raises.
Check = Callable[[Any, str], Any]
# The names of some options, and a function that takes them as keyword arguments and raises if they are inconsistent.
Rule = tuple[tuple[str, ...], Callable[..., None]]

_MISSING = object()

# The largest number that an option may have. Products of a larger one with sums over voxels may overflow in float64.
LARGEST = 1e100

# The largest number of results that a loss remembers, for example for as many shapes of its input.
_MOST = 64

T = TypeVar("T")


def one_of(*choices: str) -> Check:
    """Return the check of an option that is one of some names, given as a string or as an enum of strings."""
    quoted = [f'"{choice}"' for choice in choices]
    wanted = f"{', '.join(quoted[:-1])} or {quoted[-1]}"

    def check(value: Any, name: str) -> str:
        chosen: Any = getattr(value, "value", value)
        if not is_one_of(chosen, choices):
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        name_of_choice: str = chosen
        return name_of_choice

    return check


checked_reduction = one_of("none", "mean", "sum")


def checked_number(value: Any, name: str) -> float:
    """Check a nonnegative number up to `LARGEST`, such as a smoothing term, and return it as a float."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float can hold
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and not negative, got {number}")
    if number > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:g}, got {number:g}: a larger number may overflow")
    return number


def is_whole(value: Any) -> bool:
    """Return whether a value is of an integer type; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def fixed(constant: Any) -> Check:
    """Return the check of an attribute that is an option of a base class, but a constant of this loss."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not type(constant) or value != constant:
            raise TypeError(f"this loss has no option {name}: it is always {constant}, got {value!r}")
        return constant

    return check


class Configured(_Loss):
    """A loss whose options are checked whenever they are assigned.

    `option_checks` has the check of each option. `option_rules` has conditions on several options; a rule applies as
    soon as all its options have been assigned. If a check or a rule raises, the option keeps its old value. Reading an
    option costs as much as reading any other attribute.
    """

    option_checks: ClassVar[Mapping[str, Check]] = {"reduction": checked_reduction}
    option_rules: ClassVar[tuple[Rule, ...]] = ()

    # A slot is no part of `__dict__`, so that state, copies and pickles of a loss do not have its memory.
    __slots__ = ("_memory",)
    _memory: dict[Hashable, Any]

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return `make()`, or its earlier result for this key if no attribute has been assigned since.

        The result may depend only on the attributes of this loss and on the key. If another thread assigns an option
        during `make`, the result is stored in a memory that has been replaced, and is not returned again.
        """
        memory = self._memory
        found: T | None = memory.get(key)
        if found is None:
            if len(memory) >= _MOST:
                memory.clear()
            found = memory[key] = make()
        return found

    def forget(self) -> None:
        """Forget what `remembered` has stored. Each assignment calls this, after it has changed the attribute."""
        object.__setattr__(self, "_memory", {})

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign an option if it passes its check and the rules; assign other attributes as torch does."""
        check = self.option_checks.get(name)
        if check is None:
            super().__setattr__(name, value)
            self.forget()
            return
        value = check(value, name)
        for names, rule in self.option_rules:
            if name in names:
                given = {other: getattr(self, other, _MISSING) for other in names} | {name: value}
                if not any(option is _MISSING for option in given.values()):
                    rule(**given)
        # torch only allows a module to be replaced by another module.
        self.__dict__.get("_modules", {}).pop(name, None)
        super().__setattr__(name, value)
        self.forget()

    def __delattr__(self, name: str) -> None:
        """Delete an attribute as torch does."""
        super().__delattr__(name)
        self.forget()
