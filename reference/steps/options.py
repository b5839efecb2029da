"""Options: long lists are written once as a dataclass and shown in every signature, and flags are no numbers."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from numbers import Integral
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(options: type[Any]) -> Callable[[Function], Function]:
    """Show the fields of the dataclass ``options`` as keyword-only arguments in place of ``**options``.

    A field that has the name of another argument is not shown again.

    >>> from dataclasses import dataclass
    >>> @dataclass(kw_only=True)
    ... class Smoothing:
    ...     smooth: float = 1e-5
    >>> @takes(Smoothing)
    ... def loss(input, target, **options):
    ...     return Smoothing(**options)
    >>> print(inspect.signature(loss))
    (input, target, *, smooth=1e-05)
    """

    def show(function: Function) -> Function:
        own = inspect.signature(function).parameters
        named = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
        named.extend(p for name, p in inspect.signature(options).parameters.items() if name not in own)
        bare = [p.replace(annotation=p.empty) for p in named]  # array types would make it long
        shown = inspect.Signature(sorted(bare, key=lambda p: p.kind))
        function.__signature__ = shown  # type: ignore[attr-defined]
        return typed(function)

    return show


def typed(function: Function) -> Function:
    """Let a function raise an error if an option is a flag where a number is expected, or the other way round.

    The flags are the keyword-only arguments with the default True or False. The numbers 0 and 1 also count as flags.

    >>> @typed
    ... def loss(input, *, weight=1.0, batch=False): ...
    >>> loss(None, weight=[True, 2.0])
    Traceback (most recent call last):
        ...
    TypeError: weight must hold numbers, got the boolean [True, 2.0]
    """
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: isinstance(p.default, bool) for p in parameters if p.kind is p.KEYWORD_ONLY}

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        for name, value in given.items():
            if name in options and name not in ("mask", "cotangent"):
                _check(name, value, options[name])
        return function(*args, **given)

    return checked  # type: ignore[return-value]


def _check(name: str, value: Any, is_flag: bool) -> None:
    if is_flag and not (isinstance(value, (Integral, np.bool_)) and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    if not is_flag and any(isinstance(each, (bool, np.bool_)) for each in np.asarray(value, dtype=object).ravel()):
        raise TypeError(f"{name} must hold numbers, got the boolean {value!r}")


def only(options: type[Any], given: Any) -> dict[str, Any]:
    """Return the values in ``given`` of all fields of the dataclass ``options``, as keyword arguments."""
    return {field.name: getattr(given, field.name) for field in fields(options)}
