"""Long lists of options, which are written once as a dataclass and shown in every signature."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

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
        return function

    return show


def only(options: type[Any], given: Any) -> dict[str, Any]:
    """Return the values in ``given`` of all fields of the dataclass ``options``, as keyword arguments."""
    return {field.name: getattr(given, field.name) for field in fields(options)}
