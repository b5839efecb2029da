"""Load a user's own loss from a module or a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class TargetError(ValueError):
    """A target cannot be loaded or called, or does not fit its description."""


def load(target: str) -> Any:
    """Load the class, function or callable that `package.module:attr` or `path/file.py:attr` names.

    Raises:
        TargetError: if there is no such file, module or attribute, or it cannot be imported or called.
    """
    found = load_object(target)
    if not callable(found):
        raise TargetError(f"{target} is a {type(found).__name__}: a class, a function or a callable instance is needed")
    return found


def load_object(target: str, kind: type | None = None) -> Any:
    """Load any object; a message about a wrong name lists objects of `kind`, by default callable ones.

    Raises:
        TargetError: if there is no such file, module or attribute, or it cannot be imported.
    """
    where, colon, attribute = target.rpartition(":")
    if not colon or not where or not attribute:
        raise TargetError(f"a target is package.module:attr or path/file.py:attr, got {target!r}")
    module = _module_of_file(Path(where)) if where.endswith(".py") else _module_of_name(where)
    try:
        found = module
        for name in attribute.split("."):
            found = getattr(found, name)
    except AttributeError:
        wanted = callable if kind is None else lambda value: isinstance(value, kind)
        known = [name for name, value in vars(module).items() if wanted(value) and not name.startswith("_")]
        near = get_close_matches(attribute, known, 3, 0.4) or known[:8]
        nothing = "nothing callable" if kind is None else f"no {kind.__name__}"
        raise TargetError(f"{where} has no {attribute}; it has {', '.join(near) or nothing}") from None
    return found


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise TargetError(f"there is no file {path} (in {Path.cwd()})")
    path = path.resolve()
    # If another module has this name, use a unique name instead.
    for name in (path.stem, f"{path.stem}_{abs(hash(path)):x}"):
        known = sys.modules.get(name)
        if getattr(known, "__file__", None) == str(path):
            return known
        if known is None:
            break
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle looks the module up here
    try:
        sys.path.insert(0, str(path.parent))  # for imports of files in the same folder
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise TargetError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _module_of_name(name: str) -> Any:
    try:
        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does
        return importlib.import_module(name)
    except Exception as error:
        raise TargetError(f"module {name} cannot be imported: {type(error).__name__}: {error}") from error
